"""How far learning got: positions, and what must be published with the next snapshot."""

from dataclasses import dataclass, field

from stream_learner.contract.ledger import Piece
from stream_learner.contract.spans import Positions, advance, each
from stream_learner.formats.record import Rejection
from stream_learner.learning.tally import Tally
from stream_learner.monitoring.report import Report

# What a piece takes in memory, roughly; in the manifest it takes a byte or two.
PIECE_BYTES = 100
# Pieces of the ledger and lost stretches that force a save. Manifests list each, and records that are interleaved on
# purpose do not compress.
MAX_ENTRIES = 50_000
# The error headers of a dead letter, roughly; only bounds memory.
ERROR_HEADERS_BYTES = 1024


@dataclass(slots=True)
class Closed:
    """The interval between two snapshots. `batches` has the pieces of each batch; `entries` counts
    these and the stretches lost."""

    tally: Tally = field(default_factory=Tally)
    dead_letters: list[Rejection] = field(default_factory=list)
    batches: list[list[Piece]] = field(default_factory=list)
    pending_bytes: int = 0
    entries: int = 0


class Progress:
    """Positions of everything learned, and the open interval since the last snapshot."""

    def __init__(self, positions: Positions):
        self.positions = positions
        self.open = Closed()

    def add(self, report: Report) -> None:
        """Raises ValueError when the report does not continue the positions."""
        if not report.spans:
            return  # an idle turn of the loop
        for topic, partition, span in each(report.spans):
            expected = self.positions.get(topic, {}).get(partition, span.start)
            if expected != span.start:
                raise ValueError(f"{topic}[{partition}]: offset {expected} comes next, not {span.start}")
        advance(self.positions, report.spans)
        self.open.tally.add(report)
        self.open.batches.append(report.pieces)
        self.open.entries += len(report.pieces) + len(report.lost)
        self.open.dead_letters += report.rejections
        self.open.pending_bytes += PIECE_BYTES * len(report.pieces) + sum(
            ERROR_HEADERS_BYTES + rejection.record.nbytes for rejection in report.rejections
        )

    @property
    def empty(self) -> bool:
        """Whether nothing was read since the last snapshot."""
        return not self.open.batches

    def close(self) -> Closed:
        """Ends the open interval and begins the next."""
        closed, self.open = self.open, Closed()
        return closed
