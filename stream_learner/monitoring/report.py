"""Figures of one batch, for windows, progress bars and Prometheus."""

from dataclasses import dataclass, field

from stream_learner.contract.ledger import Piece
from stream_learner.contract.spans import Span, Spans
from stream_learner.contract.vocabulary import Label, Split
from stream_learner.contract.window import Drift
from stream_learner.formats.record import Rejection


@dataclass(slots=True)
class Report:
    """Figures of one batch.

    * `tombstones`: deletion markers among the `records`, which were skipped.
    * `used`: for each other record without a rare label, in the order of reading, whether it became a sample that was
      not rejected later.
    * `pieces`: offsets of the batch in the order of reading.
    * `lost`: (topic, partition, span) of offsets that were lost before they were read.
    * `learned`: number of training samples whose batch was learned, weight 0 included.
    * `loss_sum`: sum over `steps` of each step's weighted loss.
    * `prequential`: (correct, seen) by label, of training samples predicted before they were learned.
    * `weights`: factors that each policy gave the learned samples, and their `combined` weights.
    * `drifts`: drifts that the detector found with this batch.

    Times are in seconds.
    """

    spans: Spans
    records: int
    used: list[bool] = field(default_factory=list)
    tombstones: int = 0
    pieces: list[Piece] = field(default_factory=list)
    lost: list[tuple[str, int, Span]] = field(default_factory=list)
    samples: dict[Split, int] = field(default_factory=dict)
    rejections: list[Rejection] = field(default_factory=list)
    learned: int = 0
    steps: int = 0
    loss_sum: float = 0.0
    prequential: dict[Label, tuple[int, int]] = field(default_factory=dict)
    weights: dict[str, list[float]] = field(default_factory=dict)
    drifts: list[Drift] = field(default_factory=list)
    odd_timestamps: dict[str, int] = field(default_factory=dict)
    poll_s: float = 0.0
    decode_s: float = 0.0
    step_s: float = 0.0
