"""torch's optimizers, without the wrappers for its compiler. `moments.py` saves and restores their state."""

import inspect
from typing import TypeVar

import torch
from torch.optim import SGD, Adam, AdamW, Optimizer

Kind = TypeVar("Kind", bound=Optimizer)


def without_compiler(kind: type[Kind]) -> type[Kind]:
    """Return a subclass of an optimizer whose methods have no wrappers for `torch.compile`.

    The program compiles nothing. At its first call, a wrapper imports `torch._dynamo`, which takes a second.
    """
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in ("add_param_group", "zero_grad", "step")}
    methods["step"] = torch.no_grad()(methods["step"])
    return type(kind.__name__, (kind,), methods)  # pyright: ignore[reportReturnType]


PlainSGD = without_compiler(SGD)
PlainAdam = without_compiler(Adam)
PlainAdamW = without_compiler(AdamW)
