"""Merge of the records of several partitions into the order in which they were produced.

Records with a known timestamp are ordered by timestamp. Timestamps are not trusted: no record waits forever because of
its timestamp or another one.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import count
from typing import NamedTuple

from stream_learner.contract.event_time import is_known
from stream_learner.errors import InputError
from stream_learner.formats.record import Gap, Record

Place = tuple[str, int]
"""Topic and partition."""
Item = Record | Gap | InputError
"""InputError: the partition cannot be read past this point."""

# A record costs 1 if it is processed within this time in seconds. Otherwise its cost grows with the time.
USUAL_S = 0.001
# Cost that may be spent on other partitions while a record waits because of its timestamp.
PATIENCE = 5_000.0
# Maximum wait for requested records, in seconds.
WAIT_S = 10.0
# Outdated entries are removed from a heap when it holds more than this number of entries plus two for each queue.
MAX_STALE = 64


@dataclass(slots=True)
class _Queue:
    """Waiting items of one partition. If the queue waits for a turn, it is due when `Merge._share` reaches `turn`."""

    place: Place
    items: deque[Item] = field(default_factory=deque)
    nbytes: int = 0
    patient: bool = True
    turn: float = 0.0
    given_at: float = 0.0
    entry: int = 0


class _Entry(NamedTuple):
    """An entry for a queue in a heap, ordered by `key`. It is outdated when the queue's `entry` is not `number`."""

    key: tuple[float, float, Place]
    number: int


