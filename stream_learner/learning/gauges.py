"""Figures of a learner that are shown while it learns."""

from dataclasses import dataclass

from stream_learner.contract.vocabulary import Label
from stream_learner.contract.window import Recent


@dataclass(frozen=True, slots=True)
class Gauges:
    """`remembered` counts a memory's samples by label; `memory_bytes` are those of its encoded images; `drift_window`
    counts the samples that the drift detector takes for alike; `boosted` is whether learning is boosted after a drift;
    `refused` counts candidates refused for being worse since the last release."""

    remembered: dict[Label, int]
    memory_bytes: int
    recent: Recent | None
    drift_window: int
    boosted: bool
    refused: int
