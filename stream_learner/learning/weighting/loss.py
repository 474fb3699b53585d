"""The weighted loss."""

from dataclasses import dataclass

from torch import Tensor

DECAY = 0.99


@dataclass
class WeightedLoss:
    """sum_i w_i l_i / max(sum_i w_i, S), where S is the running mean of sum_i w_i.

    If the loss were divided by the batch's own sum, weights would have no effect when a whole batch comes from one
    producer: a batch of low weights would change the model as much as a batch of high weights.

    `mean` is S, an exponential mean that starts at the sum of a full batch of weight 1. `share` is sum_i w_i /
    max(sum_i w_i, S) of the last call, 0..1. Optimizers whose step size does not depend on the gradient's size use it.
    """

    mean: float
    share: float = 1.0

    def __call__(self, losses: Tensor, weights: Tensor) -> Tensor:
        """Return the loss, a scalar. Losses and weights are float32 [N]."""
        total = float(weights.sum())
        self.mean = DECAY * self.mean + (1 - DECAY) * total
        normaliser = max(total, self.mean)
        self.share = total / normaliser
        return (weights * losses).sum() / normaliser
