"""The worker: it reads, learns and publishes until it is asked to stop."""

import threading
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice

import structlog

from stream_learner import networks
from stream_learner.checkpoints.store import Store
from stream_learner.config import Settings
from stream_learner.contract.manifest import Manifest
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
from stream_learner.learning.placement import place
from stream_learner.learning.process import set_up_torch
from stream_learner.monitoring.health import Phase
from stream_learner.monitoring.monitor import Monitor
from stream_learner.publishing.background_publisher import BackgroundPublisher
from stream_learner.publishing.checkpoint_writer import CheckpointWriter
from stream_learner.publishing.formats import Formats, released_graph
from stream_learner.publishing.ownership import EndProcess, await_turn, fencing, leaving_a_mark
from stream_learner.publishing.recover import Recovered, Recovery
from stream_learner.run.arrivals import with_predictions
from stream_learner.run.batches import MAX_BATCH_BYTES, Batch, batches
from stream_learner.run.breaker import Breaker
from stream_learner.run.driver import Driver
from stream_learner.run.lives import Lives
from stream_learner.run.outage import Outage
from stream_learner.run.saves import Saves
from stream_learner.run.upkeep import Upkeep, give_up
from stream_learner.streams.clients import Clients
from stream_learner.streams.source import Source

log = structlog.get_logger()

MOST_SHOWN = 20


@dataclass
class Worker:
    """The worker's loop, and the objects that the loop uses."""

    stream: Iterable[Batch]
    driver: Driver
    saves: Saves
    upkeep: Upkeep
    breaker: Breaker
    lives: Lives
    warned_of: set[Split] = field(default_factory=set)

    def loop(self) -> None:
        """Learn until the stream ends, then save once more. Raises RejectsError, DivergedError, both after the save."""
        learner = self.driver.learner
        for batch in self.stream:
            with self.lives.suspecting(batch.places):
                report = self.driver.learn(batch)  # predict, then weighted step(s) with memory
            self.upkeep.learned(report)
            self.breaker.observe(report)
            self.upkeep.tend(self.saves.unsaved_records)
            if learner.release_due:
                self.saves.wait()  # training waits, so that the decision falls on the same batch in every execution
                decided = self.driver.decide()
                self.warn_of_few_groups()
                self.saves.save(decided)
            elif self.saves.due():
                self.saves.wait()
                self.saves.save()
            if self.breaker.why or learner.diverged:
                break
        self.saves.finish()
        # Raise only after the save, which published the dead letters. So a restart continues after these records.
        if why := self.breaker.why:
            raise RejectsError(
                f"{why}. See the records in the dead-letter topic and repair their producer. A restart continues after "
                "these records; `run --accept-rejects` never stops for rejected records"
            )
        if learner.diverged:
            raise DivergedError(
                "three batches in a row gave a loss or gradient that is not finite, so their records are dead letters, "
                "except those that a step learned. Lower learning.learning_rate or set learning.precision to fp32; if "
                "it happens again, choose a new run.id"
            )

    def warn_of_few_groups(self) -> None:
        """Warn when few groups dominate a held-out set. Do not repeat the warning while this lasts."""
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


def run(
    settings: Settings,
    store: Store,
    clients: Clients,
    recovery: Recovery,
    monitor: Monitor,
    stop: threading.Event,
    end_process: EndProcess,
    *,
    accept_rejects: bool = False,
) -> None:
    """Wait for this worker's turn, recover, learn until `stop` is set, and save once more.

    `recovery.look()` must have been called once. Raises subclasses of StreamLearnerError. If a publication fails or
    another worker takes over, end the process through `end_process`.
    """
    decoder = Decoder.from_settings(settings)
    if settings.model.frozen and not settings.model.weights:
        log.warning("the network's body is frozen and random, unless its factory loads weights; set model.weights")
    end_process = leaving_a_mark(settings, store, end_process)
    set_up_torch(settings.learning, settings.run.shards)
    # If the device does not work, fail before another worker is ended.
    place(settings.learning, networks.factory(settings.model.name))

    election, health, metrics = clients.election, monitor.health, monitor.metrics

    def stand_by() -> None:
        health.enter(Phase.STANDBY)
        give_up(settings.kafka, health)

    if not await_turn(settings, store, election, stop, stand_by, recovery.look):
        return
    try:
        health.enter(Phase.RECOVERING)
        recovered = recovery.take_over(fencing(election, clients.transaction.fence))
        driver = resumed(settings, recovered)
        last = recovered.checkpoint
        if last:
            metrics.recovered(last.manifest)
        source = Source(
            settings.kafka,
            settings.input,
            recovered.positions,
            health.heard,
            predictions_topic=settings.predictions_topic,
        )
        metrics.begin(source.positions)
        formats = Formats(settings.release, released_graph(store, last.manifest.release if last else None))
        writer = CheckpointWriter(settings, store, clients, recovered, formats)
        lives = Lives(store, settings)

        def committed(manifest: Manifest, seconds: float) -> None:
            monitor.committed(manifest, seconds)
            lives.committed(manifest)

        publisher = BackgroundPublisher(settings, writer, committed, metrics.store_failed, end_process)
        stream = batches(
            source,
            with_predictions(settings, lives.guarded(decoder)),
            driver.progress.positions,
            settings.batch,
            stop,
            outage=Outage(settings.kafka.give_up_s, stop, health.wait_for),
            alone=lives.alone,
            # All records of a batch may become dead letters. The transaction's time-out is long enough
            # for dead letters of `max_pending_bytes` in total.
            max_bytes=min(MAX_BATCH_BYTES, settings.checkpoint.max_pending_bytes),
        )
        breaker = Breaker(settings.rejects, enabled=not accept_rejects)
        upkeep = Upkeep(settings.kafka, driver, source, election, monitor)
        saves = Saves(settings.checkpoint, driver, publisher, upkeep, lives)
        worker = Worker(stream, driver, saves, upkeep, breaker, lives)
        sequence = last.manifest.sequence if last else 0
        log.info("learning", epoch=recovered.epoch, sequence=sequence, classes=len(driver.learner.labels))
        del recovery, recovered, last  # frees the memory of the fetched state
        health.enter(Phase.LEARNING)
        try:
            with lives.watched(), closing(formats):
                try:
                    worker.loop()
                except (InputError, DependencyError):
                    saves.finish()  # otherwise learned records may be gone before they can be learned again
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

    Raises StateError when the checkpoint's state cannot be restored.
    """
    checkpoint = recovered.checkpoint
    if checkpoint is None:
        return Driver.fresh(settings, recovered.positions)
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
