"""What a head is that is solved from sums over the samples, instead of trained."""

from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

# Bias of a class without samples: below every logit, and finite, so that a softmax or a loss over it is a number.
NEVER = -1e30


class StatisticsHead(Protocol):
    """A linear classifier whose parameters follow from sums over the weighted samples.

    Sums are float64: any order of the samples and any cut into batches gives the same head to rounding, weight 2
    counts as the sample twice, weight 0 as none. A class without samples has weights 0 and bias `NEVER`.
    """

    expands: ClassVar[bool]
    """Whether it takes the network's random features instead of its features."""

    def __init__(self, features: int, device: torch.device): ...

    def observe(self, features_NF: Tensor, labels_N: Tensor, weights_N: Tensor) -> None:
        """Adds samples: float32 features, int64 class indices, float32 weights."""
        ...

    def retire(self, source: int, target: int | None) -> None:
        """Make the samples of class `source` those of class `target`; None: of no class that is predicted."""
        ...

    def solve(self, classes: int) -> tuple[Tensor, Tensor]:
        """Weight [classes, F] and bias [classes] of the linear layer, float32."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the sums, on the CPU."""
        ...

    def load_state_dict(self, state: dict[str, Tensor], classes: int) -> None:
        """Take over what `state_dict()` gave, of at most `classes` classes. Raises ValueError when it is not that."""
        ...


@torch.no_grad()
def silence(layer: nn.Linear, rows: list[int]) -> None:
    """Make the layer never predict these classes. Their logits are `NEVER`, and a softmax gives them no gradient."""
    layer.weight[rows] = 0
    layer.bias[rows] = NEVER
