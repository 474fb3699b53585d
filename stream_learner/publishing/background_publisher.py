"""The threads that save while training continues: rank 0 publishes checkpoints, and other ranks write their shares."""

import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import structlog

from stream_learner.config import Settings
from stream_learner.contract.manifest import Manifest
from stream_learner.errors import ExitCode, KafkaUnavailableError, StoreError, StreamLearnerError, out_of_memory
from stream_learner.formats.rejects import describe
from stream_learner.publishing.checkpoint_writer import CheckpointWriter, Prepared
from stream_learner.publishing.ownership import EndProcess
from stream_learner.publishing.shares import Share, ShareWriter
from stream_learner.publishing.snapshot import Snapshot

log = structlog.get_logger()

NICENESS = 10
BACKOFF_S = (0.5, 1, 2, 4, 8, 15)
WAIT_SLICE_S = 0.5
# Some steps have their own deadline and a better message, so the watchdog fires later.
WATCHDOG_MARGIN_S = 2.0

Written = TypeVar("Written")


class Background(ABC):
    """Handles one snapshot at a time on a low-priority thread, so that training steps are not slowed.

    Calls `store_failed()` after each error of the store. `end_process` must not return.
    """

    def __init__(self, store_failed: Callable[[], None], end_process: EndProcess):
        self._store_failed = store_failed
        self._end_process = end_process
        self._in_flight: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, "publisher", initializer=_lower_priority)

    @property
    def idle(self) -> bool:
        return self._in_flight is None or self._in_flight.done()

    def submit(self, snapshot: Snapshot, lag: dict[str, dict[int, int]]) -> None:
        """Handle the snapshot in the background. Call this only while `idle`. `lag` is in records."""
        assert self.idle
        self._in_flight = self._thread.submit(self._run, snapshot, lag)

    def wait(self, meanwhile: Callable[[], None]) -> None:
        """Wait until the last snapshot is handled. Call `meanwhile` every half second."""
        while self._in_flight and not self._in_flight.done():
            meanwhile()
            wait([self._in_flight], WAIT_SLICE_S)
        if self._in_flight:
            # Raises if `end_process` failed: training must not continue after a publication with an unknown outcome.
            self._in_flight.result()

    def _run(self, snapshot: Snapshot, lag: dict[str, dict[int, int]]) -> None:
        try:
            self._handle(snapshot, lag)
        except StreamLearnerError as error:
            log.error(str(error))
            self._end_process(error.code)
        except BaseException as error:  # the outcome is unknown: no other transaction may follow
            explained = out_of_memory(error)
            log.exception(str(explained or "publishing failed in an unexpected way"))
            self._end_process(explained.code if explained else ExitCode.INTERNAL)

    @abstractmethod
    def _handle(self, snapshot: Snapshot, lag: dict[str, dict[int, int]]) -> None: ...

    def _stored(self, write: Callable[[], Written]) -> Written:
        """Return the result of `write`. Repeat it after each error of the store or of Kafka."""
        attempt = 0
        while True:
            try:
                return write()
            except (StoreError, KafkaUnavailableError) as error:
                if isinstance(error, StoreError):
                    self._store_failed()
                pause = BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)]
                log.warning(
                    "a checkpoint could not be written yet; training continues", error=str(error), retry_in_s=pause
                )
                attempt += 1
                time.sleep(pause)


class BackgroundPublisher(Background):
    """Publishes snapshots. Calls `committed(manifest, seconds)` after each commit."""

    def __init__(
        self,
        settings: Settings,
        writer: CheckpointWriter,
        committed: Callable[[Manifest, float], None],
        store_failed: Callable[[], None],
        end_process: EndProcess,
    ):
        super().__init__(store_failed, end_process)
        self._settings = settings
        self._writer = writer
        self._committed = committed

    def _handle(self, snapshot: Snapshot, lag: dict[str, dict[int, int]]) -> None:
        began = time.monotonic()
        prepared = self._stored(lambda: self._writer.prepare(snapshot, lag))
        manifest = self._commit(prepared)
        self._committed(manifest, time.monotonic() - began)
        verdict = manifest.decision and {"released": manifest.released, "why": manifest.decision.reason}
        window = snapshot.interval.tally.read
        counts: dict[str, Any] = {"records": window.records, "rejected": len(snapshot.interval.dead_letters)}
        if window.rejects:
            counts["rejects"] = describe(window.rejects)
        log.info("checkpoint", sequence=manifest.sequence, bytes=prepared.state.size, **counts, **verdict or {})
        if manifest.rolled_back_to is not None:
            log.warning(
                "too many candidates were refused (release.patience): training went back to the last release",
                sequence=manifest.rolled_back_to,
            )
        self._clean()

    def _commit(self, prepared: Prepared) -> Manifest:
        # kafka-python's commit, abort and send_offsets have no time-out.
        seconds = self._settings.transaction_timeout_s + WATCHDOG_MARGIN_S
        watchdog = threading.Timer(seconds, self._timed_out, (seconds,))
        watchdog.daemon = True
        watchdog.start()
        try:
            return self._writer.commit(prepared)
        finally:
            watchdog.cancel()

    def _timed_out(self, seconds: float) -> None:
        log.error(
            f"publishing a checkpoint took longer than {seconds:g} s, so the process ends; restart to resume from the "
            "last committed checkpoint"
        )
        self._end_process(ExitCode.WATCHDOG)

    def _clean(self) -> None:
        try:
            self._writer.clean()
        except (StoreError, KafkaUnavailableError) as error:
            # Leftover objects do no harm. A later sweep deletes them.
            log.warning("could not clean up after a checkpoint", error=str(error))


class BackgroundSharer(Background):
    """Writes the share of a rank other than 0 to the store, and sends rank 0 the names of the objects."""

    def __init__(
        self,
        writer: ShareWriter,
        send: Callable[[int, Share], None],
        sequence: int,
        store_failed: Callable[[], None],
        end_process: EndProcess,
    ):
        """`send(sequence, share)` sends a share. `sequence` is that of the last checkpoint, 0 if there is none."""
        super().__init__(store_failed, end_process)
        self._writer = writer
        self._send = send
        self._sequence = sequence

    def _handle(self, snapshot: Snapshot, lag: dict[str, dict[int, int]]) -> None:
        del lag  # rank 0 publishes it
        self._sequence += 1
        share = self._stored(lambda: self._writer.put(self._sequence, snapshot))
        self._writer.keep(share.parts)  # the next snapshot comes after the commit of a manifest that names these
        self._send(self._sequence, share)


def _lower_priority() -> None:
    # On Linux, each thread has its own niceness.
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
