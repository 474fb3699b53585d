"""Checks on a saved state before any of it is used: a state is read from a store that others may write."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

import msgspec
import torch
from torch import Tensor, nn

from stream_learner.errors import out_of_memory

T = TypeVar("T")

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
NonNegative = Annotated[float, msgspec.Meta(ge=0)]

# Errors that code may raise when it restores a state that it did not write.
FAILURES = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@contextmanager
def part(name: str) -> Iterator[None]:
    """Name the part of the state that a failure is about. Raises ValueError for every failure to take it over, except
    when memory ran out, which says nothing about the state."""
    try:
        yield
    except FAILURES as error:
        if out_of_memory(error):
            raise
        what = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{name}: {what}") from error


def parse(document: Any, kind: type[T]) -> T:
    """Convert a part of the state's JSON document. Raises ValueError, which says where it is not of `kind`."""
    return msgspec.convert(document, kind)


def tensor(
    tensors: Mapping[str, Tensor], name: str, dtype: torch.dtype, *shape: int | None, finite: bool = True
) -> Tensor:
    """Return a tensor of the state; None in `shape` stands for any length.

    Raises ValueError when it is missing, has another dtype or shape, or holds a number that is not finite although
    `finite` asks for that.
    """
    found = tensors.get(name)
    wanted = f"{dtype} [{', '.join('any' if length is None else str(length) for length in shape)}]"
    if found is None:
        raise ValueError(f"tensor {name}, {wanted}, is missing")
    fits = found.ndim == len(shape) and all(w in (None, n) for n, w in zip(found.shape, shape, strict=True))
    if found.dtype != dtype or not fits:
        raise ValueError(f"tensor {name} is {found.dtype} {list(found.shape)}, not {wanted}")
    if finite and not found.isfinite().all():
        raise ValueError(f"tensor {name} holds numbers that are not finite")
    return found


def within(found: Tensor, name: str, low: int, high: int) -> Tensor:
    """Return the tensor. Raises ValueError when an element is not in low..high - 1."""
    if found.numel() and not (low <= int(found.min()) and int(found.max()) < high):
        raise ValueError(f"tensor {name} holds numbers outside {low}..{high - 1}")
    return found


def load_weights(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy weights and buffers into a network. Raises ValueError, which names the first that does not fit."""
    wanted = network.state_dict()
    if surplus := tensors.keys() - wanted.keys():
        raise ValueError(f"tensor {min(surplus)} belongs to another network")
    for name, own in wanted.items():
        tensor(tensors, name, own.dtype, *own.shape, finite=False)
    network.load_state_dict(tensors)
    if not is_finite(network):
        raise ValueError("the network has weights that are not finite")


def is_finite(network: nn.Module) -> bool:
    """Return whether all weights are finite.

    A buffer may hold infinities on purpose, such as the mask of an attention layer, but no NaN.
    """
    return all(p.isfinite().all() for p in network.parameters()) and not any(b.isnan().any() for b in network.buffers())
