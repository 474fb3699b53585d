"""Reads input records again, at given offsets and in an order that the caller chooses."""

import time
from collections import deque
from collections.abc import Callable

from kafka.errors import LogTruncationError, OffsetOutOfRangeError
from kafka.structs import TopicPartition

from stream_learner.config import KafkaSettings
from stream_learner.errors import InputError, KafkaUnavailableError
from stream_learner.formats.record import Record
from stream_learner.streams.connection import kafka_failures, opening
from stream_learner.streams.reader import Damaged

POLL_MS = 200


class Replay:
    """Reads one partition step by step.

    Each partition has its own client. With a shared client, records that are read ahead of one partition could fill the
    memory while another partition is read.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        topic: str,
        partition: int,
        offset: int,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Connect, and begin at `offset`. Raises KafkaUnavailableError."""
        self._kafka = kafka
        self._clock = clock
        self._place = TopicPartition(topic, partition)
        self._name = f"{topic}[{partition}]"
        self._ahead: deque[Record] = deque()
        self._at = offset
        with opening(kafka, "opening the input") as self._consumer:
            self._consumer.assign([self._place])
            self._consumer.seek(self._place, offset)

    def skip(self, offset: int) -> None:
        """Continue at `offset`, without the records before it."""
        while self._ahead and self._ahead[0].offset < offset:
            self._ahead.popleft()
        if self._at < offset:
            self._at = offset
            self._consumer.seek(self._place, offset)

    def read(self, end: int) -> list[Record]:
        """Return the records up to the offset `end`.

        Raises InputError when the topic no longer holds some of them, KafkaUnavailableError when no record arrives for
        `kafka.request_timeout_s`.
        """
        records: list[Record] = []
        deadline = self._clock() + self._kafka.request_timeout_s
        while True:
            while self._ahead and self._ahead[0].offset < end:
                item = self._ahead.popleft()
                if isinstance(item, Damaged):
                    raise InputError(
                        f"records of {self._name} from offset {item.offset} to {item.end} are needed, but their batch "
                        "is damaged on the broker (wrong checksum); begin with a later state"
                    )
                records.append(item)
            if self._ahead or self._at >= end:
                return records
            if self._poll():
                deadline = self._clock() + self._kafka.request_timeout_s
            elif self._clock() > deadline:
                raise KafkaUnavailableError(
                    f"no record arrived from {self._name} at offset {self._at} for "
                    f"kafka.request_timeout_s = {self._kafka.request_timeout_s:g}; check that the brokers are up"
                )

    def close(self) -> None:
        self._consumer.close()

    def _poll(self) -> bool:
        """Read ahead. Return whether the position moved."""
        with kafka_failures(self._kafka, "reading the input", "Read"):
            try:
                polled = self._consumer.poll(timeout_ms=POLL_MS)
            except (OffsetOutOfRangeError, LogTruncationError) as error:
                raise InputError(
                    f"records of {self._name} from offset {self._at} on are needed, but the topic no longer holds them "
                    f"({error}); begin with a later state, or give the topic a longer retention"
                ) from error
            self._ahead += polled.get(self._place, ())
            before, self._at = self._at, self._consumer.position(self._place) or self._at
        return self._at > before
