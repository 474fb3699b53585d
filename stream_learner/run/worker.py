"""The worker: it reads, learns and publishes until it is asked to stop."""

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

import structlog

from stream_learner import networks
from stream_learner.checkpoints.store import Store
from stream_learner.config import KafkaSettings, Settings
from stream_learner.contract.event_time import age_s
from stream_learner.contract.manifest import Manifest
from stream_learner.contract.spans import Positions
from stream_learner.contract.vocabulary import Split
from stream_learner.errors import (
    DependencyError,
    DivergedError,
    FencedError,
    InputError,
    KafkaUnavailableError,
    RejectsError,
    StateError,
)
from stream_learner.formats.decoder import Decoder
from stream_learner.learning.learner import Learner
from stream_learner.learning.placement import place
from stream_learner.learning.process import set_up_torch
from stream_learner.monitoring.health import Answer, Health, Phase
from stream_learner.monitoring.metrics import Metrics
from stream_learner.publishing.background_publisher import BackgroundPublisher
from stream_learner.publishing.checkpoint_writer import CheckpointWriter
from stream_learner.publishing.ownership import EndProcess, await_turn, fencing, leaving_a_mark
from stream_learner.publishing.recover import Recovered, Recovery
from stream_learner.publishing.snapshot import Decided
from stream_learner.run.batches import MAX_BATCH_BYTES, Batch, batches
from stream_learner.run.breaker import Breaker
from stream_learner.run.driver import Driver
from stream_learner.run.lives import Lives
from stream_learner.run.outage import Outage
from stream_learner.run.progress import MAX_ENTRIES, Progress
from stream_learner.streams.cluster import Cluster
from stream_learner.streams.election import Election
from stream_learner.streams.journal import ReadBack
from stream_learner.streams.source import Source
from stream_learner.streams.transaction import Transaction

log = structlog.get_logger()

TEND_EVERY_S = 1.0
MOST_SHOWN = 20


