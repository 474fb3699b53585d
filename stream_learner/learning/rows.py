"""Changes to rows of the head, and to their moments in the optimizer, when classes retire or return."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stream_learner.learning.heads import silence
from stream_learner.networks import head


@torch.no_grad()
def take_over(layer: nn.Linear, optimizer: Optimizer | None, source: int, target: int) -> None:
    """Copy weights, bias and moments of row `source` to row `target`."""
    for rows in (layer.weight, layer.bias, *_moments(layer, optimizer)):
        rows[target] = rows[source]


@torch.no_grad()
def begin_again(layers: list[nn.Linear], optimizer: Optimizer, row: int) -> None:
    """Initialise a row again, to the same values in all layers. Clear its moments in the first layer's `optimizer`."""
    fresh = head(layers[0].in_features, 1).to(layers[0].weight.device)
    for layer in layers:
        layer.weight[row], layer.bias[row] = fresh.weight[0], fresh.bias[0]
    for moment in _moments(layers[0], optimizer):
        moment[row] = 0


@torch.no_grad()
def keep_silent(layer: nn.Linear, optimizer: Optimizer | None, rows: list[int]) -> None:
    """Silence rows and clear their moments. Call it after each step, because weight decay also changes silent rows."""
    silence(layer, rows)
    for moment in _moments(layer, optimizer):
        moment[rows] = 0


def _moments(layer: nn.Linear, optimizer: Optimizer | None) -> Iterator[Tensor]:
    """Yield the optimizer's tensors that have one row for each row of the layer."""
    for parameter in (layer.weight, layer.bias):
        for moment in optimizer.state.get(parameter, {}).values() if optimizer else ():
            if moment is not None and moment.ndim:  # Adam's step count is a scalar
                yield moment
