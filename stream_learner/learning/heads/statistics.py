"""Base class of heads that are solved from sums over the samples instead of trained."""

from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

NEVER = -1e30
"""Bias of a class without samples. It is below every logit, and finite, so that a softmax or a loss is not NaN."""


class StatisticsHead(Protocol):
    """A linear classifier whose parameters are computed from sums over the weighted samples.

    The sums are float64, so that any order of samples and any division into batches gives the same head, up to
    rounding. A sample with weight 2 counts like two samples. A sample with weight 0 does not count. The row of a class
    without samples has weights 0 and bias `NEVER`.
    """

    expands: ClassVar[bool]
    """Whether the head uses random features of the network instead of the network's own features."""

    def __init__(self, features: int, device: torch.device): ...

    def observe(self, features_NF: Tensor, labels_N: Tensor, weights_N: Tensor) -> None:
        """Add samples: float32 features, int64 class indices, float32 weights."""
        ...

    def retire(self, source: int, target: int | None) -> None:
        """Move the samples of class `source` to class `target`, or to no class if `target` is None."""
        ...

    def solve(self, classes: int) -> tuple[Tensor, Tensor]:
        """Return weight [classes, F] and bias [classes] of the linear layer, float32."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of the sums, on the CPU."""
        ...

    def load_state_dict(self, state: dict[str, Tensor], classes: int) -> None:
        """Restore a state from `state_dict`, of at most `classes` classes. Raises ValueError when it is malformed."""
        ...


@torch.no_grad()
def silence(layer: nn.Linear, rows: list[int]) -> None:
    """Make the layer never predict these classes. Their logits become `NEVER`, and a softmax gives them no gradient."""
    layer.weight[rows] = 0
    layer.bias[rows] = NEVER
