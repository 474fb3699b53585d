"""Detection of drift, which is a rise of the prequential error, and a temporary boost of learning after a drift."""

import math
from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct

from stream_learner.config import Settings
from stream_learner.learning.stored import Count, parse

BUCKETS_PER_SIZE = 5
CHECK_EVERY = 32
LEAST_PART = 5
SIZES = 53  # largest number of bucket sizes, enough for any stream


class StoredAdwin(Struct):
    seen: Count
    buckets: list[list[Count]]


class StoredMonitor(Struct):
    adwin: dict[str, Any]
    boost_until: Count


class Change(NamedTuple):
    """Error rate (0..1) of the samples that the detector dropped, and error rate of the samples that it kept."""

    before: float
    after: float


class Adwin:
    """ADWIN2, adaptive windowing: a window of errors that shrinks as soon as two of its parts differ.

    Bifet and Gavalda, "Learning from time-changing data with adaptive windowing" (SIAM SDM 2007). The window is an
    exponential histogram, so it takes O(log n) memory. The window is checked at every 32nd sample. Errors are 0 or 1,
    so a bucket is one integer, and the variance follows from the mean. As in MOA and river, a part has at least 5
    samples, and the bound is computed as if each part had 4 samples fewer.
    """

    def __init__(self, delta: float):
        """Take `delta`, the paper's confidence. A lower value gives fewer false alarms but finds changes later."""
        self._delta = delta
        self._seen = 0
        self._buckets: list[list[int]] = [[]]  # at i: errors in each bucket of 2**i samples, oldest first

    def add(self, error: bool) -> Change | None:
        """Add the next sample. Return the change if the window shrank, else None."""
        self._seen += 1
        self._buckets[0].append(int(error))
        for size, buckets in enumerate(self._buckets):
            if len(buckets) <= BUCKETS_PER_SIZE:
                break
            if size + 1 == len(self._buckets):
                self._buckets.append([])
            self._buckets[size + 1].append(buckets.pop(0) + buckets.pop(0))
        return self._shrink() if self._seen % CHECK_EVERY == 0 else None

    @property
    def samples(self) -> int:
        """Number of samples in the window."""
        return sum(len(buckets) << size for size, buckets in enumerate(self._buckets))

    @property
    def errors(self) -> int:
        """Number of errors in the window."""
        return sum(map(sum, self._buckets))

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self._seen, "buckets": [list(buckets) for buckets in self._buckets]}

    def load_state_dict(self, document: dict[str, Any]) -> None:
        stored = parse(document, StoredAdwin)
        full = all(len(of_size) <= BUCKETS_PER_SIZE for of_size in stored.buckets)
        if not (full and 1 <= len(stored.buckets) <= SIZES) or any(
            errors > 1 << size for size, of_size in enumerate(stored.buckets) for errors in of_size
        ):
            raise ValueError("buckets is not a valid window of errors")
        self._seen, self._buckets = stored.seen, stored.buckets

    def _shrink(self) -> Change | None:
        samples, errors = self.samples, self.errors
        while self._parts_differ():
            self._buckets[-1].pop(0)
            if not self._buckets[-1]:
                self._buckets.pop()
        dropped = samples - self.samples
        if not dropped:
            return None
        return Change(before=(errors - self.errors) / dropped, after=self.errors / self.samples)

    def _parts_differ(self) -> bool:
        """Return whether any cut between two buckets gives an older and a newer part with different means."""
        n, e = self.samples, self.errors
        confidence = math.log(2 * math.log(n) / self._delta)
        variance = e / n * (1 - e / n)
        n0 = e0 = 0
        # Without NumPy, whose calls take longer than a loop over some dozens of buckets.
        for size in reversed(range(len(self._buckets))):
            for errors in self._buckets[size]:
                n0, e0 = n0 + (1 << size), e0 + errors
                n1, e1 = n - n0, e - e0
                if n0 < LEAST_PART or n1 < LEAST_PART:
                    continue
                spread = 1 / (n0 - LEAST_PART + 1) + 1 / (n1 - LEAST_PART + 1)
                bound = math.sqrt(2 * spread * variance * confidence) + 2 / 3 * spread * confidence
                if abs(e0 / n0 - e1 / n1) > bound:
                    return True
        return False


class DriftMonitor:
    """Detects drifts in the prequential error, and boosts learning after a drift.

    The detector's window also shrinks when the error falls, but a fall is not a drift.
    """

    def __init__(self, settings: Settings):
        self._settings = settings.drift
        self._boosts = settings.learning.on_drift == "boost"
        self._adwin = Adwin(settings.drift.delta)
        self._boost_until = 0  # a count of input records

    def observe(self, errors: np.ndarray, records: int) -> list[Change]:
        """Add the errors of a batch, and return the drifts that the detector finds.

        `errors`, bool [N], is true for each training sample that was predicted wrongly, in the batch's order. `records`
        is the number of the run's input records, including this batch.
        """
        changes = filter(None, map(self._adwin.add, errors.tolist()))
        drifts = [change for change in changes if change.after > change.before]
        if drifts:
            self._boost_until = records + self._settings.boost_records
        return drifts

    @property
    def window(self) -> int:
        """Number of newest training samples in which the detector sees no change."""
        return self._adwin.samples

    def boosted(self, records: int) -> bool:
        """Return whether the batch after the first `records` input records is learned at the boosted rates."""
        return self._boosts and records < self._boost_until

    def learning_rate_factor(self, records: int) -> float:
        """Return the factor of the learning rate for the batch after the first `records` input records."""
        return self._settings.boost_learning_rate if self.boosted(records) else 1.0

    def replay_factor(self, records: int) -> float:
        """Return the factor of the replay size for the batch after the first `records` input records."""
        return self._settings.boost_replay if self.boosted(records) else 1.0

    def state_dict(self) -> dict[str, Any]:
        return {"adwin": self._adwin.state_dict(), "boost_until": self._boost_until}

    def load_state_dict(self, document: dict[str, Any]) -> None:
        stored = parse(document, StoredMonitor)
        self._adwin.load_state_dict(stored.adwin)
        self._boost_until = stored.boost_until
