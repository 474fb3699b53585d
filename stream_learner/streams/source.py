"""Input of a run: the records of all input partitions, in the order in which they were produced."""

import time
from collections.abc import Callable, Iterator

import structlog
from kafka.errors import LogTruncationError, OffsetOutOfRangeError
from kafka.structs import TopicPartition

from stream_learner.config import MIB, InputSettings, KafkaSettings
from stream_learner.contract.spans import Positions
from stream_learner.errors import InputError
from stream_learner.formats.record import Gap, Record
from stream_learner.streams.connection import RESPONSE_BYTES, kafka_failures, opening
from stream_learner.streams.merge import Item, Merge
from stream_learner.streams.reader import MAX_POLL_BYTES, Damaged

PARTITION_CHECK_S = 5.0
MAX_POLL_RECORDS = 5000
# Maximum time, in seconds, for which a broker may wait for new records before it answers. A long wait saves requests,
# and each request has a cost for each partition.
NEWS_S = 2.0
# Limit for the records that are read ahead of one partition. All sources of a process together read at most
# MAX_POLL_BYTES ahead.
MAX_AHEAD_BYTES = 8 * MIB
# Time in seconds for which the iterator of one `poll` returns waiting records. The next `poll` then reads more.
HAND_S = 0.1

log = structlog.get_logger()


