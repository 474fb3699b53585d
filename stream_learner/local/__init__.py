"""Tools for a laptop that a cluster does not need: a one-node Kafka, data sets, the feeder, the demo."""

from collections.abc import Iterator
from contextlib import contextmanager

from stream_learner.errors import UsageError


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Wrap imports that need the extra of this name. Raises UsageError that says how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UsageError(f"{error.name} is not installed; pip install 'stream-learner[{name}]'") from None
