"""Build mini-batches, each with the offsets that it covers."""

import math
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from stream_learner.config import MIB, BatchSettings
from stream_learner.contract.event_time import odd_kind
from stream_learner.contract.ledger import Piece
from stream_learner.contract.spans import Positions, Span, Spans, extend
from stream_learner.contract.vocabulary import Split
from stream_learner.errors import InputError
from stream_learner.formats.record import Gap, Record, RejectError, Rejection, RetryLaterError, Sample
from stream_learner.run.arrivals import Arrival, Read

POLL_TIMEOUT_S = 0.5
# Maximum time between two iterations of the worker's loop, in seconds. A loop without iterations counts as dead.
TURN_S = 1.0
# Limit on the bytes of a batch. Otherwise, many large records that are held out or rejected would fill the memory.
MAX_BATCH_BYTES = 64 * MIB
# Limit on the bytes of the held-out samples' pixels. It applies to batches with more than `batch.size` held-out
# samples. One iteration of the loop encodes all samples that are kept, which takes up to 0.13 s per MiB.
MAX_HELD_OUT_BYTES = 4 * MIB
# Limit on the served predictions in a batch, which count neither as samples nor as records.
MAX_PREDICTIONS = 10_000


Decode = Callable[[Record], Sample | None]
"""Decodes a record. Returns None for a deletion marker that is skipped. Raises RejectError when the record cannot be
used, RetryLaterError when the record cannot be read now."""


class Source(Protocol):
    def poll(self, timeout_s: float) -> Iterable[Record | Gap]:
        """Return the next records in order, or nothing if no record arrives in time.

        The iteration may also raise InputError.
        """
        ...

    def took(self, seconds: float) -> None:
        """Report how long decoding the last record took, in seconds."""
        ...


class StopEvent(Protocol):
    def is_set(self) -> bool: ...


class Outage(Protocol):
    """The methods of `stream_learner.run.outage.Outage` that are used here."""

    def wait(self, record: Record, error: RetryLaterError) -> Iterator[None]: ...
    def over(self) -> None: ...


@dataclass(slots=True)
class Batch:
    """Up to `batch.size` training samples, the held-out samples read between them, and the offsets of all records.

    A batch may hold no training sample, because held-out records alone also advance the position. `places` are topic,
    partition and offset of each record in the order of reading. Deletion markers (`tombstones`) have no place.
    `predictions` are the records of the predictions topic, each with the number of samples read before it. They count
    neither as records nor as samples.
    """

    samples: list[Sample] = field(default_factory=list)
    sources: list[Record] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    spans: Spans = field(default_factory=dict)
    pieces: list[Piece] = field(default_factory=list)
    lost: list[tuple[str, int, Span]] = field(default_factory=list)
    records: int = 0
    predictions: list[tuple[int, Arrival]] = field(default_factory=list)
    places: list[tuple[str, int, int]] = field(default_factory=list)
    tombstones: int = 0
    bytes: int = 0
    training: int = 0
    held_out: int = 0
    held_out_bytes: int = 0
    odd_timestamps: Counter[str] = field(default_factory=Counter)
    poll_s: float = 0.0
    decode_s: float = 0.0

    def cover(self, topic: str, partition: int, start: int, end: int) -> None:
        """Add the batch's next offsets, with or without records."""
        extend(self.spans, topic, partition, start, end)
        if self.pieces and self.pieces[-1][:2] == (topic, partition):
            self.pieces.pop()
        self.pieces.append(Piece(topic, partition, end))

    def add(self, record: Record, decode: Read) -> None:
        """Decode a record and add its sample. Raises RetryLaterError before anything is changed."""
        sample = rejection = None
        try:
            sample = decode(record)
        except RejectError as reject:
            rejection = Rejection(record, reject.reason, "decode", reject.message)
        self.bytes += record.nbytes
        if isinstance(sample, Arrival):
            self.predictions.append((len(self.samples), sample))
            return
        self.records += 1
        if odd := odd_kind(record.timestamp_ms, time.time()):
            self.odd_timestamps[odd] += 1
        if rejection:
            self.rejections.append(rejection)
        elif sample is None:
            self.tombstones += 1
            return
        else:
            self.samples.append(sample)
            self.sources.append(record)
            if sample.image is not record.value:
                self.bytes += len(sample.image)
            if sample.split is Split.TRAIN:
                self.training += 1
            else:
                self.held_out += 1
                self.held_out_bytes += sample.pixels_HWC.nbytes
        self.places.append((record.topic, record.partition, record.offset))

    def full(self, settings: BatchSettings) -> bool:
        """Return whether the batch has reached a limit on samples or records."""
        much_held_out = self.held_out > settings.size and self.held_out_bytes >= MAX_HELD_OUT_BYTES
        many = self.records >= settings.max_span or len(self.predictions) >= MAX_PREDICTIONS
        return self.training >= settings.size or many or much_held_out


