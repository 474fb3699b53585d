"""Delayed evaluation: compare served predictions with the labels that arrive later."""

import hashlib
from collections.abc import Container, Mapping, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from stream_learner.config import ServedSettings
from stream_learner.contract.documents import MAX_EPOCH, Epoch
from stream_learner.contract.documents import Sequence as Number
from stream_learner.contract.event_time import GREATEST_MS, is_known
from stream_learner.contract.figures import Scored, ServedFigures
from stream_learner.contract.vocabulary import Label
from stream_learner.formats.record import Sample
from stream_learner.learning.stored import Count, parse
from stream_learner.learning.weighting.clock import EventClock
from stream_learner.run.arrivals import Arrival

# Approximate memory of a waiting prediction: its row, and its entry in the index.
WAITING_BYTES = 400
# Limit on the releases that predicted one image. Otherwise a search for repeated predictions could take long.
MAX_RELEASES_OF_ONE_ID = 16
# Number of releases whose accuracy over the whole run is kept.
MAX_TOTALS = 10
LEAST_ROWS = 64
# A prediction that waits. `id` and `label` are digests. `release` is 0 if the prediction no longer waits.
ROW = np.dtype(
    [
        ("id", "V16"),
        ("label", "V16"),
        ("epoch", "<i8"),
        ("release", "<i8"),
        ("timestamp_ms", "<i8"),
        ("probability", "<f8"),
    ]
)
PREDICTIONS = "predictions"

Positive = Annotated[int, Meta(ge=1, le=2**53)]
Release = tuple[Epoch, Number]
"""Epoch and sequence of a release."""


class Stored(msgspec.Struct):
    clock: list[int]
    totals: Annotated[list[tuple[Epoch, Number, Count, Positive]], Meta(max_length=MAX_TOTALS)]


