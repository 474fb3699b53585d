"""Result of learning samples."""

from dataclasses import dataclass, field
from typing import NamedTuple

from stream_learner.contract.figures import Figures
from stream_learner.contract.vocabulary import Reason
from stream_learner.learning.drift import Change


class Refused(NamedTuple):
    """A sample that could not be learned: its index in the call of `Learner.learn`, and why."""

    sample: int
    reason: Reason
    message: str


@dataclass(slots=True)
class Learned(Figures):
    """Figures of one call of `Learner.learn`, and the samples that were refused.

    `drifts` are the rises of the prequential error that the drift detector found.
    """

    refused: list[Refused] = field(default_factory=list)
    drifts: list[Change] = field(default_factory=list)