def batches(
    source: Source,
    decode: Read,
    positions: Positions,
    settings: BatchSettings,
    stop: StopEvent,
    clock: Callable[[], float] = time.monotonic,
    *,
    outage: Outage | None = None,
    alone: Container[tuple[str, int, int]] = (),
    max_bytes: int = MAX_BATCH_BYTES,
) -> Iterator[Batch]:
    """Yield batches until `stop` is set. The open batch is then dropped, and its records are read again later.

    `positions` are the source's first positions. A batch closes when it holds `batch.size` training samples, after
    `batch.linger_s`, after `batch.max_span` records, or when it reaches the limit on held-out pixels or `max_bytes`. A
    record in `alone` (topic, partition, offset) gets a batch of its own.

    Yields a batch at least every second, which may be empty, so that the loop runs even if decoding is slow. When a
    record cannot be read now, `outage` waits, and all later records wait too. Raises the errors of the source and of
    `outage`. Yields the open batch before it raises an InputError.
    """
    batched = {(topic, p): offset for topic, partitions in positions.items() for p, offset in partitions.items()}
    batch = Batch()
    opened = turned = clock()

    def turn() -> Iterator[Batch]:
        """Yield the open batch after `batch.linger_s`. Otherwise yield an empty batch after TURN_S."""
        nonlocal batch, opened, turned
        if clock() - opened >= settings.linger_s:
            yield batch
            batch = Batch()
            opened = turned = clock()
        elif clock() - turned >= TURN_S:
            yield Batch()
            turned = clock()

    try:
        while True:
            began = clock()
            linger_s = max(0.0, opened + settings.linger_s - began) if batch.spans else math.inf
            polled = source.poll(min(POLL_TIMEOUT_S, linger_s))
            batch.poll_s += clock() - began
            for item in polled:
                if stop.is_set():
                    return
                place = item.topic, item.partition
                isolated = isinstance(item, Record) and (*place, item.offset) in alone
                if isolated and batch.spans:
                    yield batch
                    batch = Batch()
                    opened = turned = clock()
                start = batched.get(place, 0)
                if isinstance(item, Gap):
                    end = item.next_offset
                    if item.lost:
                        batch.lost.append((*place, Span(start, end)))
                else:
                    end = item.offset + 1
                    while True:
                        began = clock()
                        try:
                            batch.add(item, decode)
                            break
                        except RetryLaterError as error:
                            if outage is None:
                                raise
                            for _ in outage.wait(item, error):
                                yield from turn()
                            if stop.is_set():
                                return
                    if outage:
                        outage.over()
                    seconds = clock() - began
                    source.took(seconds)
                    batch.decode_s += seconds
                batch.cover(*place, start, end)
                batched[place] = end
                if batch.full(settings) or isolated or batch.bytes >= max_bytes:
                    yield batch
                    batch = Batch()
                    opened = turned = clock()
                elif clock() - turned >= TURN_S:
                    yield Batch()
                    turned = clock()
            if stop.is_set():
                return
            yield from turn()
    except InputError:
        if batch.spans:
            yield batch  # otherwise its records may be gone before they can be read again
        raise
