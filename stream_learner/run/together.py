"""Values that all ranks of a run agree on. Every rank calls these functions at the same point of its loop."""

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from stream_learner.contract.ledger import Piece
from stream_learner.contract.spans import Partition, Positions, RowsRead, Spans, Topic
from stream_learner.errors import StreamLearnerError, error_with
from stream_learner.formats.record import Rejection
from stream_learner.learning.parallel import Parallel
from stream_learner.publishing.snapshot import Snapshot
from stream_learner.publishing.tally import Read
from stream_learner.run.inputs import joined


class Part(msgspec.Struct):
    """A rank's part of a snapshot: what it read since the last snapshot, and up to where."""

    read: Read
    batches: list[list[Piece]]
    dead_letters: list[Rejection]
    positions: Positions
    rows: RowsRead
    may_discard_from: list[tuple[Topic, Partition, int]]
    discarded: Spans | None
    lag: Positions


def alone(parallel: Parallel) -> bool:
    """Return whether this process is the run's only rank."""
    return len(parallel.local) == parallel.shards


def any_rank(parallel: Parallel, *flags: bool) -> list[bool]:
    """Return for each flag whether it is set on any rank."""
    rows = np.tile(np.array(flags, np.int64), (len(parallel.local), 1))
    return parallel.gathered(rows).max(0).astype(bool).tolist()


def from_ranks(parallel: Parallel, value: Any) -> list[Any]:
    """Return the JSON value of each rank, in the order of ranks."""
    carried = len(parallel.local)
    return parallel.objects([value, *[None] * (carried - 1)])[::carried]


def first_failure(parallel: Parallel, failure: StreamLearnerError | None) -> StreamLearnerError | None:
    """Return the failure of the first rank that has one, the same on all ranks. `failure` is that of this rank."""
    if alone(parallel):
        return failure
    failures = from_ranks(parallel, failure and [failure.code, str(failure)])
    found = ((rank, *failed) for rank, failed in enumerate(failures) if failed)
    return next((error_with(code, f"rank {rank} of the run: {message}") for rank, code, message in found), None)


def gathered(parallel: Parallel, snapshot: Snapshot, lag: Positions) -> tuple[Snapshot, Positions]:
    """Return, on rank 0, the snapshot and the lag with the parts of all ranks, but only the states of its own shards.

    The other ranks return their own.
    """
    if alone(parallel):
        return snapshot, lag
    interval, document = snapshot.interval, snapshot.document
    own = Part(
        interval.tally.read,
        interval.batches,
        # A format of a user may put anything into a message.
        [letter._replace(message=letter.message.encode(errors="replace").decode()) for letter in interval.dead_letters],
        snapshot.positions,
        snapshot.rows,
        document["may_discard_from"],
        snapshot.discarded,
        lag,
    )
    encoded = from_ranks(parallel, msgspec.msgpack.encode(own))
    if parallel.rank:
        return snapshot, lag
    parts = [msgspec.msgpack.decode(data, type=Part) for data in encoded]
    interval.tally.read = parts[0].read
    for part in parts[1:]:
        interval.tally.read.join(part.read)
    interval.batches = _in_order_of_shards([part.batches for part in parts], len(parallel.local))
    interval.dead_letters = [letter for part in parts for letter in part.dead_letters]
    discarded = [part.discarded for part in parts if part.discarded is not None]
    everything = replace(
        snapshot,
        positions=joined(part.positions for part in parts),
        rows=joined(part.rows for part in parts),
        document=document | {"may_discard_from": sorted(place for part in parts for place in part.may_discard_from)},
        discarded=joined(discarded) if discarded else None,
    )
    return everything, joined(part.lag for part in parts)


def _in_order_of_shards(ranks: list[list[list[Piece]]], carried: int) -> list[list[Piece]]:
    """Return the pieces of each shard's batch, step by step. Each rank lists those of the shards that it carries."""
    steps = len(ranks[0]) // carried
    return [pieces for step in range(steps) for rank in ranks for pieces in rank[carried * step : carried * (step + 1)]]
