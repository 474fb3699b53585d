"""Weight policies. Each one computes a factor of a sample's weight."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from msgspec import Struct

from stream_learner.config import WeightsSettings
from stream_learner.learning.stored import Count, NonNegative, parse

FADE = 1 - 1 / 1000  # factor for each sample, for a mean over about the last thousand samples
LEAST_PROBABILITY = np.finfo(np.float32).tiny


class Times(NamedTuple):
    """Arrival of samples: number of input records read before their batch, and event time. Both are int64 [N].

    Event time is Kafka's timestamp in milliseconds since 1970, UTC, 0 if unknown. `now_ms` is the current event time, 0
    if unknown.
    """

    admitted: np.ndarray
    timestamps_ms: np.ndarray
    now_ms: int = 0


class Arrivals(NamedTuple):
    """A batch's training samples before they are learned.

    `record_weights`, float64 [N], are the records' weights, and `labels` class indices, int64 [N]. `probabilities()`
    returns the probability of each sample's own class under the model that predicts (the average, if one is kept),
    float32 [N]. `released_probabilities()` returns the probability under the last release. This probability is 0
    before the first release, and for a class that the release does not know. Both functions compute only when they are
    called.
    """

    record_weights: np.ndarray
    labels: np.ndarray
    times: Times
    probabilities: Callable[[], np.ndarray]
    released_probabilities: Callable[[], np.ndarray]


class Policy(Protocol):
    """Base class of weight policies, which compute one factor of the weights.

    A policy may keep running statistics as its state, in a JSON document. A policy without statistics inherits an empty
    state. If a batch is not learned, the caller restores the state from before the batch.
    """

    stored: ClassVar[bool]
    """Whether the memory stores the factor with the sample, for use when the sample is replayed. Otherwise `replayed`
    computes a factor at each replay."""

    _settings: WeightsSettings

    def __init__(self, settings: WeightsSettings):
        self._settings = settings

    def factors(self, arrivals: Arrivals) -> np.ndarray:
        """Add the batch to the statistics, then return each sample's factor, at least 0, float64 [N]."""
        ...

    def replayed(self, times: Times) -> np.ndarray:
        """Return the factors of replayed samples that arrived at `times`, float64 [N]. Only called if not `stored`."""
        return np.ones(len(times.admitted))

    def retire(self, source: int, target: int | None) -> None:
        """Note that class `source` retired. Its samples now belong to class `target`, or to no class (None)."""

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the running statistics."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state, or reset the policy if the state is empty."""


class RecordWeight(Policy):
    """Weight that the producer gave the record, or 1 if the record has none.

    The weight is clipped to `weights.max_weight` first, so that no producer outweighs the other factors.
    """

    stored = True

    def factors(self, arrivals: Arrivals) -> np.ndarray:
        return np.minimum(arrivals.record_weights, self._settings.max_weight)


class ClassBalance(Policy):
    """Inverse effective number of the class's training samples so far.

    The effective number of n samples is E_n = (1 - beta^n) / (1 - beta): Cui et al. 2019, "Class-Balanced Loss Based on
    Effective Number of Samples" (arXiv:1901.05555). The factor is scaled so that its mean over all samples so far is 1.
    The factor is not stored, because the memory is balanced already.
    """

    stored = False

    def __init__(self, settings: WeightsSettings):
        super().__init__(settings)
        self._counts = np.empty(0, np.int64)

    def factors(self, arrivals: Arrivals) -> np.ndarray:
        classes = max(len(self._counts), int(arrivals.labels.max()) + 1)
        self._counts = np.bincount(arrivals.labels, minlength=classes) + np.pad(
            self._counts, (0, classes - len(self._counts))
        )
        seen = self._counts > 0
        inverse = np.zeros(classes)
        inverse[seen] = 1 / (1 - self._settings.class_balance_beta ** self._counts[seen])
        return inverse[arrivals.labels] * self._counts.sum() / (inverse @ self._counts)

    def retire(self, source: int, target: int | None) -> None:
        missing = 1 + max(source, target or 0) - len(self._counts)
        self._counts = np.pad(self._counts, (0, max(0, missing)))
        if target is not None:
            self._counts[target] += self._counts[source]
        self._counts[source] = 0

    def state_dict(self) -> dict[str, Any]:
        return {"counts": self._counts.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._counts = np.array(parse(state.get("counts", []), list[Count]), np.int64)


class StoredRecency(Struct):
    admitted: Count = 0


class Recency(Policy):
    """2^-(age / half-life): a late record weighs less when it arrives, and a sample in the memory fades with age.

    With `weights.half_life_records`, age is the number of input records between the sample's batch and the newest
    batch, so new samples have age 0. With `weights.half_life_s`, age is the time from the sample's timestamp to the
    event clock. The event clock is the upper quartile of the last 101 timestamps, which one wrong timestamp cannot move
    far. Age is never below 0, and is 0 if a timestamp is unknown.
    """

    stored = False

    def __init__(self, settings: WeightsSettings):
        super().__init__(settings)
        self._newest = 0  # number of input records read before the newest training batch

    def factors(self, arrivals: Arrivals) -> np.ndarray:
        self._newest = max(self._newest, int(arrivals.times.admitted.max()))
        return self.replayed(arrivals.times)

    def replayed(self, times: Times) -> np.ndarray:
        if self._settings.half_life_records is not None:
            return np.exp2((times.admitted - self._newest) / self._settings.half_life_records)
        assert self._settings.half_life_s is not None  # the settings ensure that one of them is set
        ages_ms = np.where(times.timestamps_ms > 0, np.maximum(times.now_ms - times.timestamps_ms, 0), 0)
        return np.exp2(-ages_ms / (self._settings.half_life_s * 1000))

    def state_dict(self) -> dict[str, Any]:
        return {"admitted": self._newest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._newest = parse(state, StoredRecency).admitted


class Novelty(Policy):
    """1 - p_y, where p_y is the probability of the sample's class under the last release.

    Samples that the released model already predicts well weigh little. The factor is 1 before the first release, and
    for a class that the release does not know.
    """

    stored = True

    def factors(self, arrivals: Arrivals) -> np.ndarray:
        return 1 - arrivals.released_probabilities().astype(np.float64)


class StoredHardness(Struct):
    sum: NonNegative = 0.0
    count: NonNegative = 0.0


class Hardness(Policy):
    """The model's loss -log p_y on the sample before it is learned, divided by the recent mean loss.

    The mean is over about the last thousand samples. The factor is clipped to `weights.max_weight`.

    Katharopoulos and Fleuret 2018, "Not All Samples Are Created Equal" (arXiv:1803.00942), draw samples by importance
    and divide the loss by the importance. Here the importance is the weight, so that samples with wrong predictions
    count more.
    """

    stored = True

    def __init__(self, settings: WeightsSettings):
        super().__init__(settings)
        self._sum = self._count = 0.0  # sum of losses and number of samples, both fading

    def factors(self, arrivals: Arrivals) -> np.ndarray:
        losses = -np.log(np.maximum(arrivals.probabilities(), LEAST_PROBABILITY).astype(np.float64))
        keep = FADE ** len(losses)
        self._sum = keep * self._sum + float(losses.sum())
        self._count = keep * self._count + len(losses)
        if self._sum == 0:  # the model was certain and right for all samples
            return np.ones(len(losses))
        return np.minimum(losses * self._count / self._sum, self._settings.max_weight)

    def state_dict(self) -> dict[str, Any]:
        return {"sum": self._sum, "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        stored = parse(state, StoredHardness)
        self._sum, self._count = stored.sum, stored.count
