"""A Kafka consumer that returns Records, continues after unreadable records and limits its memory.

kafka-python's own consumer raises an error at each poll of an unreadable record, and it decompresses batches of any
size.
"""

import math
import struct
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

from kafka import KafkaConsumer
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError
from kafka.protocol.consumer import IsolationLevel
from kafka.record.default_records import DefaultRecordBatch
from kafka.structs import TopicPartition

from stream_learner.config import MIB
from stream_learner.formats.record import Record
from stream_learner.streams.record_batch import Batch

# Limit of one poll: the bytes of its records plus the bytes that were decompressed to read them. The last record may
# exceed the limit.
MAX_POLL_BYTES = 64 * MIB
# Minimum fetch size of a partition. It applies while many partitions have records to fetch. A larger batch raises the
# minimum.
LEAST_FETCH_BYTES = 64 * 1024
SHORT_WAIT_MS = 20


class Damaged(Record):
    """Offsets from `offset` up to `end` (exclusive) of a damaged batch: wrong checksum, or not a batch."""

    end: int


class Budget:
    """Number of bytes that a poll may return: `limit` in total, and `of(partition)` for each partition.

    `left` is the part of `limit` that the current poll has not used yet.
    """

    def __init__(self) -> None:
        self.limit: float = MAX_POLL_BYTES
        self.left: float = self.limit
        self.of: Callable[[TopicPartition], float] = lambda place: math.inf  # noqa: ARG005


