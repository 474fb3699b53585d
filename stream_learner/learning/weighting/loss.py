"""The loss that weights enter."""

from dataclasses import dataclass

from torch import Tensor

DECAY = 0.99


@dataclass
class WeightedLoss:
    """sum_i w_i l_i / max(sum_i w_i, S), with S the running mean of sum_i w_i.

    Dividing by the batch's own sum would erase what a weight means when a whole batch comes from one producer: a batch
    of low weights would move the model as far as one of high weights. `mean` is S, an exponential mean to be
    started at the sum of a full batch of weight 1. `share` is sum_i w_i / max(sum_i w_i, S) of the last call, 0..1: for
    an optimizer whose steps have one size whatever the gradient's.
    """

    mean: float
    share: float = 1.0

    def __call__(self, losses: Tensor, weights: Tensor) -> Tensor:
        """A scalar; losses and weights float32 [N]."""
        total = float(weights.sum())
        self.mean = DECAY * self.mean + (1 - DECAY) * total
        normaliser = max(total, self.mean)
        self.share = total / normaliser
        return (weights * losses).sum() / normaliser
