"""How far learning got: positions, and what must be published with the next snapshot."""

from dataclasses import dataclass, field

from stream_learner.records.record import Rejection
from stream_learner.records.report import Report
from stream_learner.records.spans import Positions, advance, each
from stream_learner.records.window import Tally

# Kafka's record overhead and the error headers of a dead letter, roughly; only bounds memory.
DEAD_LETTER_OVERHEAD_BYTES = 1024


@dataclass(slots=True)
class Closed:
    """What was learned between two snapshots. `ledger` has a row (batch, topic, partition, end offset) for each
    partition that a batch moved, batches counted from 0."""

    tally: Tally = field(default_factory=Tally)
    dead_letters: list[Rejection] = field(default_factory=list)
    ledger: list[tuple[int, str, int, int]] = field(default_factory=list)
    batches: int = 0
    pending_bytes: int = 0


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
            self.open.ledger.append((self.open.batches, topic, partition, span.end))
        advance(self.positions, report.spans)
        self.open.tally.add(report)
        self.open.batches += 1
        self.open.dead_letters += report.rejections
        self.open.pending_bytes += sum(
            DEAD_LETTER_OVERHEAD_BYTES + len(r.record.value or b"") + len(r.record.key or b"")
            for r in report.rejections
        )

    @property
    def empty(self) -> bool:
        """Whether nothing was read since the last snapshot."""
        return not self.open.batches

    def close(self) -> Closed:
        """Ends the open interval and begins the next."""
        closed, self.open = self.open, Closed()
        return closed
