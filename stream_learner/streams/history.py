"""Reads the history topic, which holds every manifest of a run. The topic is read in parts, because it can be large.

With default settings, the topic grows to about 4 GB in 90 days.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator

from kafka.structs import TopicPartition

from stream_learner.config import MIB, AnySettings
from stream_learner.contract.topics import Names
from stream_learner.errors import KafkaUnavailableError
from stream_learner.streams.connection import kafka_failures, opening
from stream_learner.streams.manifests import Foreign, Found, accepted

POLL_MS = 200
# Maximum size of a response. It is small, because only a few manifests are read at one place.
FETCH_BYTES = MIB
TAIL = 10
"""Number of offsets at the topic's end that are searched first for the newest manifest."""


class History:
    """Reader of a run's committed manifests. Use one iterator at a time, because all iterators share one position."""

    def __init__(self, settings: AnySettings, clock: Callable[[], float] = time.monotonic):
        """Connect and look up the first and end offset. Raises KafkaUnavailableError."""
        self.topic = Names.under(settings.prefix).history
        self._settings = settings
        self._clock = clock
        self._place = TopicPartition(self.topic, 0)
        doing = f"reading topic {self.topic}"
        with opening(settings.kafka, doing, "Read", max_partition_fetch_bytes=FETCH_BYTES) as self._consumer:
            self._consumer.assign([self._place])
            self.first = self._consumer.beginning_offsets([self._place])[self._place]
            # Leave out records that an open transaction hides now.
            self.end = self._consumer.end_offsets([self._place])[self._place]

    def close(self) -> None:
        self._consumer.close()

    def read(self, start: int, end: int, foreign: Foreign | None = None) -> Iterator[Found]:
        """Yield the manifests at offsets from `start` up to `end`, and add all other records to `foreign`.

        Raises StateError when a newer version of this program wrote a manifest, KafkaUnavailableError when no record
        arrives for `kafka.request_timeout_s`.
        """
        kafka, security = self._settings.kafka, self._settings.security
        self._consumer.seek(self._place, start)
        at, deadline = start, self._clock() + kafka.request_timeout_s
        while at < end:
            with kafka_failures(kafka, f"reading topic {self.topic}", "Read"):
                polled = self._consumer.poll(timeout_ms=POLL_MS)
                before, at = at, self._consumer.position(self._place) or at
            if at == before and self._clock() > deadline:
                raise KafkaUnavailableError(
                    f"no record arrived from topic {self.topic} at offset {at} for "
                    f"kafka.request_timeout_s = {kafka.request_timeout_s:g}; check that the brokers are up"
                )
            for record in polled.get(self._place, ()):
                if record.offset >= end:
                    return
                try:
                    yield accepted(record, self._settings.run.id, security.verifier)
                except ValueError as error:
                    if foreign:
                        foreign.add(record.offset, str(error))
            if at > before:  # the caller may have spent a long time on each manifest
                deadline = self._clock() + kafka.request_timeout_s

    def newest(self) -> Found | None:
        """Return the manifest with the highest epoch and sequence near the topic's end, or None if there is none."""
        tail = TAIL
        while True:
            start = max(self.first, self.end - tail)
            found = max(self.read(start, self.end), key=lambda found: found.manifest.order, default=None)
            if found or start == self.first:
                return found
            tail *= 10

    def find(self, sequence: int, epoch: int | None = None) -> Found | None:
        """Return the manifest with a sequence, or None if it is missing.

        By default, search the newest epoch that has the sequence. Epochs and sequences rise with the offsets, so a
        binary search reads few records. If the search finds nothing, read all records: the newest epoch may lack the
        sequence, or somebody may have sent old manifests again.
        """
        if newest := self.newest():
            wanted = epoch or newest.manifest.epoch, sequence
            offsets = range(self.first, newest.offset + 1)
            at = bisect_left(offsets, wanted, key=lambda offset: self._from(offset).manifest.order)
            if at < len(offsets) and (found := self._from(offsets[at])).manifest.order == wanted:
                return found
        matching = (
            found
            for found in self.read(self.first, self.end)
            if found.manifest.sequence == sequence and epoch in (None, found.manifest.epoch)
        )
        return max(matching, key=lambda found: found.manifest.epoch, default=None)

    def _from(self, offset: int) -> Found:
        """Return the first manifest at or after an offset. The caller knows that this manifest exists."""
        return next(self.read(offset, self.end))
