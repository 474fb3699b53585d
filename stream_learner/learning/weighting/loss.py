"""The weighted loss."""

from dataclasses import dataclass

from torch import Tensor

DECAY = 0.99


@dataclass
class WeightedLoss:
    """sum_i w_i l_i / max(sum_i w_i, S), where S is the running mean of sum_i w_i.

    If the loss were divided by the batch's own sum, weights would have no effect when a whole batch comes from one
    producer: a batch of low weights would change the model as much as a batch of high weights.

    `mean` is S, an exponential mean that starts at the sum of a full batch of weight 1. `normaliser` is the divisor of
    the current step, and `share`, 0..1, is sum_i w_i / max(sum_i w_i, S). Optimizers whose step size does not depend on
    the gradient's size use the share.
    """

    mean: float
    normaliser: float = 1.0
    share: float = 1.0

    def begin(self, total: float) -> None:
        """Begin a step. `total` is the sum of the weights of all its samples."""
        self.mean = DECAY * self.mean + (1 - DECAY) * total
        self.normaliser = max(total, self.mean)
        self.share = total / self.normaliser

    def __call__(self, losses: Tensor, weights: Tensor) -> Tensor:
        """Return the part of the loss that these samples of the step give, a scalar.

        Losses and weights are float32 [N].
        """
        return (weights * losses).sum() / self.normaliser
