"""Figures of a batch's samples. A window adds up the figures of its batches."""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from stream_learner.contract.vocabulary import Label, Split

SERVED_OUTCOMES = ("invalid", "without_id", "repeated", "scored", "expired", "dropped")
"""Outcomes of served predictions. A prediction without an outcome waits for its label."""


@dataclass(slots=True)
class Figures:
    """Figures of the samples of one batch.

    * `samples`: number of samples used, by split.
    * `loss_sum`: sum over `steps` of each step's weighted loss.
    * `prequential`: numbers of (correct, all) predictions by label. The training samples were predicted before they
      were learned. It is empty for a batch that was not predicted (`prequential.share`).
    * `weights`: the factors of the learned samples by policy, and the samples' `combined` weights.
    """

    samples: dict[Split, int] = field(default_factory=dict)
    steps: int = 0
    loss_sum: float = 0.0
    prequential: dict[Label, tuple[int, int]] = field(default_factory=dict)
    weights: dict[str, list[float]] = field(default_factory=dict)

    @property
    def learned(self) -> int:
        """Number of training samples that were learned, weight 0 included."""
        return self.samples.get(Split.TRAIN, 0)


class Scored(NamedTuple):
    """A served prediction whose `label` arrived, `delay_s` seconds later (None if unknown).

    `epoch` and `release` name the release. `probability` is the probability of the predicted label.
    """

    epoch: int
    release: int
    label: Label
    correct: bool
    probability: float
    delay_s: float | None


@dataclass(slots=True)
class ServedFigures:
    """Served predictions in one batch.

    `read` is the number of records of the predictions topic. `outcomes` counts predictions by outcome, including those
    of earlier batches. `waiting` is the number of predictions that wait for their label after the batch.
    """

    read: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    scored: list[Scored] = field(default_factory=list)
    waiting: int = 0
