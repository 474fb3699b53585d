"""Result of learning samples."""

from dataclasses import dataclass, field
from typing import NamedTuple

from stream_learner.contract.vocabulary import Label, Reason, Split
from stream_learner.learning.drift import Change


class Refused(NamedTuple):
    """A sample that could not be learned: its index among those given, and why."""

    sample: int
    reason: Reason
    message: str


@dataclass(slots=True)
class Learned:
    """Figures of one call of `Learner.learn`.

    `samples` counts those used, by split; `learned` the training samples that were learned (weight 0 included);
    `loss_sum` is the sum over `steps` of each step's weighted loss; `prequential` counts, by label, (correct, seen) of
    training samples predicted before they were learned; `weights` are the factors that each policy gave the samples
    learned, and their `combined` weights; `drifts` are the rises of the prequential error that the detector found.
    """

    samples: dict[Split, int] = field(default_factory=dict)
    refused: list[Refused] = field(default_factory=list)
    learned: int = 0
    steps: int = 0
    loss_sum: float = 0.0
    prequential: dict[Label, tuple[int, int]] = field(default_factory=dict)
    weights: dict[str, list[float]] = field(default_factory=dict)
    drifts: list[Change] = field(default_factory=list)
