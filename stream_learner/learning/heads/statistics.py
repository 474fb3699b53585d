"""Base class of heads that are solved from sums over the samples instead of trained."""

from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

NEVER = -1e30
"""Bias of a class without samples: below every logit, and finite, so that a softmax or a loss over it is a number."""


class StatisticsHead(Protocol):
    """A linear classifier whose parameters follow from sums over the weighted samples.

    The sums are float64, so that any order of samples and any division into batches gives the same head, up to
    rounding. Weight 2 counts a sample twice, weight 0 not at all. A class without samples has weights 0 and bias
    `NEVER`.
    """

    expands: ClassVar[bool]
    """Whether it takes the network's random features instead of its features."""

    def __init__(self, features: int, device: torch.device): ...

    def observe(self, features_NF: Tensor, labels_N: Tensor, weights_N: Tensor) -> None:
        """Add samples: float32 features, int64 class indices, float32 weights."""
        ...

    def retire(self, source: int, target: int | None) -> None:
        """Move the samples of class `source` to class `target`. None means that no class is predicted for them."""
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
    """Make the layer never predict these classes: their logits are `NEVER`, and a softmax gives them no gradient."""
    layer.weight[rows] = 0
    layer.bias[rows] = NEVER
