"""The loss that weights enter."""

from dataclasses import dataclass

from torch import Tensor

DECAY = 0.99


@dataclass
class WeightedLoss:
    """sum_i w_i l_i / max(sum_i w_i, S), with S the running mean of sum_i w_i.

    Dividing by the batch's own sum would erase what a weight means when a whole batch comes from one producer: a batch
    of low weights would move the model as far as one of high weights. `mean` is S, an exponential mean to be
    started at the sum of a full batch of weight 1.
    """

    mean: float

    def __call__(self, losses: Tensor, weights: Tensor) -> Tensor:
        """A scalar; losses and weights float32 [N]."""
        total = float(weights.sum())
        self.mean = DECAY * self.mean + (1 - DECAY) * total
        return (weights * losses).sum() / max(total, self.mean)
