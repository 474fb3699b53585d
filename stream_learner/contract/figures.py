"""Figures of a batch's samples. A window adds up the figures of its batches."""

from dataclasses import dataclass, field

from stream_learner.contract.vocabulary import Label, Split


@dataclass(slots=True)
class Figures:
    """Figures of the samples of one batch.

    * `samples`: number of samples used, by split.
    * `loss_sum`: sum over `steps` of each step's weighted loss.
    * `prequential`: numbers of (correct, all) predictions by label. Each training sample was predicted before it was
      learned.
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