class Served:
    """Predictions that wait for their labels, in the order in which they arrived.

    A prediction waits until a record with its id arrives, until `served.keep_s` has passed in event time, or until it
    is the oldest one and the memory is needed. The event time is a function of the predictions' timestamps.
    """

    def __init__(self, settings: ServedSettings):
        self._keep_ms = settings.keep_s * 1000
        self._most = settings.max_bytes // WAITING_BYTES
        self._clock = EventClock()
        self._rows = np.zeros(LEAST_ROWS, ROW)
        self._first = self._end = 0  # rows before and after these indices are free
        self._index: dict[bytes, list[int]] = {}  # rows that wait, by the digest of their id
        self._totals: dict[Release, tuple[int, int]] = {}
        self.waiting = 0
        """Number of predictions that wait."""

    @property
    def totals(self) -> dict[Release, tuple[int, int]]:
        """Correct and all scored predictions of the ten releases that were scored last, over the whole run."""
        return dict(self._totals)

    def evaluate(
        self,
        arrivals: Sequence[tuple[int, Arrival]],
        samples: Sequence[Sample],
        refused: Container[int] = (),
    ) -> ServedFigures:
        """Add the predictions of a batch, and score those whose labels are in the batch.

        The number beside an arrival says how many samples of the batch were read before it. `refused` are the indices
        of samples whose labels do not count.
        """
        figures = ServedFigures(read=len(arrivals))
        given_ms = np.array([arrival.timestamp_ms for _, arrival in arrivals], np.int64)
        times_ms = self._clock.observe(given_ms).tolist()
        self._expire(figures)
        following = 0
        for position, sample in enumerate(samples):
            while following < len(arrivals) and arrivals[following][0] <= position:
                self._add(arrivals[following][1], times_ms[following], figures)
                following += 1
            if sample.id and position not in refused:
                self._score(sample, figures)
        for (_, arrival), time_ms in zip(arrivals[following:], times_ms[following:], strict=True):
            self._add(arrival, time_ms, figures)
        while self.waiting > self._most:
            self._remove_oldest()
            figures.outcomes["dropped"] += 1
        figures.waiting = self.waiting
        return figures

    def _add(self, arrival: Arrival, time_ms: int, figures: ServedFigures) -> None:
        prediction = arrival.prediction
        if prediction is None or prediction.key is None:
            figures.outcomes["invalid" if prediction is None else "without_id"] += 1
            return
        id_, release = _digest(prediction.key), (prediction.epoch, prediction.release)
        others = self._index.get(id_, [])
        if any((self._rows["epoch"][i], self._rows["release"][i]) == release for i in others):
            figures.outcomes["repeated"] += 1
        elif len(others) == MAX_RELEASES_OF_ONE_ID:
            figures.outcomes["dropped"] += 1
        else:
            if self._end == len(self._rows):
                self._load(self._waiting_rows())
            self._rows[self._end] = id_, _of_label(arrival.label), *release, time_ms, prediction.probability
            self._index.setdefault(id_, []).append(self._end)
            self._end += 1
            self.waiting += 1

    def _score(self, sample: Sample, figures: ServedFigures) -> None:
        rows = self._index.pop(_digest(sample.id), ())
        label = _of_label(sample.label) if rows else b""
        for i in rows:
            row = self._rows[i]
            delay_ms = sample.timestamp_ms - int(row["timestamp_ms"]) if is_known(sample.timestamp_ms) else None
            self.waiting -= 1
            if delay_ms is not None and delay_ms > self._keep_ms:
                figures.outcomes["expired"] += 1
            else:
                figures.outcomes["scored"] += 1
                release, correct = (int(row["epoch"]), int(row["release"])), row["label"].tobytes() == label
                delay_s = None if delay_ms is None else max(0, delay_ms) / 1000
                figures.scored.append(Scored(*release, sample.label, correct, float(row["probability"]), delay_s))
                self._count(release, correct)
            row["release"] = 0

    def _count(self, release: Release, correct: bool) -> None:
        before = self._totals.pop(release, (0, 0))
        self._totals[release] = before[0] + correct, before[1] + 1
        if len(self._totals) > MAX_TOTALS:
            del self._totals[next(iter(self._totals))]

    def _expire(self, figures: ServedFigures) -> None:
        """Remove the oldest predictions as long as they have waited for too long."""
        oldest_ms = self._clock.now_ms - self._keep_ms
        while self._skip_removed() and self._rows["timestamp_ms"][self._first] < oldest_ms:
            self._remove_oldest()
            figures.outcomes["expired"] += 1

    def _skip_removed(self) -> bool:
        """Move to the oldest row that waits. Return whether there is one."""
        while self._first < self._end and not self._rows["release"][self._first]:
            self._first += 1
        return self._first < self._end

    def _remove_oldest(self) -> None:
        self._skip_removed()
        row = self._rows[self._first]
        id_ = row["id"].tobytes()
        self._index[id_].remove(self._first)
        if not self._index[id_]:
            del self._index[id_]
        row["release"] = 0
        self.waiting -= 1

    def _waiting_rows(self) -> np.ndarray:
        rows = self._rows[self._first : self._end]
        return rows[rows["release"] > 0]

    def _load(self, rows: np.ndarray) -> None:
        """Replace all rows, and leave as many rows free as wait."""
        self._rows = np.zeros(max(LEAST_ROWS, 2 * len(rows)), ROW)
        self._rows[: len(rows)] = rows
        self._first, self._end, self.waiting = 0, len(rows), len(rows)
        self._index = {}
        for i, id_ in enumerate(rows["id"]):
            self._index.setdefault(id_.tobytes(), []).append(i)

    def state_dict(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return copies of the arrays, and the rest as JSON."""
        rows = self._waiting_rows().view(np.uint8).reshape(-1, ROW.itemsize)
        totals = [[*release, *counts] for release, counts in self._totals.items()]
        return {PREDICTIONS: rows}, {"clock": self._clock.state_dict(), "totals": totals}

    def load_state_dict(self, arrays: Mapping[str, np.ndarray], document: Any) -> None:
        """Restore a state from `state_dict`. Raises ValueError when it is malformed."""
        stored = parse(document, Stored)
        data = arrays.get(PREDICTIONS)
        if data is None or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != ROW.itemsize:
            raise ValueError(f"array {PREDICTIONS} is not uint8 [any, {ROW.itemsize}]")
        rows = np.ascontiguousarray(data).view(ROW).reshape(-1)
        probability = rows["probability"]
        for name, fits in {
            "epoch": (rows["epoch"] >= 1) & (rows["epoch"] <= MAX_EPOCH),
            "release": rows["release"] >= 1,
            "timestamp_ms": (rows["timestamp_ms"] >= 0) & (rows["timestamp_ms"] <= GREATEST_MS),
            "probability": (probability >= 0) & (probability <= 1),
        }.items():
            if not fits.all():
                raise ValueError(f"array {PREDICTIONS} holds a wrong {name}")
        if any(correct > total for *_, correct, total in stored.totals):
            raise ValueError("more correct predictions than predictions")
        self._clock.load_state_dict(stored.clock)
        self._load(rows)
        self._totals = {(epoch, release): (correct, total) for epoch, release, correct, total in stored.totals}


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _of_label(label: Label) -> bytes:
    """Return a digest that differs between the text "7" and the integer 7."""
    return _digest(msgspec.json.encode(label))
