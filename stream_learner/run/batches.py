"""Build mini-batches, each with the offsets that it covers."""

import math
import time
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Sequence
from enum import IntFlag, auto
from typing import Protocol

import numpy as np

from stream_learner.config import MIB, BatchSettings
from stream_learner.contract.spans import Positions, RowsRead, Span, each
from stream_learner.errors import DependencyError, InputError
from stream_learner.formats.record import Gap, Place, Record, RetryLaterError, Rows, Sample
from stream_learner.learning.parallel import Parallel
from stream_learner.run.arrivals import Read
from stream_learner.run.batch import Batch

POLL_TIMEOUT_S = 0.5
# First wait of a shard for records while other shards may have some, in seconds. Each further wait is twice as long.
FIRST_WAIT_S = 0.005
# Maximum time between two iterations of the worker's loop, in seconds. A loop without iterations counts as dead.
TURN_S = 1.0
# Limit on the bytes of a batch. Otherwise, many large records that are held out or rejected would fill the memory.
MAX_BATCH_BYTES = 64 * MIB


Decode = Callable[[Record], Sample | Rows | None]
"""Decodes a record. Returns None for a deletion marker that is skipped, and the rows of a message that has rows. Raises
RejectError when the record cannot be used, RetryLaterError when the record cannot be read now."""


class Source(Protocol):
    def poll(self, timeout_s: float) -> Iterable[Record | Gap]:
        """Return the next records in order, or nothing if no record arrives in time.

        The iteration may also raise InputError.
        """
        ...

    def read_ahead(self) -> None:
        """Read more records without returning them. Called while one message takes long. Raises as `poll` does."""
        ...

    def took(self, seconds: float, records: int = 1) -> None:
        """Report how long decoding the last message took, in seconds, and its number of records."""
        ...


class StopEvent(Protocol):
    def is_set(self) -> bool: ...