class Reader(KafkaConsumer):
    """A KafkaConsumer whose `poll` returns Records and Damaged items. `budget` limits the size of a poll.

    `full` holds the partitions that have used up their budget. They are paused until `resume` is called. Meanwhile, the
    client keeps the unread rest of their responses. `moved` holds the partitions that the last poll read.
    """

    def __init__(self, heard: Callable[[str], None] = lambda _: None, **config: Any):
        """Connect. `heard` is called with "fetch" or "metadata" at each answer of the brokers, on the IO thread."""
        super().__init__(**config)
        # The first metadata response names no topic. Without this line, the client's retry delay, which is meant for
        # failed requests, would delay the next metadata request.
        self._cluster._last_refresh_ms = 0.0
        heard("metadata")
        self._cluster.add_listener(lambda _: heard("metadata"))
        self._heard = heard
        self._leaders_known = False
        self._cluster.add_listener(self._leaders_changed)
        self.budget = Budget()
        self.moved: set[TopicPartition] = set()
        self.full: set[TopicPartition] = set()
        self.log_starts: dict[TopicPartition, int] = {}
        """First offset of each partition that the brokers still hold (KIP-107), according to its last response."""
        self._ends: dict[TopicPartition, int] = {}
        fetcher = self._fetcher
        self._keep, fetcher._handle_fetch_response = fetcher._handle_fetch_response, self._fetched
        # The fetcher looks up this class each time that it unpacks a response.
        fetcher.PartitionRecords = partial(
            _Records, budget=self.budget, moved=self.moved, filled=self._filled, highwater=self.highwater
        )
        self._compare, fetcher.maybe_validate_positions = fetcher.maybe_validate_positions, self._compare_leaders
        self._open, fetcher._parse_fetched_data = fetcher._parse_fetched_data, self._opened
        self._fetchable, fetcher._fetchable_partitions = fetcher._fetchable_partitions, self._to_fetch
        self._clear, fetcher._clear_pending_fetch_request = fetcher._clear_pending_fetch_request, self._ended
        self._fetch_ended = threading.Event()
        fetcher.fetch_records = self._fetch_records
        self.asked_at: dict[TopicPartition, float] = {}
        """Time of the first unanswered request for records of each partition, in monotonic seconds."""
        self._least_fetch_bytes = LEAST_FETCH_BYTES
        self._greatest_fetch_bytes: int = fetcher.config["max_partition_fetch_bytes"]
        self._longest_wait_ms: int = fetcher.config["fetch_max_wait_ms"]

    def _fetched(self, node_id: int, offsets: dict[TopicPartition, int], sent_at: float, response: Any) -> None:
        if not response.error_code:
            answers = {TopicPartition(t.topic, p.partition_index): p for t in response.responses for p in t.partitions}
            refused = {place for place, answer in answers.items() if answer.error_code}
            answered = offsets.keys() - refused
            self.asked_at = {place: at for place, at in self.asked_at.items() if place not in answered}
            if answered:
                self._heard("fetch")
            self._make_room_for_batches(response)
        self._keep(node_id, offsets, sent_at, response)

    def _make_room_for_batches(self, response: Any) -> None:
        """Raise the minimum fetch size if a response held only one batch, and the batch exceeds the fetch size.

        Brokers send such a batch only as the first batch of a response (KIP-74).
        """
        sizes = [len(p.records) for topic in response.responses for p in topic.partitions if p.records]
        if len(sizes) == 1 and sizes[0] > self._fetcher.config["max_partition_fetch_bytes"]:
            self._least_fetch_bytes = 2 ** sizes[0].bit_length()

    def poll(self, *args: Any, **kwargs: Any) -> dict[TopicPartition, list[Record]]:
        self.budget.left = self.budget.limit
        self.moved.clear()
        self._unpark()
        try:
            return super().poll(*args, **kwargs)
        except _FullPollError:  # the fetcher kept this error from the last poll, and returned that poll's records
            return {}
        except _NoBatchError as error:
            place, offset = error.args
            self.seek(place, offset + 1)
            return {place: [_damaged(place, offset, offset + 1)]}
        finally:
            self._let_others_go_next()

    def _fetch_records(
        self, max_records: int, *, update_offsets: bool, timeout_ms: float
    ) -> tuple[dict[TopicPartition, list[Record]], bool]:
        """Return records, and whether no request is pending. Wait until a request ends if there are no records.

        kafka-python looks for requests to send at each poll, and waits through a task of its IO thread. Both would be
        most of the cost of an idle input.
        """
        fetcher = self._fetcher
        pending: set[int] = fetcher._nodes_with_pending_fetch_requests
        self._fetch_ended.clear()
        records, more = fetcher.fetched_records(max_records, update_offsets=update_offsets)
        if not more and not pending.issuperset(broker.node_id for broker in self._cluster.brokers()):
            fetcher.send_fetches()
        if records or not (pending or self._fetch_ended.is_set()):  # set if the last request ended meanwhile
            return records, not records
        self._fetch_ended.wait(timeout_ms / 1000)
        return fetcher.fetched_records(max_records, update_offsets=update_offsets)[0], False

    def _ended(self, node_id: int, outcome: Any) -> None:
        self._clear(node_id, outcome)
        self._fetch_ended.set()

    def resume(self, *partitions: TopicPartition) -> None:
        super().resume(*partitions)
        self.full.difference_update(partitions)

    def _filled(self, place: TopicPartition) -> None:
        self.full.add(place)
        self.pause(place)

    def at(self, place: TopicPartition) -> int:
        """Return the offset of the partition's next record. `position` would also check all other partitions."""
        return self._subscription.assignment[place].position.offset

    def behind(self, place: TopicPartition) -> bool:
        """Return whether, according to its last response, the partition has records to fetch. Before it, return True.

        With `read_committed`, records after the beginning of an open transaction do not count: they cannot be fetched
        yet (KIP-98).
        """
        return place not in self._ends or self.at(place) < self._ends[place]

    def _leaders_changed(self, *_: Any) -> None:
        self._leaders_known = False

    def _compare_leaders(self) -> None:
        """Check whether partitions have new leaders (KIP-320), if metadata or a response arrived since the last check.

        kafka-python checks at each poll, which would be most of the cost of idle partitions.
        """
        if not self._leaders_known:
            self._leaders_known = True
            self._compare()

    def _unpark(self) -> None:
        """Append the partly read responses of resumed partitions to the waiting responses.

        The client itself appends only responses that are not unpacked yet.
        """
        parked = self._fetcher._paused_partition_records
        for place in [place for place in parked if not self._subscription.is_paused(place)]:
            self._fetcher._completed_fetches.append(parked.pop(place))

    def _let_others_go_next(self) -> None:
        """Move the response that was read last behind the waiting responses of other partitions.

        The client itself would first read all of one response, and 8 MiB can hold hundreds of millions of records.
        """
        fetcher = self._fetcher
        if fetcher._next_partition_records and fetcher._completed_fetches:
            fetcher._completed_fetches.append(fetcher._next_partition_records)
            fetcher._next_partition_records = None

    def _opened(self, response: Any) -> Any:
        """Unpack a response, unless an earlier poll unpacked it."""
        if isinstance(response, _Records):
            return response
        self._leaders_changed()
        place, told = response.topic_partition, response.partition_data
        if told.log_start_offset >= 0:
            self.log_starts[place] = told.log_start_offset
        if told.high_watermark >= 0:
            committed_only = self._fetcher._isolation_level == IsolationLevel.READ_COMMITTED
            self._ends[place] = told.last_stable_offset if committed_only else told.high_watermark
        return self._open(response)

    def _to_fetch(self) -> list[TopicPartition]:
        """Return the partitions to fetch next, and set the fetch sizes and waits. Called on the client's thread."""
        places = self._fetchable()
        config, most = self._fetcher.config, self._fetcher.config["fetch_max_bytes"]
        if _bytes_of(self._held()) >= most:
            places, self._least_fetch_bytes = [], LEAST_FETCH_BYTES
        now, asked_at = time.monotonic(), self.asked_at
        # Before the client fetches from a new leader, it asks whether the leader has the same records (KIP-320).
        compared = [place for place, state in self._subscription.assignment.items() if state.awaiting_validation]
        self.asked_at = {place: asked_at.get(place, now) for place in (*places, *compared)}
        if not places:
            return []
        share = most // max(1, sum(self.behind(place) for place in places))
        # Powers of two change rarely. Brokers remember each partition's size, so each change must be sent (KIP-227).
        step = 2 ** max(share, self._least_fetch_bytes).bit_length() // 2
        config["max_partition_fetch_bytes"] = min(step, self._greatest_fetch_bytes)
        # Let a request wait long only if it is for all partitions. Otherwise it delays requests for the others.
        news = len(places) == len(self._subscription.assignment)
        config["fetch_max_wait_ms"] = self._longest_wait_ms if news else SHORT_WAIT_MS
        return places

    @property
    def choked(self) -> bool:
        """Whether unread responses of full partitions take so much memory that nothing more is fetched."""
        return _bytes_of(self._parked()) >= self._fetcher.config["fetch_max_bytes"]

    def _held(self) -> list[Any]:
        """Return the responses that are not completely read."""
        return [*self._fetcher._completed_fetches.copy(), *self._parked()]

    def _parked(self) -> list[Any]:
        """Return the responses of paused partitions that are not completely read."""
        fetcher = self._fetcher
        return [
            *fetcher._paused_completed_fetches.copy().values(),
            *fetcher._paused_partition_records.copy().values(),
        ]


