"""Reads the bytes of a release from the weights topic."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import groupby

from kafka.errors import LogTruncationError, OffsetOutOfRangeError
from kafka.structs import TopicPartition

from stream_learner.config import AnySettings
from stream_learner.contract.objects import Chunk
from stream_learner.contract.topics import Names
from stream_learner.errors import KafkaUnavailableError
from stream_learner.streams.connection import kafka_failures, reader
from stream_learner.streams.reader import Reader

POLL_MS = 200
# Offsets between the objects of two transactions: the end of the first one takes an offset.
MAX_GAP = 2


class Chunks:
    """A connection to the weights topic."""

    def __init__(self, settings: AnySettings, clock: Callable[[], float] = time.monotonic):
        """Connect. Raises KafkaUnavailableError."""
        self._settings = settings
        self._topic = Names.under(settings.prefix).weights
        self._doing = f"reading topic {self._topic}"
        self._clock = clock
        with kafka_failures(settings.kafka, self._doing, "Read"):
            # One record a poll: the rest of a response stays with the client, for the next object.
            self._consumer: Reader = reader(settings.kafka, max_poll_records=1)

    def read(self, chunks: Sequence[Chunk]) -> bytes | None:
        """Return the joined bytes of an object, or None when the weights topic does not hold all of its chunks.

        Wait for chunks that are not visible yet, because brokers commit a transaction in one partition after the other.
        Raises KafkaUnavailableError, also when no chunk arrives for `recovery.timeout_s`.
        """
        if not chunks or any(chunk.topic != self._topic for chunk in chunks):
            return None
        parts: list[bytes] = []
        with kafka_failures(self._settings.kafka, self._doing, "Read"):
            for partition, group in groupby(chunks, lambda chunk: chunk.partition):
                wanted = deque(chunk.offset for chunk in group)
                if not self._read_partition(TopicPartition(self._topic, partition), wanted, parts):
                    return None
        return b"".join(parts)

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close()

    def _read_partition(self, place: TopicPartition, wanted: deque[int], parts: list[bytes]) -> bool:
        consumer, timeout_s = self._consumer, self._settings.recovery.timeout_s
        deadline = self._clock() + timeout_s
        # An object behind the last one that was read needs no request, or one. All others need three.
        continues = consumer.assignment() == {place} and 0 <= wanted[0] - consumer.at(place) <= MAX_GAP
        if not continues:
            self._go_to(place, wanted[0])
        while wanted:
            before = len(parts)
            is_held = _take(consumer, place, wanted, parts)
            if len(parts) > before:
                deadline = self._clock() + timeout_s
            elif continues:
                # The topic may be a new one, or the user may have lost a right.
                continues = False
                self._go_to(place, wanted[0])
            elif not is_held:
                return False
            elif self._clock() > deadline:
                raise KafkaUnavailableError(
                    f"the release's chunk at offset {wanted[0]} of {place.topic}[{place.partition}] could not be read "
                    f"within recovery.timeout_s = {timeout_s:g}; check that the brokers are up"
                )
        return True

    def _go_to(self, place: TopicPartition, offset: int) -> None:
        self._consumer.assign([place])
        self._consumer.seek(place, offset)
        self._consumer.beginning_offsets([place])  # fails if the user lacks a right; `poll` would wait


def _take(consumer: Reader, place: TopicPartition, wanted: deque[int], parts: list[bytes]) -> bool:
    """Poll once. Append each chunk that arrives to `parts`, and remove its offset from `wanted`.

    Return False if a wanted chunk is gone.
    """
    try:
        messages = consumer.poll(timeout_ms=POLL_MS).get(place, [])
    except (OffsetOutOfRangeError, LogTruncationError):
        return False
    for message in messages:
        if wanted and message.offset == wanted[0]:
            if message.value is None:  # the record is unreadable
                return False
            wanted.popleft()
            parts.append(message.value)
    return not wanted or consumer.at(place) <= wanted[0]
