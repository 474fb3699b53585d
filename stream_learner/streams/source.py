"""The input: every partition of the input topics, read in offset order from where the model stands."""

import time
from collections.abc import Callable

from kafka import KafkaConsumer
from kafka.errors import LogTruncationError, OffsetOutOfRangeError
from kafka.structs import TopicPartition

from stream_learner.config import KafkaSettings
from stream_learner.errors import InputError
from stream_learner.records.record import Gap, Record
from stream_learner.records.spans import Positions
from stream_learner.streams.connection import kafka_failures, reader

PARTITION_CHECK_S = 5.0
MAX_POLL_RECORDS = 5000


class Source:
    """Reads records in order and remembers, per partition, which offset it hands out next.

    That is where *reading* stands; what was learned stands in the learner's positions.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        topics: list[str],
        positions: Positions,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Begins at `positions`; a partition that is missing there begins at its first offset.

        Raises KafkaUnavailableError.
        """
        self._kafka = kafka
        self._topics = topics
        self._clock = clock
        self._next = {TopicPartition(t, p): offset for t, ps in positions.items() for p, offset in ps.items()}
        with kafka_failures(kafka, "opening the input"):
            self._consumer: KafkaConsumer = reader(
                kafka,
                max_poll_records=MAX_POLL_RECORDS,
                metadata_max_age_ms=int(PARTITION_CHECK_S * 1000),
            )
            self._assign()

    def poll(self, timeout_s: float) -> list[Record | Gap]:
        """The next records in order, none when none came in time. While Kafka is away it gives none.

        Raises InputError when the next record is not there any more, KafkaUnavailableError.
        """
        if self._clock() >= self._check_partitions_at:
            self._assign()
        with kafka_failures(self._kafka, "reading the input"):
            try:
                return self._poll(timeout_s)
            except (OffsetOutOfRangeError, LogTruncationError) as error:
                raise InputError(
                    f"an offset that comes next is not on its topic any more ({error}): records have fallen off "
                    "retention, or the topic was truncated or made anew. What was learned is safe, but these records "
                    "can not be read: give the topic a longer retention, and choose a new run.id for what is left"
                ) from error

    def _poll(self, timeout_s: float) -> list[Record | Gap]:
        polled = self._consumer.poll(timeout_ms=int(timeout_s * 1000))
        items: list[Record | Gap] = []
        for place, messages in polled.items():
            items += [
                Record(m.topic, m.partition, m.offset, m.timestamp, m.key, m.value, list(m.headers)) for m in messages
            ]
            self._next[place] = messages[-1].offset + 1
        for place, offset in self._next.items():
            position = self._consumer.position(place, timeout_ms=0)
            if position is not None and position > offset:  # control records, compacted offsets
                items.append(Gap(place.topic, place.partition, position))
                self._next[place] = position
        return items

    def ends(self) -> Positions:
        """End offset of each partition as far as its last fetch told."""
        ends: Positions = {}
        for place in self._next:
            end = self._consumer.highwater(place)
            if end is not None:
                ends.setdefault(place.topic, {})[place.partition] = end
        return ends

    def close(self) -> None:
        self._consumer.close()

    def _assign(self) -> None:
        """Takes all partitions; one that is new begins at its first offset, explicitly."""
        self._check_partitions_at = self._clock() + PARTITION_CHECK_S
        places = {
            TopicPartition(topic, partition)
            for topic in self._topics
            for partition in self._consumer.partitions_for_topic(topic) or ()
        } | set(self._next)
        if places == self._consumer.assignment():
            return
        new = [place for place in places if place not in self._next]
        with kafka_failures(self._kafka, "looking up the first offsets of the input"):
            self._next |= self._consumer.beginning_offsets(new) if new else {}
        self._consumer.assign(sorted(places))
        for place in places:
            self._consumer.seek(place, self._next[place])
