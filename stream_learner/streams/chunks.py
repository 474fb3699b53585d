"""Reads the bytes of a release from the weights topic."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import groupby

from kafka.errors import LogTruncationError, OffsetOutOfRangeError
from kafka.structs import TopicPartition

from stream_learner.config import AnySettings
from stream_learner.contract.manifest import Chunk
from stream_learner.contract.topics import Names
from stream_learner.errors import KafkaUnavailableError
from stream_learner.streams.connection import kafka_failures, reader
from stream_learner.streams.reader import Reader

POLL_MS = 200


def read_chunks(
    settings: AnySettings, chunks: Sequence[Chunk], clock: Callable[[], float] = time.monotonic
) -> bytes | None:
    """Return the joined bytes of a release, None when the weights topic does not hold all of them.

    Wait for chunks that are not visible yet, because brokers commit a transaction in one partition after the other.
    Raises KafkaUnavailableError, also when no chunk arrives for `recovery.timeout_s`.
    """
    topic = Names.under(settings.prefix).weights
    if any(chunk.topic != topic for chunk in chunks):
        return None
    deadline = clock() + settings.recovery.timeout_s
    parts: list[bytes] = []
    with kafka_failures(settings.kafka, f"reading topic {topic}", "Read"), reader(settings.kafka) as consumer:
        for partition, group in groupby(chunks, lambda chunk: chunk.partition):
            place, wanted = TopicPartition(topic, partition), deque(chunk.offset for chunk in group)
            consumer.assign([place])
            consumer.beginning_offsets([place])  # fails if the user lacks a right; `poll` would wait
            consumer.seek(place, wanted[0])
            while wanted:
                before = len(parts)
                if not _take(consumer, place, wanted, parts):
                    return None
                if len(parts) > before:
                    deadline = clock() + settings.recovery.timeout_s
                elif clock() > deadline:
                    raise KafkaUnavailableError(
                        f"the release's chunk at offset {wanted[0]} of {topic}[{partition}] could not be read within "
                        f"recovery.timeout_s = {settings.recovery.timeout_s:g}; check that the brokers are up"
                    )
    return b"".join(parts)


def _take(consumer: Reader, place: TopicPartition, wanted: deque[int], parts: list[bytes]) -> bool:
    """Poll once, and move chunks that arrive from `wanted` to `parts`. Return False if a wanted chunk is gone."""
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
