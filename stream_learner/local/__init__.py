"""What a laptop needs and a cluster does not: a one-node Kafka, data sets, the feeder."""

from collections.abc import Iterator
from contextlib import contextmanager

from stream_learner.errors import UsageError


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Around imports that only the extra of this name brings. Raises UsageError with what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UsageError(f"{error.name} is not installed; pip install 'stream-learner[{name}]'") from None