class Merge:
    """Merge of all partitions. `take` returns one item at a time, in the order of addition within each partition.

    The record with the smallest timestamp comes first. Among equal timestamps, the partition that was served longest
    ago comes first. A partition waits for its turn instead in two cases:

    * The timestamp of its next record is not a known time.
    * Its next record waited until PATIENCE was spent on other partitions. The partition then gets turns until one of
      its records has the smallest timestamp again.

    Partitions that wait for turns get equal shares, in records and in the time spent on records.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._queues: dict[Place, _Queue] = {}
        self._filled = 0  # queues with items
        self._at_once: deque[_Queue] = deque()  # queues whose next item is not a record
        self._by_time: list[_Entry] = []
        self._by_turn: list[_Entry] = []
        self._since: dict[Place, float] = {}  # value of `_spent` when each patient queue began to wait, oldest first
        self._spent = 0.0
        self._share = 0.0  # cost that an equal share would have given each queue so far
        self._entries = 0
        self._last: tuple[_Queue, float] | None = None  # queue of the last record, and the record's cost
        self._expected: dict[Place, float] = {}  # partitions to wait for, each with a deadline
        self._missing: dict[Place, float] = {}  # the expected partitions that have no items
        self.nbytes = 0
        self.full = False
        """Whether nothing more can be read until an item is taken. If so, `take` waits for no partition."""

    def add(self, place: Place, items: Sequence[Item]) -> None:
        """Append items to the partition's queue, and stop waiting for the partition."""
        queue = self._queues.setdefault(place, _Queue(place))
        was_empty = not queue.items
        queue.items.extend(items)
        if not queue.items:
            return
        added = sum(item.nbytes for item in items if isinstance(item, Record))
        queue.nbytes += added
        self.nbytes += added
        self.expect_no_more(place)
        if was_empty:
            self._filled += 1
            queue.turn = max(queue.turn, self._share)
            if not (self._last and self._last[0] is queue):
                self._enter(queue)

    def expect(self, place: Place, *, asked_for: bool) -> None:
        """Make other partitions wait for this partition's next items once its queue is empty.

        `asked_for` says that the next items are requested. The other partitions then wait at most WAIT_S.
        """
        until = min(self._clock() + WAIT_S if asked_for else math.inf, self._expected.get(place, math.inf))
        self._expected[place] = until
        if not self._has_items(place):
            self._missing[place] = until

    def expect_no_more(self, place: Place) -> None:
        """Stop waiting for the partition's next items."""
        self._expected.pop(place, None)
        self._missing.pop(place, None)

    def take(self) -> Record | Gap | None:
        """Return the next item; None if there is none, or if `take` must wait for a partition.

        If the next item is an InputError, raise it.
        """
        self._settle()
        if not self._at_once and self._waits():
            return None
        queue = self._next()
        if queue is None:
            return None
        item = queue.items[0]
        if isinstance(item, InputError):
            self._at_once.append(queue)
            raise item
        queue.items.popleft()
        if not queue.items:
            self._filled -= 1
            if queue.place in self._expected:
                self._missing[queue.place] = self._expected[queue.place]
        if isinstance(item, Record):
            queue.nbytes -= item.nbytes
            self.nbytes -= item.nbytes
            self._last = queue, 1.0
        elif queue.items:
            self._enter(queue)
        return item

    def took(self, seconds: float, records: int = 1) -> None:
        """Report how long processing the last message took, in seconds, and how many records it held.

        Both determine its cost.
        """
        if self._last:
            self._last = self._last[0], max(1.0, records, seconds / USUAL_S)

    @property
    def ready(self) -> bool:
        """Whether `take` would return an item."""
        return bool(self._at_once) or (self._filled > 0 and not self._waits())

    def bytes_of(self, place: Place) -> int:
        """Return the number of bytes of the partition's waiting records."""
        queue = self._queues.get(place)
        return queue.nbytes if queue else 0

    def next_record(self, place: Place) -> Record | None:
        """Return the partition's next waiting record, None if there is none. Any thread may call it."""
        queue = self._queues.get(place)
        if queue is None:
            return None
        with suppress(IndexError):  # the end, also if another thread takes items meanwhile
            for index in count():
                if isinstance(item := queue.items[index], Record):
                    return item
        return None

    def _has_items(self, place: Place) -> bool:
        return place in self._queues and bool(self._queues[place].items)

    def _waits(self) -> bool:
        """Return whether the merge waits for a partition without items."""
        while self._missing and not self.full:
            place, until = next(iter(self._missing.items()))
            if self._clock() < until:
                return True
            del self._missing[place]
        return False

    def _enter(self, queue: _Queue) -> None:
        """Add the queue to the heaps, by its next item."""
        item = queue.items[0]
        if not isinstance(item, Record):
            self._at_once.append(queue)
            return
        self._entries += 1
        queue.entry = self._entries
        known = is_known(item.timestamp_ms)
        if known:
            self._push(self._by_time, _Entry((item.timestamp_ms, queue.given_at, queue.place), queue.entry))
        if known and queue.patient:
            self._since[queue.place] = self._spent
        else:
            self._push_turn(queue)

    def _push_turn(self, queue: _Queue) -> None:
        self._push(self._by_turn, _Entry((queue.turn, queue.given_at, queue.place), queue.entry))

    def _push(self, heap: list[_Entry], entry: _Entry) -> None:
        heappush(heap, entry)
        if len(heap) > 2 * len(self._queues) + MAX_STALE:
            heap[:] = filter(self._counts, heap)
            heapify(heap)

    def _counts(self, entry: _Entry) -> bool:
        return self._queues[entry.key[2]].entry == entry.number

    def _next(self) -> _Queue | None:
        """Remove and return the queue that comes next."""
        if self._at_once:
            return self._at_once.popleft()
        self._lose_patience()
        in_time, in_turn = self._first(self._by_time), self._first(self._by_turn)
        if in_turn and (in_time is None or in_turn.turn <= self._share):
            queue = in_turn
            queue.patient = False
        elif in_time:
            queue = in_time
            queue.patient = True
        else:
            return None
        queue.entry = 0
        self._since.pop(queue.place, None)
        return queue

    def _lose_patience(self) -> None:
        while self._since:
            place, since = next(iter(self._since.items()))
            if self._spent - since < PATIENCE:
                return
            del self._since[place]
            queue = self._queues[place]
            queue.patient, queue.turn = False, self._share
            self._push_turn(queue)

    def _first(self, heap: list[_Entry]) -> _Queue | None:
        while heap and not self._counts(heap[0]):
            heappop(heap)
        return self._queues[heap[0].key[2]] if heap else None

    def _settle(self) -> None:
        """Charge the last record's cost to its queue, and add the queue to the heaps again."""
        if self._last is None:
            return
        (queue, cost), self._last = self._last, None
        self._spent += cost
        if queue.patient:
            queue.turn = self._share
        others = self._filled - (1 if queue.items else 0)
        if others:  # a single queue needs no shares
            self._share += cost / others
            queue.turn = min(queue.turn + cost / others + cost, self._share + PATIENCE)
        queue.given_at = self._spent
        if queue.items:
            self._enter(queue)
