"""Decides when a worker saves, and when training waits for a save."""

import time
from typing import NamedTuple

import structlog

from stream_learner.config import CheckpointSettings
from stream_learner.contract.spans import Positions
from stream_learner.learning.parallel import Parallel
from stream_learner.monitoring.health import Phase
from stream_learner.publishing.background_publisher import Background
from stream_learner.publishing.snapshot import Decided
from stream_learner.run.driver import Driver
from stream_learner.run.lives import Lives
from stream_learner.run.progress import MAX_ENTRIES
from stream_learner.run.together import any_rank, gathered
from stream_learner.run.upkeep import Upkeep

log = structlog.get_logger()


class Due(NamedTuple):
    """Reasons to save now.

    `must`: a limit on unsaved work is reached. `may`: a save is due by the clock or by the number of records. It waits
    while a publisher is `busy`.
    """

    must: bool
    may: bool
    busy: bool


class Submitted(NamedTuple):
    """Records and positions that this rank read for the snapshot that is being published."""

    records: int
    positions: Positions


class Saves:
    """Hands snapshots to the publisher, one at a time. All ranks save together."""

    def __init__(
        self,
        settings: CheckpointSettings,
        driver: Driver,
        publisher: Background,
        upkeep: Upkeep,
        lives: Lives,
        parallel: Parallel,
    ):
        """Take the objects that saves use. `publisher` publishes on rank 0, and writes the rank's share elsewhere."""
        self._settings = settings
        self._driver = driver
        self._publisher = publisher
        self._upkeep = upkeep
        self._lives = lives
        self._parallel = parallel
        self._saved_at = time.monotonic()
        self._submitted: Submitted | None = None

    @property
    def unsaved_records(self) -> int:
        """Number of input records that were learned and were in no committed checkpoint at the last `published`."""
        submitted = self._submitted.records if self._submitted else 0
        return self._driver.progress.open.tally.read.records + submitted

    def due(self) -> Due:
        """Return what this rank needs now. Ranks share the limits equally."""
        settings, opened = self._settings, self._driver.progress.open
        if self._driver.progress.empty:
            return Due(must=False, may=False, busy=not self._publisher.idle)
        share = len(self._parallel.local) / self._parallel.shards
        records = opened.tally.read.records
        full = opened.pending_bytes >= share * settings.max_pending_bytes or opened.entries >= share * MAX_ENTRIES
        must = full or self.unsaved_records >= share * settings.max_unsaved_records
        by_clock = time.monotonic() - self._saved_at >= settings.every_s
        by_count = settings.every_records is not None and records >= share * settings.every_records
        return Due(must, by_clock or by_count, busy=not self._publisher.idle)

    def wait(self) -> None:
        """Wait until the last snapshot is published. The other ranks wait for rank 0."""
        health = self._upkeep.monitor.health
        before = health.phase
        if not self._publisher.idle:
            health.enter(Phase.WAITING)
        if self._parallel.rank == 0:
            self._publisher.wait(self._still_waiting)
            any_rank(self._parallel, False)
        else:
            while any_rank(self._parallel, False)[0]:
                self._upkeep.tend(self.unsaved_records)
            self._publisher.wait(lambda: None)
        self.published()
        health.enter(before)

    def published(self) -> None:
        """Note that no rank is busy, so rank 0 has committed the last snapshot. Rank 0 notes its commits itself."""
        if self._submitted and self._parallel.rank:
            self._upkeep.monitor.metrics.shared()
            self._lives.committed(self._submitted.positions)
        self._submitted = None

    def _still_waiting(self) -> None:
        self._upkeep.tend(self.unsaved_records)
        any_rank(self._parallel, True)

    def save(self, decided: Decided | None = None) -> None:
        """Hand a snapshot to the publisher. `decided` is the decision just made, if any."""
        records = self._driver.progress.open.tally.read.records
        snapshot = self._driver.snapshot(decided)
        self._submitted = Submitted(records, snapshot.positions)
        self._publisher.submit(*gathered(self._parallel, snapshot, self._upkeep.lag()))
        self._saved_at = time.monotonic()
        if any_rank(self._parallel, self._lives.careful)[0]:
            self.wait()  # otherwise a death during the publication would be blamed on a record decoded meanwhile

    def finish(self) -> None:
        """Publish everything that was learned, and wait until it is published."""
        log.info("stopping after a last save", unsaved_records=self.unsaved_records)
        self._upkeep.monitor.health.enter(Phase.STOPPING)
        self.wait()
        if not self._driver.progress.empty:
            self.save()
            self.wait()
