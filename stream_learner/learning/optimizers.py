"""torch's optimizers, without wrappers for its compiler and profiler. `moments.py` saves and restores their state."""

import inspect
from typing import TypeVar

import torch
from torch.optim import SGD, Adam, AdamW, Optimizer

Kind = TypeVar("Kind", bound=Optimizer)


def without_wrappers(kind: type[Kind]) -> type[Kind]:
    """Return a subclass of an optimizer whose methods have no wrappers for `torch.compile` and torch's profiler.

    The program compiles nothing. At its first call, a wrapper imports `torch._dynamo`, which takes a second. The
    profiler's wrappers take a twentieth of a small network's step.
    """
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in ("add_param_group", "step")}
    methods["step"] = torch.no_grad()(methods["step"])
    methods["step"].hooked = True  # otherwise torch wraps it for its profiler
    methods["zero_grad"] = _zero_grad
    return type(kind.__name__, (kind,), methods)  # pyright: ignore[reportReturnType]


def _zero_grad(optimizer: Optimizer) -> None:
    """Remove the gradients, as `torch.optim.Optimizer.zero_grad` does."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


PlainSGD = without_wrappers(SGD)
PlainAdam = without_wrappers(Adam)
PlainAdamW = without_wrappers(AdamW)
