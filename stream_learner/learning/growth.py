"""New rows of the head for new classes, and the optimizer's moments of these rows."""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stream_learner.networks import head


def grow_head(model: nn.Module, optimizer: Optimizer | None, classes: int) -> None:
    """Add initialised rows to `model.head`, up to `classes` rows. Existing rows keep their values and moments."""
    old: nn.Linear = model.head  # pyright: ignore[reportAssignmentType]
    new = head(old.in_features, classes).to(old.weight.device)
    for name in ("weight", "bias"):
        before: nn.Parameter = getattr(old, name)
        after: nn.Parameter = getattr(new, name)
        with torch.no_grad():
            after[: len(before)] = before
        if optimizer:
            _exchange(optimizer, before, after)
    model.head = new


def _exchange(optimizer: Optimizer, before: nn.Parameter, after: nn.Parameter) -> None:
    """Make the optimizer update `after`, which has more rows, instead of `before`."""
    for group in optimizer.param_groups:
        group["params"] = [after if p is before else p for p in group["params"]]
    moments = optimizer.state.pop(before, None)
    if moments:
        optimizer.state[after] = {key: _grown(value, after) for key, value in moments.items()}


def _grown(moment: Tensor, parameter: Tensor) -> Tensor:
    if moment.ndim == 0:  # Adam's step count
        return moment
    grown = torch.zeros_like(parameter)
    grown[: len(moment)] = moment
    return grown


def start_moments(optimizer: Optimizer, layer: nn.Linear, rows: list[int]) -> None:
    """Make the next Adam update of these rows equal to the first update of a new optimizer.

    Adam divides its moments by 1 - beta^t, where t counts from the parameter's first step (Kingma and Ba 2015,
    algorithm 1). Rows that join at a late step t with moments of 0 would get the correction for t gradients. They would
    move about three times too far. For a gradient g, the moments m = (1 - beta1^(t-1)) g and v = (1 - beta2^(t-1)) g^2
    give the update of t = 1. For Adam, g includes the weight decay. For AdamW, it does not.

    Call it between backward and step. It does nothing for SGD, whose momentum needs no correction.
    """
    for parameter in (layer.weight, layer.bias):
        moments = optimizer.state.get(parameter, {})
        if "exp_avg" not in moments or parameter.grad is None:
            continue
        group = optimizer.param_groups[0]
        beta1, beta2 = group["betas"]
        steps_before = float(moments["step"])
        penalty = 0 if group["decoupled_weight_decay"] else group["weight_decay"]
        gradient = parameter.grad[rows] + penalty * parameter.detach()[rows]
        moments["exp_avg"][rows] = (1 - beta1**steps_before) * gradient
        moments["exp_avg_sq"][rows] = (1 - beta2**steps_before) * gradient**2
