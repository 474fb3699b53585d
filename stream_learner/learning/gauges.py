"""Figures of a learner that are shown while it learns."""

from dataclasses import dataclass

from stream_learner.contract.vocabulary import Label
from stream_learner.contract.window import Recent


@dataclass(frozen=True, slots=True)
class Gauges:
    """Figures of a learner at one moment.

    * `remembered`: number of samples in the memory, by label.
    * `memory_bytes`: bytes of the encoded images in the memory.
    * `drift_window`: number of newest samples in which the drift detector sees no change.
    * `boosted`: whether learning is boosted after a drift.
    * `refused`: number of candidates since the last release that were refused because they were worse.
    """

    remembered: dict[Label, int]
    memory_bytes: int
    recent: Recent | None
    drift_window: int
    boosted: bool
    refused: int
