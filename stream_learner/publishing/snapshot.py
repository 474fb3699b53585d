"""Content of a checkpoint, copied so that training can continue."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from stream_learner.contract.ledger import Piece
from stream_learner.contract.manifest import Arithmetic, Decision
from stream_learner.contract.spans import Positions, RowsRead, Spans
from stream_learner.contract.tensors import Arrays
from stream_learner.contract.vocabulary import Reason
from stream_learner.contract.window import Recent
from stream_learner.formats.record import Rejection
from stream_learner.learning.outcome import Candidate
from stream_learner.publishing.tally import Tally

Poisoned = dict[str, dict[int, list[int]]]
PoisonedRows = dict[str, dict[int, list[tuple[int, int]]]]


@dataclass(slots=True)
class Interval:
    """The records between two snapshots.

    `batches` holds the pieces of each shard's batch: with two shards, those of shard 0 and of shard 1, for one step
    after the other. `entries` is the number of pieces and of lost ranges. `pending_bytes` is the approximate size in
    memory.
    """

    tally: Tally = field(default_factory=Tally)
    dead_letters: list[Rejection] = field(default_factory=list)
    batches: list[list[Piece]] = field(default_factory=list)
    pending_bytes: int = 0
    entries: int = 0

    @property
    def poisoned(self) -> tuple[Poisoned, PoisonedRows]:
        """Places of the records that were set aside: whole messages, and rows of messages."""
        offsets: Poisoned = {}
        rows: PoisonedRows = {}
        for record, reason, *_ in self.dead_letters:
            if reason is not Reason.POISON:
                continue
            if record.row is None:
                offsets.setdefault(record.topic, {}).setdefault(record.partition, []).append(record.offset)
            else:
                rows.setdefault(record.topic, {}).setdefault(record.partition, []).append((record.offset, record.row))
        return offsets, rows


@dataclass(frozen=True, slots=True)
class Decided:
    """A decision about a candidate.

    `discarded` holds the offsets whose learning was undone, if training went back to the last release, otherwise None.
    """

    candidate: Candidate
    decision: Decision
    discarded: Spans | None


class ShardState(NamedTuple):
    """The state of one shard: arrays, and a JSON document."""

    tensors: Arrays
    document: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything needed to resume (`tensors`, `parts`, the JSON `document`), and the interval since the last snapshot.

    `shards` are the states of this rank's shards, empty if the run has a single shard. `parts` maps digests to
    immutable bytes: full segments of the memory and the held-out sets. Most of them were already in the last snapshot.
    `positions` are the next offsets to learn, and `rows` the rows that were learned of the messages there, from
    `run/progress.py`. If the gate decided at this snapshot, `candidate`, `decision` and `discarded` are copied from
    `Decided`. Otherwise they are None.
    """

    tensors: dict[str, np.ndarray]
    document: dict[str, Any]
    shards: list[ShardState]
    parts: dict[str, bytes]
    positions: Positions
    rows: RowsRead
    interval: Interval
    recent: Recent | None
    arithmetic: Arithmetic
    candidate: Candidate | None
    decision: Decision | None
    discarded: Spans | None
