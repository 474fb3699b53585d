"""A mini-batch, with the offsets that it covers."""

import time
from collections import Counter
from dataclasses import dataclass, field

from stream_learner.config import MIB
from stream_learner.contract.event_time import odd_kind
from stream_learner.contract.ledger import Piece
from stream_learner.contract.spans import Span, Spans, extend
from stream_learner.contract.vocabulary import Split
from stream_learner.formats.record import Place, Record, RejectError, Rejection, Rows, Sample
from stream_learner.run.arrivals import Arrival, Read

# Limit on the bytes of the held-out samples' pixels. It applies to batches with more than `batch.size` held-out
# samples. One iteration of the loop encodes all samples that are kept, which takes up to 0.13 s per MiB.
MAX_HELD_OUT_BYTES = 4 * MIB
# Limit on the served predictions in a batch, which count neither as samples nor as records.
MAX_PREDICTIONS = 10_000


@dataclass(slots=True)
class Batch:
    """Up to `batch.size` training samples, the held-out samples read between them, and the offsets of all records.

    A batch may hold no training sample, because held-out records alone also advance the position. `places` are the
    places of the records in the order of reading. Deletion markers (`tombstones`) have no place. A batch may begin and
    end inside a message with rows. `rows` then says where, as in `contract.spans.follow`. `predictions` are the records
    of the predictions topic, each with the number of samples read before it. They count neither as records nor as
    samples.
    """

    samples: list[Sample] = field(default_factory=list)
    sources: list[Record] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    spans: Spans = field(default_factory=dict)
    rows: Spans = field(default_factory=dict)
    pieces: list[Piece] = field(default_factory=list)
    lost: list[tuple[str, int, Span]] = field(default_factory=list)
    records: int = 0
    predictions: list[tuple[int, Arrival]] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    tombstones: int = 0
    bytes: int = 0
    training: int = 0
    held_out: int = 0
    held_out_bytes: int = 0
    odd_timestamps: Counter[str] = field(default_factory=Counter)
    poll_s: float = 0.0
    decode_s: float = 0.0

    def cover(self, topic: str, partition: int, start: int, end: int, skipped: int = 0, rows: int = 0) -> None:
        """Add the batch's next offsets, with or without records.

        `skipped` rows of the message at `start` came before, and `rows` rows of the message at `end` have come now.
        """
        extend(self.spans, topic, partition, start, end)
        if skipped or rows or partition in self.rows.get(topic, {}):
            extend(self.rows, topic, partition, skipped, rows)
        if self.pieces and self.pieces[-1][:2] == (topic, partition):
            self.pieces.pop()
        self.pieces.append(Piece(topic, partition, end, rows))

    def add(self, record: Record, decode: Read, rows_read: int = 0) -> Rows | None:
        """Decode a record and add its sample. If the message has rows, add nothing and return them.

        `rows_read` rows of the message were read before. Raises RetryLaterError before anything is changed.
        """
        sample = rejection = None
        try:
            sample = decode(record)
        except RejectError as reject:
            rejection = Rejection(record.encoded(), reject.reason, "decode", reject.message, rows_read)
        if isinstance(sample, Rows):
            return sample
        self.bytes += (rejection.record if rejection else record).nbytes  # a row's dead letter is larger than the row
        if isinstance(sample, Arrival):
            self.predictions.append((len(self.samples), sample))
            return None
        self.records += 1
        if odd := odd_kind(sample.timestamp_ms if sample else record.timestamp_ms, time.time()):
            self.odd_timestamps[odd] += 1
        if rejection:
            self.rejections.append(rejection)
        elif sample is None:
            self.tombstones += 1
            return None
        else:
            self.samples.append(sample)
            self.sources.append(record)
            if not record.rows and sample.image is not record.value:
                self.bytes += len(sample.image)
            if sample.split is Split.TRAIN:
                self.training += 1
            else:
                self.held_out += 1
                self.held_out_bytes += sample.pixels_HWC.nbytes
        self.places.append(record.at)
        return None

    def full(self, size: int, max_span: int) -> bool:
        """Return whether the batch holds `size` training samples, or has reached another limit on samples or records.

        `max_span` is the limit on records.
        """
        much_held_out = self.held_out > size and self.held_out_bytes >= MAX_HELD_OUT_BYTES
        many = self.records >= max_span or len(self.predictions) >= MAX_PREDICTIONS
        return self.training >= size or many or much_held_out