class Source:
    """Reader of all partitions. It reads ahead, and returns records in the order in which they were produced.

    Its `positions` say which records were fetched. `run/progress.py` counts the records that were learned.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        settings: InputSettings,
        positions: Positions,
        heard: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        *,
        predictions_topic: str | None = None,
        reads: Callable[[str, int], bool] = lambda *_: True,
        sources: int = 1,
    ):
        """Connect. Begin at `positions`, and at offset 0 in partitions that `positions` lacks or that are added later.

        Read only the partitions for which `reads(topic, partition)` is true. The process has this number of `sources`,
        which share the limits on fetched bytes and on bytes that are read ahead.

        Also read `predictions_topic`. Lost records of this topic never stop the reading, whatever `input.on_lost` says.
        `heard` is passed to Reader. Raises KafkaUnavailableError.
        """
        self._kafka = kafka
        self._settings = settings
        self._predictions_topic = predictions_topic
        self._reads = reads
        self._topics = [*settings.topics, *filter(None, [predictions_topic])]
        self._clock = clock
        self._most_bytes = MAX_POLL_BYTES // sources
        self._merge = Merge(clock)
        self._newest_ms: dict[tuple[str, int], int] = {}
        self._stopped: set[TopicPartition] = set()  # not read any more; an InputError may follow the waiting records
        self._fetched = {
            TopicPartition(t, p): offset for t, ps in positions.items() for p, offset in ps.items() if reads(t, p)
        }
        with opening(
            kafka,
            "opening the input",
            max_poll_records=MAX_POLL_RECORDS,
            fetch_max_bytes=RESPONSE_BYTES // sources,
            # As in `reader`, a healthy broker must answer within `kafka.request_timeout_s`.
            fetch_max_wait_ms=int(min(NEWS_S, kafka.request_timeout_s / 3) * 1000),
            heard=heard,
        ) as self._consumer:
            self._consumer.budget.of = self._room
            for topic in self._topics:
                self._consumer.partitions_for_topic(topic)  # waits for the topic's metadata
            self._assign()

    def poll(self, timeout_s: float) -> Iterator[Record | Gap]:
        """Return an iterator over the next records and gaps in order. It ends after HAND_S.

        The iterator is empty if no record arrives within `timeout_s`, also while Kafka is unavailable.
        Raises KafkaUnavailableError. Raises InputError when the topic was truncated or ends before the next offset.
        Also raises InputError when the next record is lost or damaged and `input.on_lost` is `stop`.
        """
        self.read_ahead(timeout_s)
        return self._merged()

    def read_ahead(self, timeout_s: float = 0.0) -> None:
        """Read more records, as `poll` does, without returning them. Raises as `poll` does."""
        if self._clock() >= self._check_partitions_at:
            self._assign()
        self._resume()
        with kafka_failures(self._kafka, "reading the input", "Read"):
            try:
                self._read(0 if self._merge.ready else timeout_s)
            except OffsetOutOfRangeError as error:
                self._lost(error)
            except LogTruncationError as error:
                self._truncated(error)

    def _merged(self) -> Iterator[Record | Gap]:
        until = self._clock() + HAND_S
        while (item := self._merge.take()) is not None:
            if isinstance(item, Record):
                self._newest_ms[item.topic, item.partition] = item.timestamp_ms
            yield item
            if self._clock() >= until:
                return

    def took(self, seconds: float, records: int = 1) -> None:
        """Report how long decoding the last message took, in seconds, and its number of records; see `Merge.took`."""
        self._merge.took(seconds, records)

    def _lost(self, error: OffsetOutOfRangeError) -> None:
        """Add gaps where retention deleted records, and continue reading after them."""
        places = [place for place in self._fetched if place not in self._stopped]
        first, end = self._consumer.beginning_offsets(places), self._consumer.end_offsets(places)
        for place in places:
            offset = self._fetched[place]
            where = f"{place.topic}[{place.partition}]"
            if offset > end[place] and place.topic == self._predictions_topic:
                self._abandon(place)
            elif offset > end[place]:
                raise InputError(
                    f"{where} ends at offset {end[place]}, before {offset}, the next offset to read: the topic lost "
                    "records, or it is another topic. The learned state is safe; choose a new run.id to learn from the "
                    "topic as it is"
                ) from error
            elif offset < first[place]:
                lost = f"records of {where} from offset {offset} to {first[place]} were deleted by retention"
                if self._stops_when_lost(place.topic):
                    stop = InputError(
                        f"{lost} before they were learned. The learned state is safe: give the topic a longer "
                        "retention, and set input.on_lost = continue to resume after the deleted records"
                    )
                    self._merge.add(place, [stop])
                    self._stop(place)
                else:
                    log.warning(lost)
                    self._merge.add(place, [Gap(place.topic, place.partition, first[place], lost=True)])
                    self._fetched[place] = first[place]
        self._seek()

    def _truncated(self, error: LogTruncationError) -> None:
        if any(place.topic != self._predictions_topic for place in error.divergent_offsets):
            raise InputError(
                f"the topic was truncated ({error}), so the next offset may hold another record now. The learned "
                "state is safe; choose a new run.id to learn from the topic as it is"
            ) from error
        for place in error.divergent_offsets:
            self._abandon(place)
        self._seek()

    def _abandon(self, place: TopicPartition) -> None:
        """Read a partition of the predictions topic no more, because its records are other ones than before."""
        where = f"{place.topic}[{place.partition}]"
        log.warning(f"{where} was created again or has lost records, so it is not read until the worker restarts")
        self._merge.expect_no_more(place)
        self._stop(place)

    def _seek(self) -> None:
        """Set the position of all partitions, because an error may have interrupted a poll."""
        for place, offset in self._fetched.items():
            self._consumer.seek(place, offset)

    def _stops_when_lost(self, topic: str) -> bool:
        return self._settings.on_lost == "stop" and topic != self._predictions_topic

    def _read(self, timeout_s: float) -> None:
        """Read ahead, and add the records and gaps to the merge."""
        consumer, merge = self._consumer, self._merge
        if not self._fetched:
            time.sleep(timeout_s)  # no partition is this source's yet
            return
        consumer.budget.limit = self._most_bytes - merge.nbytes
        for place, records in consumer.poll(timeout_ms=int(timeout_s * 1000)).items():
            items: list[Item] = []
            for record in records:
                if isinstance(record, Damaged):
                    items.append(self._passed_over(record))
                    if isinstance(items[-1], InputError):
                        self._stop(place)
                        break
                    self._fetched[place] = record.end
                else:
                    items.append(record)
                    self._fetched[place] = record.offset + 1
            merge.add(place, items)
        for place in consumer.moved - self._stopped:
            position = consumer.at(place)
            if position > self._fetched[place]:  # control records, compacted offsets
                merge.add(place, [Gap(place.topic, place.partition, position)])
                self._fetched[place] = position
            if not consumer.behind(place):
                merge.expect_no_more(place)
            else:
                merge.expect(place, asked_for=place not in consumer.full)
        merge.full = merge.nbytes >= self._most_bytes or consumer.choked

    def _passed_over(self, damaged: Damaged) -> Gap | InputError:
        """Return the item that replaces a damaged batch."""
        where = f"{damaged.topic}[{damaged.partition}]"
        what = f"the batch of {where} that holds offset {damaged.offset} is damaged on the broker (wrong checksum)"
        if not self._stops_when_lost(damaged.topic):
            log.warning(f"{what}; offsets {damaged.offset} to {damaged.end} are lost")
            return Gap(damaged.topic, damaged.partition, damaged.end, lost=True)
        return InputError(
            f"{what}. The state before this batch is saved: repair the topic (another replica may be intact), or set "
            f"input.on_lost = continue to skip offsets {damaged.offset} to {damaged.end}"
        )

    def _stop(self, place: TopicPartition) -> None:
        """Stop reading a partition."""
        self._stopped.add(place)
        self._consumer.pause(place)

    def _resume(self) -> None:
        """Resume full partitions whose waiting records take less than half of the bytes that may be read ahead."""
        for place in self._consumer.full - self._stopped:
            ahead_bytes = self._merge.bytes_of(place)
            if not ahead_bytes or 2 * ahead_bytes < self._most_ahead(self._most_bytes - self._merge.nbytes):
                self._consumer.resume(place)
                if self._consumer.behind(place):
                    self._merge.expect(place, asked_for=True)

    def _room(self, place: TopicPartition) -> float:
        """Return how many more bytes of a partition may be read now."""
        return self._most_ahead(self._consumer.budget.left) - self._merge.bytes_of(place)

    def _most_ahead(self, left_bytes: float) -> float:
        """Return the maximum number of bytes that may be read ahead of one partition.

        One half of `_most_bytes` is divided equally, so that no partition must wait for another. Beyond its part, a
        partition may take half of the bytes that are still free, up to MAX_AHEAD_BYTES. The rest remains for other
        partitions (Choudhury and Hahne 1998).
        """
        common = self._most_bytes / 2
        return max(common / len(self._fetched), min(MAX_AHEAD_BYTES, (left_bytes - common) / 2))

    @property
    def positions(self) -> Positions:
        """Next offset to fetch, for every partition."""
        positions: Positions = {}
        for place, offset in self._fetched.items():
            positions.setdefault(place.topic, {})[place.partition] = offset
        return positions

    def starts(self) -> Positions:
        """Return each partition's first offset that the brokers still hold, by its last fetch.

        Any thread may call it.
        """
        starts: Positions = {}
        for place, offset in self._consumer.log_starts.copy().items():
            starts.setdefault(place.topic, {})[place.partition] = offset
        return starts

    def ends(self) -> Positions:
        """Return each partition's end offset, by its last fetch. Any thread may call it."""
        ends: Positions = {}
        for place in self._fetched.copy():
            end = self._consumer.highwater(place)
            if end is not None:
                ends.setdefault(place.topic, {})[place.partition] = end
        return ends

    def oldest_ms(self, topic: str, partition: int) -> int | None:
        """Return the timestamp of the partition's next waiting record, or of its last record if none waits.

        Any thread may call it.
        """
        place = TopicPartition(topic, partition)
        waiting = self._merge.next_record(place)
        return waiting.timestamp_ms if waiting else self._newest_ms.get(place)

    @property
    def unanswered(self) -> tuple[str, float]:
        """Partition with the oldest unanswered fetch, and the age of this fetch in seconds; ("", 0) if there is none.

        A fetch from a partition without a leader counts as unanswered.
        """
        asked_at = self._consumer.asked_at
        if not asked_at:
            return "", 0.0
        place = min(asked_at, key=lambda place: asked_at[place])
        return f"{place.topic}[{place.partition}]", time.monotonic() - asked_at[place]

    def close(self) -> None:
        self._consumer.close()

    def _assign(self) -> None:
        """Assign all partitions to the consumer. A new partition begins at offset 0."""
        self._check_partitions_at = self._clock() + PARTITION_CHECK_S
        # Read the metadata directly: the consumer's own method waits for a deleted topic without a time-out.
        cluster = self._consumer._cluster
        places = {
            TopicPartition(topic, partition)
            for topic in self._topics
            for partition in cluster.partitions_for_topic(topic) or ()
            if self._reads(topic, partition)
        } | set(self._fetched)
        if places == self._consumer.assignment():
            self._watch_topics()
            return
        self._consumer.assign(sorted(places))  # before `_fetched` has them, because `ends` is called on another thread
        # Begin at 0, not at the first offset: records that retention deleted from a new partition count as lost.
        self._fetched |= dict.fromkeys(places - self._fetched.keys(), 0)
        self._watch_topics()
        self._consumer.pause(*self._consumer.full | self._stopped)
        for place in places:
            self._consumer.seek(place, self._fetched[place])
            # Do not wait for a partition that was already read to its end, because no response comes for it.
            if place not in self._consumer.full | self._stopped and self._consumer.behind(place):
                self._merge.expect(place, asked_for=True)

    def _watch_topics(self) -> None:
        """Request the metadata of all topics. By default, kafka-python asks only for those of assigned partitions."""
        for topic in self._topics:
            self._consumer._cluster.add_topic(topic)
