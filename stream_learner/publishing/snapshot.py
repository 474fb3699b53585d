"""What is published of a run at one boundary: copies, so that training can go on."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stream_learner.contract.ledger import Piece
from stream_learner.contract.manifest import Arithmetic, Decision
from stream_learner.contract.spans import Positions, Spans
from stream_learner.contract.window import Recent
from stream_learner.formats.record import Rejection
from stream_learner.learning.outcome import Candidate
from stream_learner.publishing.tally import Tally


@dataclass(slots=True)
class Interval:
    """What was learned between two snapshots.

    `batches` has the pieces of each batch; `entries` counts these and the stretches lost; `pending_bytes` is what all
    of it takes in memory, roughly.
    """

    tally: Tally = field(default_factory=Tally)
    dead_letters: list[Rejection] = field(default_factory=list)
    batches: list[list[Piece]] = field(default_factory=list)
    pending_bytes: int = 0
    entries: int = 0


@dataclass(frozen=True, slots=True)
class Decided:
    """A decision about a candidate. `discarded` are the offsets whose learning was undone when training then went back
    to the last release; None when it did not."""

    candidate: Candidate
    decision: Decision
    discarded: Spans | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything needed to continue (`tensors`, `parts` and the JSON `document`), and what was learned since the last.

    `parts` are immutable bytes by digest: the memories' sealed segments, most of them in the last snapshot too.
    `candidate`, `decision` and `discarded` are those of `Decided` when a release was decided at this boundary.
    """

    tensors: dict[str, np.ndarray]
    document: dict[str, Any]
    parts: dict[str, bytes]
    positions: Positions
    interval: Interval
    recent: Recent | None
    arithmetic: Arithmetic
    candidate: Candidate | None
    decision: Decision | None
    discarded: Spans | None
