"""Build mini-batches, each with the offsets that it covers."""

import math
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntFlag, auto
from typing import Protocol

import numpy as np

from stream_learner.config import MIB, BatchSettings
from stream_learner.contract.event_time import odd_kind
from stream_learner.contract.ledger import Piece
from stream_learner.contract.spans import Positions, Span, Spans, extend
from stream_learner.contract.vocabulary import Split
from stream_learner.errors import DependencyError, InputError
from stream_learner.formats.record import Gap, Record, RejectError, Rejection, RetryLaterError, Sample
from stream_learner.learning.parallel import Parallel
from stream_learner.run.arrivals import Arrival, Read

POLL_TIMEOUT_S = 0.5
# First wait of a shard for records while other shards may have some, in seconds. Each further wait is twice as long.
FIRST_WAIT_S = 0.005
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

    def full(self, size: int, max_span: int) -> bool:
        """Return whether the batch holds `size` training samples, or has reached another limit on samples or records.

        `max_span` is the limit on records.
        """
        much_held_out = self.held_out > size and self.held_out_bytes >= MAX_HELD_OUT_BYTES
        many = self.records >= max_span or len(self.predictions) >= MAX_PREDICTIONS
        return self.training >= size or many or much_held_out


class OpenBatch:
    """The open batch of one shard, and the source that fills it."""

    def __init__(
        self,
        source: Source,
        decode: Read,
        positions: Positions,
        settings: BatchSettings,
        stop: StopEvent,
        clock: Callable[[], float] = time.monotonic,
        *,
        shards: int = 1,
        outage: Outage | None = None,
        alone: Container[tuple[str, int, int]] = (),
        max_bytes: int = MAX_BATCH_BYTES,
    ):
        """Take the source, and its first positions.

        The batch is complete when it holds `batch.size / shards` training samples, after its share of `batch.max_span`
        records, or when it reaches the limit on held-out pixels or `max_bytes`. A record in `alone` (topic, partition,
        offset) gets a batch of its own. When a record cannot be read now, `outage` waits, and all later records wait
        too.
        """
        self.batch = Batch()
        self.complete = False
        """Whether the batch must be taken before more records are read."""
        self.isolated = False
        """Whether the batch holds a record that must be learned alone."""
        self._source = source
        self._decode = decode
        self._positions = {(t, p): offset for t, partitions in positions.items() for p, offset in partitions.items()}
        self._size = settings.size // shards
        self._max_span = max(1, settings.max_span // shards)
        self._stop = stop
        self._clock = clock
        self._outage = outage
        self._alone = alone
        self._max_bytes = max_bytes
        self._timeout_s = 0.0
        self._filling = self._fill()

    def fill(self, timeout_s: float) -> None:
        """Add records until the batch is complete, no more of them wait, or TURN_S has passed, or until `stop` is set.

        Wait `timeout_s` for the first record. Raises the errors of the source and of `outage`.
        """
        self._timeout_s = timeout_s
        next(self._filling)

    def take(self) -> Batch:
        """Return the batch, and open the next one."""
        batch, self.batch, self.complete, self.isolated = self.batch, Batch(), False, False
        return batch

    def _fill(self) -> Iterator[None]:
        clock = self._clock
        while True:
            began = turned = clock()
            polled = self._source.poll(self._timeout_s)
            self.batch.poll_s += clock() - began
            for item in polled:
                place = item.topic, item.partition
                isolated = isinstance(item, Record) and (*place, item.offset) in self._alone
                if isolated and self.batch.spans:
                    self.complete = True
                    yield
                    turned = clock()
                while self._stop.is_set():
                    yield
                start = self._positions.get(place, 0)
                if isinstance(item, Gap):
                    end = item.next_offset
                    if item.lost:
                        self.batch.lost.append((*place, Span(start, end)))
                else:
                    end = item.offset + 1
                    yield from self._add(item)
                self.batch.cover(*place, start, end)
                self._positions[place] = end
                self.isolated = isolated
                if isolated or self.batch.bytes >= self._max_bytes or self.batch.full(self._size, self._max_span):
                    self.complete = True
                    yield
                    turned = clock()
                elif clock() - turned >= TURN_S:
                    yield
                    turned = clock()
            yield

    def _add(self, record: Record) -> Iterator[None]:
        """Add a record. Yield while it cannot be read."""
        while True:
            began = self._clock()
            try:
                self.batch.add(record, self._decode)
                break
            except RetryLaterError as error:
                if self._outage is None:
                    raise
                for _ in self._outage.wait(record, error):
                    yield
                while self._stop.is_set():
                    yield
        if self._outage:
            self._outage.over()
        seconds = self._clock() - began
        self._source.took(seconds)
        self.batch.decode_s += seconds


class Say(IntFlag):
    """A rank's message to all ranks in a turn of the loop."""

    OPEN = auto()
    """An open batch has offsets."""
    COMPLETE = auto()
    LINGERED = auto()
    STOP = auto()
    TURN = auto()
    """The loop must run, because nothing was closed for a second."""
    END = auto()
    """The input ends here in an error, so the open batches are the last ones."""


def batches(
    shards: Sequence[OpenBatch],
    parallel: Parallel,
    settings: BatchSettings,
    stop: StopEvent,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[list[Batch]]:
    """Yield batches, one for each shard of this rank, until `stop` is set. The open batches are then dropped.

    All ranks close their batches together: when one is complete and the others wait for records, or `batch.linger_s`
    after the oldest opened. The records of dropped batches are read again later.

    Yields an empty list when nothing was closed for a second, so that the loop runs even if decoding is slow. Raises
    the errors of the shards' sources and outages. First yields the open batches on all ranks: after an InputError,
    their records may be gone before they can be read again. They come in two steps if a record must be learned alone.
    """
    opened = turned = clock()
    idle_turns = 0
    while True:
        left_s = max(0.0, opened + settings.linger_s - clock()) if any(s.batch.spans for s in shards) else math.inf
        waits_s = 0.0 if any(shard.complete for shard in shards) else _patience_s(idle_turns, parallel)
        error, said = None, Say(0)
        try:
            for shard in shards:
                if not shard.complete:
                    shard.fill(min(waits_s, left_s) / len(shards))
        except (InputError, DependencyError) as caught:
            error, said = caught, Say.END
        now = clock()
        said |= Say.STOP if stop.is_set() else Say(0)
        said |= _open(shards)
        said |= Say.COMPLETE if any(shard.complete for shard in shards) else Say(0)
        said |= Say.LINGERED if now - opened >= settings.linger_s else Say(0)
        said |= Say.TURN if now - turned >= TURN_S else Say(0)
        said = _agreed(said, parallel)
        idle_turns += 1
        if said & Say.STOP:
            return
        if said & Say.COMPLETE or (said & Say.OPEN and said & (Say.LINGERED | Say.END)):
            yield _closed(shards)
            while said & Say.END and _agreed(_open(shards), parallel):  # a record learned alone left others open
                yield _closed(shards)
            opened = turned = clock()
            idle_turns = 0
        elif said & Say.TURN:
            yield []
            turned = clock()
        if error:
            raise error
        if said & Say.END:
            return
        if said & Say.LINGERED:
            opened = clock()


def _open(shards: Sequence[OpenBatch]) -> Say:
    return Say.OPEN if any(shard.batch.spans for shard in shards) else Say(0)


def _closed(shards: Sequence[OpenBatch]) -> list[Batch]:
    """Take the open batches, or only those with a record that must be learned alone."""
    isolated = any(shard.isolated for shard in shards)
    return [shard.take() if shard.isolated or not isolated else Batch() for shard in shards]


def _agreed(said: Say, parallel: Parallel) -> Say:
    """Return what any rank said."""
    rows = parallel.gathered(np.full((len(parallel.local), 1), int(said), np.int64))
    return Say(int(np.bitwise_or.reduce(rows, axis=None)))


def _patience_s(idle_turns: int, parallel: Parallel) -> float:
    """Return how long to wait for a record, in seconds. A shard that has records waits for shards that have none."""
    if parallel.shards == 1:
        return POLL_TIMEOUT_S
    return min(POLL_TIMEOUT_S, FIRST_WAIT_S * 2 ** min(idle_turns, 10)) if idle_turns else 0.0