class _FullPollError(Exception):
    """End of a poll. The fetcher returns the records that it has, and raises this error at the next poll."""


class _NoBatchError(Exception):
    """Error for bytes that are not a batch. `args` are partition and offset. The number of lost offsets is unknown."""


class _Records(Fetcher.PartitionRecords):
    def __init__(
        self,
        fetch_offset: int,
        tp: TopicPartition,
        records: Any,
        *,
        budget: Budget,
        moved: set[TopicPartition],
        filled: Callable[[TopicPartition], None],
        highwater: Callable[[TopicPartition], int | None],
        **kwargs: Any,
    ):
        if records.size_in_bytes() and not records.has_next():
            raise _NoBatchError(tp, fetch_offset)  # brokers never cut off the first batch (KIP-74)
        self.size = records.size_in_bytes()
        self._budget = budget
        self._room: float = math.inf
        self._moved = moved
        self._filled = filled
        self._highwater = highwater
        super().__init__(fetch_offset, tp, records, **kwargs)

    @property
    def fetched_offset(self) -> int:
        """Next offset to read. The fetcher reads this attribute of responses, whether they are unpacked or not."""
        return self.next_fetch_offset

    def take(self, n: int | None = None) -> list[Record]:
        if self._budget.left <= 0:
            raise _FullPollError
        taken = []
        self._moved.add(self.topic_partition)
        self._room = self._budget.of(self.topic_partition)
        if self._room > 0:
            for record in islice(self.record_iterator, n):
                taken.append(record)
                if self._budget.left <= 0 or self._room <= 0:
                    break
        if self._room <= 0:
            self._filled(self.topic_partition)
        return taken

    def _unpack_records(self, tp: TopicPartition, records: Any, *_: Any) -> Iterator[Record]:
        """Yield the records, and a Damaged item for each damaged batch."""
        batch = _next_batch(records)
        while batch is not None:
            following = _next_batch(records)
            if batch is NO_BATCH or not batch.validate_crc():
                start, self.next_fetch_offset = self.next_fetch_offset, self._end_of_damage(batch, following)
                yield _damaged(tp, start, self.next_fetch_offset)
                # The damaged batch may have held a transaction marker, so drop the rest of this response. The next
                # one starts after the damage and lists the aborted transactions of its own records.
                break
            if batch.magic < 2:
                yield from self._legacy(batch)
            else:
                if self._holds_data(batch):
                    yield from self._readable(batch)
                self.next_fetch_offset = batch.next_offset
            batch = following
        self.drain()

    def _holds_data(self, batch: DefaultRecordBatch) -> bool:
        """Return whether the batch holds data that was not aborted, and no control record (KIP-98)."""
        self.leader_epoch = batch.leader_epoch
        if self.isolation_level == IsolationLevel.READ_COMMITTED and batch.has_producer_id():
            self._consume_aborted_transactions_up_to(batch.last_offset)
            # Compaction may leave a control batch without its record.
            if batch.records_count and self._contains_abort_marker(batch):
                self.aborted_producer_ids.discard(batch.producer_id)
            elif self._is_batch_aborted(batch):
                return False
        return not batch.is_control_batch

    def _readable(self, batch: DefaultRecordBatch) -> Iterator[Record]:
        read = Batch(batch, self.topic_partition)
        self._budget.left -= read.cost_bytes
        for record in read:
            size = record.nbytes
            self._budget.left -= size
            self._room -= size
            self.next_fetch_offset = record.offset + 1
            yield record

    def _legacy(self, batch: Any) -> Iterator[Record]:
        """Yield records of the message formats before Kafka 0.11."""
        topic, partition = self.topic_partition
        if batch.compression_type:
            why = "its batch is of a message format before Kafka 0.11, and compressed"
            # `base_offset` of such a batch is the offset of its last record.
            inside = range(self.next_fetch_offset, batch.base_offset + 1)
            records = [Record(topic, partition, offset, -1, None, None, [], why) for offset in inside]
        else:
            records = [
                Record(topic, partition, r.offset, -1 if r.timestamp is None else r.timestamp, r.key, r.value, [])
                for r in batch
            ]
        for record in records:
            self.next_fetch_offset = record.offset + 1
            yield record

    def _end_of_damage(self, batch: Any, following: Any) -> int:
        """Return the offset at which reading continues after a damaged batch. The batch's fields may be wrong."""
        next_offset = self.next_fetch_offset + 1
        if batch is NO_BATCH:
            return next_offset
        if following not in (None, NO_BATCH):
            return max(next_offset, following.base_offset)
        if batch.magic == 2:
            # If the two fields agree, they are probably right. If not, assume that no batch follows this batch.
            agree = batch.records_count == batch.last_offset_delta + 1
            return max(next_offset, batch.next_offset if agree else self._highwater(self.topic_partition) or 0)
        return max(next_offset, batch.base_offset + 1)


NO_BATCH = object()


def _bytes_of(responses: list[Any]) -> int:
    return sum(
        response.size if isinstance(response, _Records) else len(response.partition_data.records or b"")
        for response in responses
    )


def _next_batch(records: Any) -> Any:
    """Return the next batch of a response, None at the response's end, NO_BATCH if the bytes are not a batch."""
    try:
        return records.next_batch()
    except (CorruptRecordError, struct.error, AssertionError):
        return NO_BATCH


def _damaged(place: TopicPartition, start: int, end: int) -> Damaged:
    lost = Damaged(place.topic, place.partition, start, -1, None, None, [])
    lost.end = end
    return lost