@dataclass
class Worker:
    """The loop and its collaborators."""

    settings: Settings
    stream: Iterable[Batch]
    driver: Driver
    source: Source
    publisher: BackgroundPublisher
    election: Election
    metrics: Metrics
    health: Health
    breaker: Breaker
    lives: Lives
    tended_at: float = 0.0
    saved_at: float = field(default_factory=time.monotonic)
    warned_of: set[Split] = field(default_factory=set)

    def loop(self) -> None:
        """Learn until the stream ends, then save once more. Raises RejectsError, DivergedError (after that save)."""
        learner = self.driver.learner
        for batch in self.stream:
            with self.lives.suspecting(batch.places):
                report = self.driver.learn(batch)  # predict, then weighted step(s) with memory
            self.metrics.observe(report)
            self.breaker.observe(report)
            for drift in report.drifts:
                before, after = (round(error, 3) for error in (drift.error_before, drift.error_after))
                log.warning("drift: the prequential error rose", before=before, after=after, records=drift.records)
            self.tend()
            if learner.release_due:
                self.wait()  # falls on the same batch in every execution, so training waits
                decided = self.driver.decide()
                self.warn_of_few_groups()
                self.save(decided)
            elif self.save_due():
                self.wait()
                self.save()
            if self.breaker.why or learner.diverged:
                break
        self.save_the_rest()
        # Only after the save, which published the dead letters, so that a restart continues after them.
        if why := self.breaker.why:
            raise RejectsError(
                f"{why}. See them in the dead-letter topic and repair the producer. A restart continues after them; "
                "`run --accept-rejects` never stops for rejected records"
            )
        if learner.diverged:
            raise DivergedError(
                "three batches in a row gave a loss or gradient that is not finite, so their records are dead letters, "
                "except those that a step learned. Lower learning.learning_rate or set learning.precision to fp32; if "
                "it happens again, choose a new run.id"
            )

    def warn_of_few_groups(self) -> None:
        """Log once that few groups dominate a held-out set. Log it again only if it stopped in the meantime."""
        few = self.driver.learner.few_groups()
        for split, share in few.items():
            if split not in self.warned_of:
                log.warning(
                    "10 groups hold most of a held-out set, so its figures say little about other groups: give each "
                    "record an id of its own, or hold out more groups (split.validation, split.test, "
                    "held_out.max_items)",
                    split=split.value,
                    share=round(share, 2),
                )
        self.warned_of = set(few)

    def save_due(self) -> bool:
        """Return whether a save is due and possible, or so overdue that training must wait for it."""
        settings, opened = self.settings.checkpoint, self.driver.progress.open
        if self.driver.progress.empty:
            return False
        records = opened.tally.records
        unsaved = records + self.publisher.unsaved_records
        full = opened.pending_bytes >= settings.max_pending_bytes or opened.entries >= MAX_ENTRIES
        if full or unsaved >= settings.max_unsaved_records:
            return True
        by_clock = time.monotonic() - self.saved_at >= settings.every_s
        by_count = settings.every_records is not None and records >= settings.every_records
        return (by_clock or by_count) and self.publisher.idle

    def wait(self) -> None:
        """Wait until the last snapshot is published."""
        before = self.health.phase
        if not self.publisher.idle:
            self.health.enter(Phase.WAITING)
        self.publisher.wait(self.tend)
        self.health.enter(before)

    def save(self, decided: Decided | None = None) -> None:
        """Hand a snapshot to the publisher; `decided` is the decision just taken, if any."""
        self.publisher.submit(self.driver.snapshot(decided), self.lag())
        self.saved_at = time.monotonic()
        if self.lives.careful:
            self.wait()  # otherwise a publication that ends the process would be blamed on the record decoded meanwhile

    def save_the_rest(self) -> None:
        """Publish everything that was learned, and wait for it."""
        unsaved = self.driver.progress.open.tally.records + self.publisher.unsaved_records
        log.info("stopping after a last save", unsaved_records=unsaved)
        self.health.enter(Phase.STOPPING)
        self.wait()
        if not self.driver.progress.empty:
            self.save()
            self.wait()

    def lag(self) -> Positions:
        """Return the number of records between the learned position and the end of each partition."""
        positions = self.driver.progress.positions
        return {
            topic: {p: max(0, end - positions.get(topic, {}).get(p, 0)) for p, end in partitions.items()}
            for topic, partitions in self.source.ends().items()
        }

    def tend(self) -> None:
        """Do the periodic work of each turn: heartbeat, and every second election and gauges.

        Raises FencedError, KafkaUnavailableError.
        """
        self.health.beat()
        if time.monotonic() < self.tended_at + TEND_EVERY_S:
            return
        self.tended_at = time.monotonic()
        self.health.unanswered = self.source.unanswered
        give_up(self.settings.kafka, self.health)
        self.election.poll()
        if not self.election.elected:
            raise FencedError(
                "another worker was elected: the brokers considered this worker dead, or it was replaced on purpose "
                "(run.on_conflict = take_over). Nothing more is published; restart to stand by or to recover"
            )
        now_s = time.time()
        for topic, partitions in self.lag().items():
            for partition, records in partitions.items():
                seconds = age_s(self.source.oldest_ms(topic, partition), now_s) if records else 0.0
                self.metrics.observe_lag(topic, partition, records, seconds)
        for topic, partitions in self.source.starts().items():
            for partition, offset in partitions.items():
                self.metrics.observe_log_start(topic, partition, offset)
        gauges = self.driver.learner.gauges()
        self.metrics.observe_memory(gauges.remembered, gauges.memory_bytes)
        self.metrics.observe_recent(gauges.recent, gauges.drift_window, gauges.boosted)
        self.metrics.observe_refused(gauges.refused)
        self.metrics.observe_unsaved(self.driver.progress.open.tally.records + self.publisher.unsaved_records)


def give_up(kafka: KafkaSettings, health: Health) -> None:
    """Raise KafkaUnavailableError when the brokers have not answered for `kafka.give_up_s`."""
    if health.cut_off_s > kafka.give_up_s:
        raise KafkaUnavailableError(
            f"Kafka at {kafka.bootstrap_servers} has not answered for kafka.give_up_s = {kafka.give_up_s:g} s. Nothing "
            "is lost: check that the brokers are up, then restart to resume from the last committed checkpoint"
        )


