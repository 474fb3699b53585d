"""Replacement of the optimizer for solved heads."""

import torch
from torch import Tensor, nn

from stream_learner.learning.heads.statistics import StatisticsHead
from stream_learner.networks.tensors import tensor, within

MAX_SAMPLES = 2**53


class Accumulator:
    """Accumulator of samples, which sets the network's linear layer to the head that their sums give.

    The head is solved at each decision to release, and when the number of samples passes a power of two, so that a
    young run predicts soon. Both happen on the same batch in every execution. A class is predicted from the first solve
    after its first sample.
    """

    def __init__(self, head: StatisticsHead):
        self.head = head
        self.samples = 0

    @torch.no_grad()
    def add(self, features_NF: Tensor, labels_N: Tensor, weights_N: Tensor, layer: nn.Linear) -> bool:
        """Add a batch: float32, int64, float32. Return False, and add nothing, if a feature or weight is not finite."""
        if not (features_NF.isfinite().all() and weights_N.isfinite().all()):
            return False
        self.head.observe(features_NF, labels_N, weights_N)
        before, self.samples = self.samples, self.samples + int((weights_N > 0).sum())
        if self.samples.bit_length() > before.bit_length():
            self.solve(layer)
        return True

    @torch.no_grad()
    def solve(self, layer: nn.Linear) -> None:
        weight_CF, bias_C = self.head.solve(layer.out_features)
        layer.weight.copy_(weight_CF)
        layer.bias.copy_(bias_C)

    @torch.no_grad()
    def retire(self, source: int, target: int | None, layer: nn.Linear) -> None:
        """Move the samples of class `source` to class `target`. None means that no class is predicted for them."""
        self.head.retire(source, target)
        self.solve(layer)

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of the state, on the CPU."""
        return self.head.state_dict() | {"samples": torch.tensor(self.samples)}

    def load_state_dict(self, state: dict[str, Tensor], classes: int) -> None:
        """Restore a state from `state_dict`, of a network with `classes` classes. Raises ValueError when it is
        malformed.
        """
        self.head.load_state_dict(state, classes)
        self.samples = int(within(tensor(state, "samples", torch.int64), "samples", 0, MAX_SAMPLES))
