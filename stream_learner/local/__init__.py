"""Tools for a laptop: a one-node Kafka, data sets, the feeder, the demo. A worker in a cluster does not use them."""

from collections.abc import Iterator
from contextlib import contextmanager

from stream_learner.errors import UsageError


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Return a context for imports that need the extra `name`. Raises UsageError that says how to install the extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UsageError(f"{error.name} is not installed; pip install 'stream-learner[{name}]'") from None