def run(
    settings: Settings,
    store: Store,
    transaction: Transaction,
    read_back: ReadBack,
    election: Election,
    recovery: Recovery,
    cluster: Cluster,
    metrics: Metrics,
    health: Health,
    stop: threading.Event,
    end_process: EndProcess,
    *,
    accept_rejects: bool = False,
) -> None:
    """Wait for this worker's turn, recover, learn until `stop` is set, and save once more.

    `recovery.look()` must have been called once.
    Raises subclasses of StreamLearnerError. A publication that fails, and another worker that takes over, end the
    process through `end_process`.
    """
    decoder = Decoder.from_settings(settings)
    if settings.model.frozen and not settings.model.weights:
        log.warning("the network's body is frozen and random, unless its factory loads weights; set model.weights")
    end_process = leaving_a_mark(settings, store, end_process)
    set_up_torch(settings.learning)
    place(settings.learning, networks.factory(settings.model.name))  # a device that fails must not end another worker

    def stand_by() -> None:
        health.enter(Phase.STANDBY)
        give_up(settings.kafka, health)

    if not await_turn(settings, store, election, stop, stand_by, recovery.look):
        return
    try:
        health.enter(Phase.RECOVERING)
        recovered = recovery.take_over(fencing(election, transaction.fence))
        driver = resumed(settings, recovered)
        last = recovered.checkpoint
        if last:
            metrics.recovered(last.manifest)
        source = Source(settings.kafka, settings.input, recovered.positions, health.heard)
        metrics.begin(source.positions)
        ids, epoch = recovered.topic_ids, recovered.epoch
        writer = CheckpointWriter(settings, store, cluster, transaction, read_back, ids, epoch, last)
        lives = Lives(store, settings)

        def committed(manifest: Manifest, seconds: float) -> None:
            health.heard(Answer.COMMIT)
            metrics.checkpoint_committed(manifest, seconds)
            lives.committed(manifest)

        publisher = BackgroundPublisher(settings, writer, committed, metrics.store_failed, end_process)
        decode = lives.guarded(decoder)
        stream = batches(
            source,
            decode,
            driver.progress.positions,
            settings.batch,
            stop,
            outage=Outage(settings.kafka.give_up_s, stop, health.wait_for),
            alone=lives.alone,
            # A whole batch may become dead letters, and a transaction's time-out allows for this number of bytes.
            max_bytes=min(MAX_BATCH_BYTES, settings.checkpoint.max_pending_bytes),
        )
        breaker = Breaker(settings.rejects, enabled=not accept_rejects)
        worker = Worker(settings, stream, driver, source, publisher, election, metrics, health, breaker, lives)
        sequence = last.manifest.sequence if last else 0
        log.info("learning", epoch=epoch, sequence=sequence, classes=len(driver.learner.labels))
        del recovery, recovered, last  # the state that was fetched
        health.enter(Phase.LEARNING)
        try:
            with lives.watched():
                try:
                    worker.loop()
                except (InputError, DependencyError):
                    worker.save_the_rest()  # its records may be gone before they can be learned again
                    raise
        except KafkaUnavailableError as error:
            log.error(str(error))
            election.close()
            end_process(error.code)  # a normal exit would wait for the publisher, which may wait for Kafka
    except FencedError as error:
        log.error(str(error))
        end_process(error.code)


def resumed(settings: Settings, recovered: Recovered) -> Driver:
    """Build the learner and its progress from the checkpoint.

    Raises StateError when the state is not one that was saved.
    """
    checkpoint = recovered.checkpoint
    if checkpoint is None:
        return Driver(Learner(settings), Progress(recovered.positions))
    state = checkpoint.tensors, checkpoint.document
    try:
        driver = Driver.resumed(settings, recovered.positions, state, checkpoint.parts, checkpoint.released)
    except ValueError as error:
        raise StateError(
            f"the state of checkpoint {checkpoint.manifest.sequence} cannot be restored: {error}. Restore the object "
            "from a backup, or choose a new run.id"
        ) from None
    if retired := driver.learner.retired:
        log.info("[labels] has retired classes", classes=dict(islice(retired.items(), MOST_SHOWN)))
    return driver
