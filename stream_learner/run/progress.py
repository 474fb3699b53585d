"""Progress of learning: the learned positions, and the interval that the next snapshot publishes."""

import copy
from typing import Any

import msgspec

from stream_learner.contract.spans import Offset, Partition, Positions, RowsRead, Spans, Topic, between, each, follow
from stream_learner.monitoring.report import Report
from stream_learner.publishing.snapshot import Interval

# Approximate bytes of a ledger piece in memory. In the manifest, a piece takes a byte or two.
PIECE_BYTES = 100
# Number of ledger pieces and lost stretches that causes an early save. A manifest lists all pieces and
# stretches. If records alternate between partitions, this list is long.
MAX_ENTRIES = 50_000
# Approximate bytes of a dead letter's error headers, used only to limit memory.
ERROR_HEADERS_BYTES = 1024


class Stored(msgspec.Struct):
    may_discard_from: list[tuple[Topic, Partition, Offset]]


class Progress:
    """The learned positions, the interval since the last snapshot, and the offsets that a roll-back would discard.

    Each partition's next offset is counted in three places: in `Source` (to fetch), in `batches` (to batch) and here
    (to learn). Fetching is ahead of batching, and batching is ahead of learning. The counts are separate, so that `add`
    detects a batch that was dropped or given twice. `driver.py` puts the learned positions into the snapshot.
    """

    def __init__(
        self,
        positions: Positions,
        document: dict[str, Any] | None = None,
        predictions_topic: str | None = None,
        rows: RowsRead | None = None,
    ):
        """Begin at `positions`, with the `document` of the state that was saved there or at more positions.

        `rows` are the rows that were learned of the messages at the positions.

        A roll-back discards nothing of `predictions_topic`, which is not learned. Raises ValueError when this document
        does not come from `Progress.document()`.
        """
        self.positions = copy.deepcopy(positions)
        self.rows: RowsRead = copy.deepcopy(rows or {})
        self.open = Interval()
        self._predictions_topic = predictions_topic
        # Per partition: the position at the last release or roll-back, or else the first offset read.
        self._may_discard_from: Positions = {}
        if document is not None:
            for topic, partition, offset in msgspec.convert(document, Stored).may_discard_from:
                if partition in positions.get(topic, {}):  # otherwise another rank reads it
                    self._may_discard_from.setdefault(topic, {})[partition] = offset

    def add(self, report: Report) -> None:
        """Add a batch. Raises ValueError when the report does not continue the positions."""
        follow(report.spans, report.rows, self.positions, self.rows)
        for topic, partition, span in each(report.spans):
            if topic != self._predictions_topic:
                self._may_discard_from.setdefault(topic, {}).setdefault(partition, span.start)
        self.open.tally.add(report)
        pieces = sum(map(len, report.pieces))
        self.open.batches += report.pieces
        inside = sum(piece.rows > 0 for batch in report.pieces for piece in batch)  # each has a number more
        self.open.entries += pieces + inside + len(report.lost)
        self.open.dead_letters += report.rejections
        self.open.pending_bytes += PIECE_BYTES * pieces + sum(
            ERROR_HEADERS_BYTES + rejection.record.nbytes for rejection in report.rejections
        )

    @property
    def empty(self) -> bool:
        """Whether nothing was read since the last snapshot."""
        return not self.open.batches

    def close(self) -> Interval:
        """End the open interval and begin the next."""
        closed, self.open = self.open, Interval()
        return closed

    def settle(self) -> Spans:
        """Note that a model was released, or that training went back to the last release.

        Return the offsets that were learned since the last such decision.
        """
        learned = between(self._may_discard_from, self.positions)
        self._may_discard_from = {
            topic: dict(partitions) for topic, partitions in self.positions.items() if topic != self._predictions_topic
        }
        return learned

    def document(self) -> dict[str, Any]:
        """Return the part of the saved state that belongs to progress, without positions, as JSON."""
        return {"may_discard_from": [*each(self._may_discard_from)]}
