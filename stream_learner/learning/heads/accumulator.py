"""What takes the optimizer's place under a head that is solved."""

import torch
from torch import Tensor, nn

from stream_learner.learning.heads.statistics import StatisticsHead
from stream_learner.networks.tensors import tensor, within

MAX_SAMPLES = 2**53


class Accumulator:
    """Adds up samples, and makes the network's linear layer the head that their sums give.

    Solved at each decision to release, and whenever the number of samples passes a power of two, so that a young run
    predicts soon: both fall on the same batch in every execution. A class is predicted from the first solve after it
    appeared on.
    """

    def __init__(self, head: StatisticsHead):
        self.head = head
        self.samples = 0

    @torch.no_grad()
    def add(self, features_NF: Tensor, labels_N: Tensor, weights_N: Tensor, layer: nn.Linear) -> bool:
        """Adds a batch: float32, int64, float32. False when a feature or weight is not finite; then nothing is
        added."""
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
        """Make the samples of class `source` those of class `target`; None: of no class that is predicted."""
        self.head.retire(source, target)
        self.solve(layer)

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of everything, on the CPU."""
        return self.head.state_dict() | {"samples": torch.tensor(self.samples)}

    def load_state_dict(self, state: dict[str, Tensor], classes: int) -> None:
        """Take over what `state_dict` gave, of a network with `classes` classes. Raises ValueError for any other."""
        self.head.load_state_dict(state, classes)
        self.samples = int(within(tensor(state, "samples", torch.int64), "samples", 0, MAX_SAMPLES))
