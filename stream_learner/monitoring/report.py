"""Report of a learned batch, from which windows, log lines and Prometheus metrics are computed."""

from dataclasses import dataclass, field

from stream_learner.contract.figures import Figures, ServedFigures
from stream_learner.contract.ledger import Piece
from stream_learner.contract.spans import Span, Spans
from stream_learner.contract.window import Drift
from stream_learner.formats.record import Rejection


@dataclass(slots=True)
class Report:
    """A batch of records, of all shards of this rank, and the figures of its samples.

    * `tombstones`: deletion markers among the `records`, which were skipped.
    * `used`: for each record, in the order of reading, whether it became a sample and was not rejected later. Deletion
      markers and records with a rare label have no entry.
    * `rows`: for each partition where the spans start or end inside a message with rows, the number of rows that were
      read of the messages at both places.
    * `pieces`: offsets in the order of reading, for each shard of this rank.
    * `lost`: (topic, partition, span) of offsets that were lost before they were read.
    * `drifts`: drifts that the detector found with this batch.
    * `collectives_s`, `sent_bytes`: time in collectives since the last report, and bytes sent to other ranks.
    * `served`: served predictions; None unless `served.evaluate` is true.

    Times are in seconds.
    """

    spans: Spans
    records: int
    figures: Figures = field(default_factory=Figures)
    used: list[bool] = field(default_factory=list)
    tombstones: int = 0
    rows: Spans = field(default_factory=dict)
    pieces: list[list[Piece]] = field(default_factory=list)
    lost: list[tuple[str, int, Span]] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    drifts: list[Drift] = field(default_factory=list)
    odd_timestamps: dict[str, int] = field(default_factory=dict)
    served: ServedFigures | None = None
    poll_s: float = 0.0
    decode_s: float = 0.0
    step_s: float = 0.0
    collectives_s: float = 0.0
    sent_bytes: int = 0
