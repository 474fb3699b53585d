"""Decides when a worker saves, and when training waits for a save."""

import time

import structlog

from stream_learner.config import CheckpointSettings
from stream_learner.monitoring.health import Phase
from stream_learner.publishing.background_publisher import BackgroundPublisher
from stream_learner.publishing.snapshot import Decided
from stream_learner.run.driver import Driver
from stream_learner.run.lives import Lives
from stream_learner.run.progress import MAX_ENTRIES
from stream_learner.run.upkeep import Upkeep

log = structlog.get_logger()


class Saves:
    """Hands snapshots to the publisher, one at a time."""

    def __init__(
        self,
        settings: CheckpointSettings,
        driver: Driver,
        publisher: BackgroundPublisher,
        upkeep: Upkeep,
        lives: Lives,
    ):
        self._settings = settings
        self._driver = driver
        self._publisher = publisher
        self._upkeep = upkeep
        self._lives = lives
        self._saved_at = time.monotonic()

    @property
    def unsaved_records(self) -> int:
        """Number of input records that were learned and are in no committed checkpoint."""
        return self._driver.progress.open.tally.records + self._publisher.unsaved_records

    def due(self) -> bool:
        """Return whether to save now. While the publisher is busy, save only if a limit on unsaved work is reached."""
        settings, opened = self._settings, self._driver.progress.open
        if self._driver.progress.empty:
            return False
        records = opened.tally.records
        full = opened.pending_bytes >= settings.max_pending_bytes or opened.entries >= MAX_ENTRIES
        if full or self.unsaved_records >= settings.max_unsaved_records:
            return True
        by_clock = time.monotonic() - self._saved_at >= settings.every_s
        by_count = settings.every_records is not None and records >= settings.every_records
        return (by_clock or by_count) and self._publisher.idle

    def wait(self) -> None:
        """Wait until the last snapshot is published."""
        health = self._upkeep.monitor.health
        before = health.phase
        if not self._publisher.idle:
            health.enter(Phase.WAITING)
        self._publisher.wait(lambda: self._upkeep.tend(self.unsaved_records))
        health.enter(before)

    def save(self, decided: Decided | None = None) -> None:
        """Hand a snapshot to the publisher. `decided` is the decision just made, if any."""
        self._publisher.submit(self._driver.snapshot(decided), self._upkeep.lag())
        self._saved_at = time.monotonic()
        if self._lives.careful:
            self.wait()  # otherwise a death during the publication would be blamed on a record decoded meanwhile

    def finish(self) -> None:
        """Publish everything that was learned, and wait until it is published."""
        log.info("stopping after a last save", unsaved_records=self.unsaved_records)
        self._upkeep.monitor.health.enter(Phase.STOPPING)
        self.wait()
        if not self._driver.progress.empty:
            self.save()
            self.wait()
