"""Reads the pins topic: the releases that followers must use or must not use."""

import time
from collections.abc import Callable
from datetime import datetime

import structlog

from stream_learner.config import AnySettings
from stream_learner.contract.manifest import Manifest
from stream_learner.contract.pins import Chosen, Pin, decode_pin
from stream_learner.contract.topics import Names
from stream_learner.errors import TopicsError
from stream_learner.formats.record import Record
from stream_learner.streams.journal import read_committed
from stream_learner.streams.manifests import check_signature
from stream_learner.streams.tail import Tail
from stream_learner.streams.topics import id_for_reader

log = structlog.get_logger()

# Interval between two looks for a missing topic, in seconds.
LOOK_S = 10.0
MAX_WARNINGS = 10
"""Ignored records of a topic that are logged. A topic may hold millions."""


class Pins:
    """The valid records of a pins topic. Other records are ignored, with a warning."""

    def __init__(self, settings: AnySettings):
        self._run_id, self._verifier = settings.run.id, settings.security.verifier
        self.clear()

    def clear(self) -> None:
        """Forget all records."""
        self.newest: Pin | None = None
        """The newest `pin` or `unpin`."""
        self.withdrawn: set[Chosen] = set()
        self._ignored = 0

    @property
    def pinned(self) -> Chosen | None:
        """The pinned release. It may be withdrawn, or belong to an earlier epoch."""
        return self.newest.release if self.newest else None

    def add(self, record: Record) -> None:
        """Obey a record if it is valid. A record that was obeyed before changes nothing."""
        try:
            pin = self._accepted(record)
        except ValueError as error:
            self._ignored += 1
            if self._ignored <= MAX_WARNINGS:
                log.warning("a record of the pins topic is ignored", offset=record.offset, why=str(error))
            return
        if pin.action == "withdraw" and pin.release:
            self.withdrawn.add(pin.release)
        else:
            self.newest = pin

    def choose(self, manifest: Manifest) -> Chosen | None:
        """Return the release to use of those that a manifest lists: the pinned one, or else the newest one.

        Never return a withdrawn release. Return None if no release remains.
        """
        usable = self.usable(manifest)
        if self.pinned in usable:
            return self.pinned
        return usable[-1] if usable else None

    def usable(self, manifest: Manifest) -> list[Chosen]:
        """Return the releases that a manifest lists and nobody has withdrawn, oldest first."""
        return [release for release in listed(manifest) if release not in self.withdrawn]

    def _accepted(self, record: Record) -> Pin:
        """Decode a record. Raises ValueError when the record is not a valid pin of the run, or is outdated."""
        check_signature(record, self._verifier)
        pin = decode_pin(record.key, record.value)
        if pin.run_id != self._run_id:
            raise ValueError(f"it belongs to run {pin.run_id!r}")
        if pin.action != "withdraw" and self.newest and _time(pin) < _time(self.newest):
            raise ValueError("it is older than another record that was read before")
        return pin


class PinsTail:
    """Reads the pins topic and waits for further records. While the topic is missing, there are no pins."""

    def __init__(self, settings: AnySettings, clock: Callable[[], float] = time.monotonic):
        """Connect. Raises KafkaUnavailableError."""
        self._settings = settings
        self._clock = clock
        self.pins = Pins(settings)
        self._tail: Tail | None = None
        self._begun = 0
        self._looked_at = -LOOK_S
        self.look()

    @property
    def at_end(self) -> bool:
        """Whether all records were read that existed when the brokers last answered."""
        return self._tail is None or self._tail.at_end

    def look(self) -> None:
        """Look for a missing topic, but not too often. Raises KafkaUnavailableError."""
        if self._tail is not None or self._clock() - self._looked_at < LOOK_S:
            return
        self._looked_at = self._clock()
        try:
            self._tail = Tail(self._settings, Names.under(self._settings.prefix).pins)
        except TopicsError:
            return

    def poll(self, timeout_s: float) -> bool:
        """Read the next records. Return whether there were any. Raises KafkaUnavailableError."""
        records = self._tail.poll(timeout_s) if self._tail else []
        if self._tail and self._tail.begun != self._begun:
            self._begun = self._tail.begun
            self.pins.clear()
        for record in records:
            self.pins.add(record)
        return bool(records)

    def close(self) -> None:
        """Close the connection."""
        if self._tail:
            self._tail.close()


def read_pins(settings: AnySettings, wait: bool = False) -> Pins:
    """Read the whole pins topic. If the topic is missing, there are no pins.

    `wait` is passed to `read_committed`. Raises KafkaUnavailableError.
    """
    pins, topic = Pins(settings), Names.under(settings.prefix).pins
    try:
        id_for_reader(settings, topic)
    except TopicsError:
        return pins
    for record in read_committed(settings, topic, wait=wait):
        pins.add(record)
    return pins


def listed(manifest: Manifest) -> list[Chosen]:
    """Return the releases whose objects exist, oldest first."""
    releases = [*manifest.earlier, *([manifest.release] if manifest.release else [])]
    return [Chosen(manifest.epoch, release.sequence, release.object.digest) for release in releases]


def _time(pin: Pin) -> datetime:
    return datetime.fromisoformat(pin.created_at)
