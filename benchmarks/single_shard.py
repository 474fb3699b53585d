"""The batches of a run with a single shard."""

import time
from collections.abc import Callable, Iterator

from stream_learner.config import BatchSettings
from stream_learner.contract.spans import Positions
from stream_learner.learning.parallel import Parallel
from stream_learner.run.arrivals import Read
from stream_learner.run.batch import Batch
from stream_learner.run.batches import OpenBatch, Source, StopEvent, batches


def single_shard(
    source: Source,
    decode: Read,
    positions: Positions,
    settings: BatchSettings,
    stop: StopEvent,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Batch]:
    """Yield the batches of a source, as a worker with one shard closes them. Leave out idle turns."""
    shard = OpenBatch(source, decode, positions, settings, stop, clock)
    for closed in batches([shard], Parallel(), settings, stop, clock):
        yield from closed
