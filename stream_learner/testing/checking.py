"""Errors and comparisons that several checks use."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from stream_learner.learning.stored import part
from stream_learner.networks.tensors import STORED
from stream_learner.registry import Registry

T = TypeVar("T")


class Checking:
    """The check of one object. Each failure is an AssertionError that names the object."""

    def __init__(self, subject: object):
        self._name = getattr(subject, "__name__", repr(subject))

    def that(self, condition: object, problem: str) -> None:
        """Raise AssertionError with the problem unless the condition holds."""
        if not condition:
            raise AssertionError(f"{self._name}: {problem}")

    def has(self, kind: type, *methods: str) -> None:
        """Raise AssertionError if the class lacks one of these methods."""
        missing = ", ".join(f"{name}()" for name in methods if not callable(getattr(kind, name, None)))
        self.that(not missing, f"it lacks {missing}; derive the class from the base class in docs/extending.md")

    def call(self, what: str, function: Callable[[], T]) -> T:
        """Call the function and return its result. Raises AssertionError if the function raises an exception."""
        try:
            return function()
        except Exception as error:
            raise AssertionError(f"{self._name}: {what} raised {type(error).__name__}: {error}") from error

    def refuses(self, load: Callable[[], None], state: str) -> None:
        """Raise AssertionError unless `load` raises an allowed error (`FAILURES`). `state` describes what it loads."""
        try:
            with part("state"):
                load()
        except ValueError:
            return
        except Exception as error:
            problem = f"load_state_dict() of {state} raised {type(error).__name__}: {error}; raise ValueError"
            raise AssertionError(f"{self._name}: {problem}") from error
        problem = "check the names, types, shapes and finite numbers, and raise ValueError"
        self.that(False, f"load_state_dict() accepts {state}; {problem}")

    def storable(self, state: object) -> dict[str, Tensor]:
        """Return copies of the tensors of a state dict. Raises AssertionError if the state dict cannot be saved."""
        problem = "state_dict() must return a dict of names to tensors"
        if not isinstance(state, dict):
            raise AssertionError(f"{self._name}: {problem}, not {type(state).__name__}")
        copies = {}
        for name, tensor in state.items():
            self.that(isinstance(name, str) and isinstance(tensor, Tensor), f"{problem}; {name!r} is {tensor!r:.20}")
            self.that(tensor.dtype in STORED, f"state_dict() holds {name} as {tensor.dtype}; use float32 or float64")
            copies[name] = tensor.detach().clone()
        return copies


@contextmanager
def registered(registry: Registry, entry: object) -> Iterator[str]:
    """Register an entry until the context ends. Yield the name by which settings choose it."""
    name = "checked"
    registry[name] = entry
    try:
        yield name
    finally:
        del registry[name]


def same(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have the same type, shape and bytes."""
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and one.detach().cpu().contiguous().numpy().tobytes() == other.detach().cpu().contiguous().numpy().tobytes()
    )


def same_tensors(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Return whether two state dicts have the same names and, for each name, the same tensor."""
    return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)


def forged(state: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield variants of a state, each damaged in one tensor, with a description of the damage."""
    for name, tensor in state.items():
        rest = {other: value.clone() for other, value in state.items() if other != name}
        yield f"a state without {name}", rest
        yield f"a state whose {name} has the shape {[1, *tensor.shape]}", rest | {name: tensor.clone().unsqueeze(0)}
        wrong = torch.float64 if tensor.dtype == torch.float32 else torch.float32
        yield f"a state whose {name} is {wrong}", rest | {name: tensor.to(wrong)}
        if tensor.is_floating_point() and tensor.numel():
            yield f"a state whose {name} is NaN", rest | {name: torch.full_like(tensor, torch.nan)}
