"""Checks of a saved state before it is used, because others may write to the store."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

import msgspec

from stream_learner.errors import out_of_memory

T = TypeVar("T")

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
NonNegative = Annotated[float, msgspec.Meta(ge=0)]

# Errors that code may raise when it restores a state that it did not write.
FAILURES = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@contextmanager
def part(name: str) -> Iterator[None]:
    """Convert errors of the block (`FAILURES`) to ValueError. The message begins with the name of the state's part.

    Errors for lack of memory are raised unchanged, because they say nothing about the state.
    """
    try:
        yield
    except FAILURES as error:
        if out_of_memory(error):
            raise
        what = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{name}: {what}") from error


def parse(document: Any, kind: type[T]) -> T:
    """Convert a part of the state's JSON document to `kind`. Raises ValueError that names the malformed field."""
    return msgspec.convert(document, kind)
