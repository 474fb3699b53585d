"""Read a topic with one partition from its first record, then wait for each record that is committed."""

import time
from collections.abc import Callable

from kafka.errors import LogTruncationError, OffsetOutOfRangeError
from kafka.structs import TopicPartition

from stream_learner.config import AnySettings
from stream_learner.formats.record import Record
from stream_learner.streams.connection import kafka_failures, opening
from stream_learner.streams.topics import id_for_reader


class Tail:
    """Reads all committed records of a topic with one partition.

    If the topic is deleted and created again, reading begins at the first record of the new topic.
    """

    def __init__(self, settings: AnySettings, topic: str, clock: Callable[[], float] = time.monotonic):
        """Connect. Raises TopicsError when the topic is missing, KafkaUnavailableError."""
        self._settings = settings
        self._place = TopicPartition(topic, 0)
        self._doing = f"reading topic {topic}"
        self._clock = clock
        self._answered_at = clock()
        self.begun = 0
        """Number of times that the topic was deleted and created again."""
        self._topic_id = id_for_reader(settings, topic)
        with opening(settings.kafka, self._doing, "Read", heard=self._heard) as self._consumer:
            self._consumer.assign([self._place])
            self._begin()

    def poll(self, timeout_s: float) -> list[Record]:
        """Return the next records, or an empty list after `timeout_s` seconds. Raises KafkaUnavailableError.

        If the brokers do not answer, the list is empty, and `silence_s` grows.
        """
        with kafka_failures(self._settings.kafka, self._doing, "Read"):
            if self._was_created_again():
                self._begin()
            try:
                polled = self._consumer.poll(timeout_ms=int(timeout_s * 1000))
            except (OffsetOutOfRangeError, LogTruncationError):
                self._begin()
                return []
        return [record for records in polled.values() for record in records]

    @property
    def at_end(self) -> bool:
        """Whether all records were read that existed when the brokers last answered."""
        return not self._consumer.behind(self._place)

    @property
    def silence_s(self) -> float:
        """Seconds since the brokers last answered a request for records."""
        return self._clock() - self._answered_at

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close()

    def _heard(self, answer: str) -> None:
        if answer == "fetch":
            self._answered_at = self._clock()

    def _begin(self) -> None:
        # `beginning_offsets` fails if a right is missing. `seek_to_beginning` would not.
        self._consumer.seek(self._place, self._consumer.beginning_offsets([self._place])[self._place])

    def _was_created_again(self) -> bool:
        found = self._consumer._cluster.topic_id(self._place.topic)
        if found is None or str(found) == self._topic_id:
            return False
        self._topic_id = str(found)
        self.begun += 1
        return True