class Outage(Protocol):
    """The methods of `stream_learner.run.outage.Outage` that are used here."""

    def wait(self, record: Record, error: RetryLaterError) -> Iterator[None]: ...
    def over(self) -> None: ...


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
        rows: RowsRead | None = None,
        shards: int = 1,
        outage: Outage | None = None,
        alone: Container[Place] = (),
        max_bytes: int = MAX_BATCH_BYTES,
    ):
        """Take the source, its first positions, and the numbers of rows to skip of the messages there.

        The batch is complete when it holds `batch.size / shards` training samples, after its share of `batch.max_span`
        records, or when it reaches the limit on held-out pixels or `max_bytes`. A record in `alone` gets a batch of its
        own. When a record cannot be read now, `outage` waits, and all later records wait too.
        """
        self.batch = Batch()
        self.complete = False
        """Whether the batch must be taken before more records are read."""
        self.isolated = False
        """Whether the batch holds a record that must be learned alone."""
        self._source = source
        self._decode = decode
        self._positions = {(topic, partition): offset for topic, partition, offset in each(positions)}
        self._rows = {(topic, partition): number for topic, partition, number in each(rows or {})}
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
        while True:
            began = self._turned = self._clock()
            polled = self._source.poll(self._timeout_s)
            self.batch.poll_s += self._clock() - began
            for item in polled:
                if self._alone or self._stop.is_set():
                    yield from self._before(item)
                if isinstance(item, Gap):
                    end = item.next_offset
                    if item.lost:
                        place = item.topic, item.partition
                        self.batch.lost.append((*place, Span(self._positions.get(place, 0), end)))
                else:
                    end = item.offset + 1
                    if rows := (yield from self._add(item)):
                        yield from self._add_rows(item, rows)
                        continue
                if self._pauses(item, end):
                    yield
                    self._turned = self._clock()
            yield

    def _before(self, item: Record | Gap) -> Iterator[None]:
        """Complete the batch if the next record must be learned alone. Yield while `stop` is set."""
        if isinstance(item, Record) and item.at in self._alone and self.batch.spans:
            self.complete = True
            yield
            self._turned = self._clock()
        while self._stop.is_set():
            yield

    def _pauses(self, item: Record | Gap, end: int, rows: int = 0) -> bool:
        """Cover the offsets up to `end`, and `rows` rows of the message at `end`.

        Return whether the batch is complete or TURN_S has passed.
        """
        place = item.topic, item.partition
        self.batch.cover(*place, self._positions.get(place, 0), end, self._rows.pop(place, 0), rows)
        self._positions[place] = end
        if rows:
            self._rows[place] = rows
        self.isolated = bool(self._alone) and isinstance(item, Record) and item.at in self._alone
        self.complete = self.isolated or self._is_full
        return self.complete or self._clock() - self._turned >= TURN_S

    @property
    def _is_full(self) -> bool:
        return self.batch.bytes >= self._max_bytes or self.batch.full(self._size, self._max_span)

    def _add_rows(self, message: Record, rows: Rows) -> Iterator[None]:
        """Add the rows of a message that were not read before. The position passes the message with its last row."""
        clock, first, count = self._clock, self._rows_read(message), len(rows.fields)
        if first >= count:
            raise InputError(
                f"the message at offset {message.offset} of {message.topic}[{message.partition}] has {count} rows, but "
                f"the run has learned {first} rows of the message that was there: the topic has lost records, or it is "
                "another topic. Choose a new run.id"
            )
        read_at, total_s = clock(), 0.0
        for number in range(first, count):
            row, stops = message.at_row(number, rows), bool(self._alone) or self._stop.is_set()
            if stops:
                yield from self._before(row)
            began = clock()
            self.batch.add(row, self._decode)
            now = clock()
            self.batch.decode_s += now - began
            total_s += now - began
            is_last, long = number + 1 == count, now - read_at >= TURN_S
            # Between other rows nothing leaves this loop, so their offsets need not be covered one by one.
            if is_last or stops or long or self._is_full or now - self._turned >= TURN_S:
                at = (message.offset + 1, 0) if is_last else (message.offset, number + 1)
                if self._pauses(row, *at):
                    yield
                    self._turned = clock()
            if long:
                self._source.read_ahead()
                read_at = clock()
        self._source.took(total_s, count)

    def _rows_read(self, message: Record) -> int:
        """Return how many rows of this message were read before."""
        if not self._rows:  # no partition is inside a message
            return 0
        place = message.topic, message.partition
        return self._rows.get(place, 0) if self._positions.get(place, 0) == message.offset else 0

    def _add(self, record: Record) -> Generator[None, None, Rows | None]:
        """Add a record, and return None. If the message has rows, only return them. Yield while it cannot be read."""
        while True:
            began = self._clock()
            try:
                rows = self.batch.add(record, self._decode, self._rows_read(record))
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
        return rows


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
    their records may be gone before they can be read again. They come in several steps if records must be learned
    alone.
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
            while said & Say.END and _agreed(_open(shards), parallel):  # records learned alone left others open
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
    """Take the open batches, or only the first one with a record that must be learned alone."""
    isolated = next((shard for shard in shards if shard.isolated), None)
    return [shard.take() if isolated in (None, shard) else Batch() for shard in shards]


def _agreed(said: Say, parallel: Parallel) -> Say:
    """Return what any rank said."""
    rows = parallel.gathered(np.full((len(parallel.local), 1), int(said), np.int64))
    return Say(int(np.bitwise_or.reduce(rows, axis=None)))


def _patience_s(idle_turns: int, parallel: Parallel) -> float:
    """Return how long to wait for a record, in seconds. A shard that has records waits for shards that have none."""
    if parallel.shards == 1:
        return POLL_TIMEOUT_S
    return min(POLL_TIMEOUT_S, FIRST_WAIT_S * 2 ** min(idle_turns, 10)) if idle_turns else 0.0
