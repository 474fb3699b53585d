"""The worker: it reads, learns and publishes until it is asked to stop."""

import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import msgspec
import structlog

from stream_learner import networks
from stream_learner.checkpoints.store import Store
from stream_learner.config import Settings
from stream_learner.contract.manifest import Arithmetic, Manifest
from stream_learner.contract.vocabulary import Split
from stream_learner.errors import (
    DependencyError,
    DivergedError,
    ExitCode,
    FencedError,
    InputError,
    KafkaUnavailableError,
    RejectsError,
    StateError,
    StreamLearnerError,
    UsageError,
)
from stream_learner.formats.decoder import Decoder
from stream_learner.learning.identity import identity, settings_digest
from stream_learner.learning.parallel import Parallel
from stream_learner.learning.placement import place
from stream_learner.learning.process import set_up_torch
from stream_learner.learning.ranks import Board
from stream_learner.monitoring.health import Answer, Phase
from stream_learner.monitoring.monitor import Monitor
from stream_learner.publishing.background_publisher import BackgroundPublisher, BackgroundSharer
from stream_learner.publishing.checkpoint_writer import CheckpointWriter
from stream_learner.publishing.formats import Formats, released_graph
from stream_learner.publishing.ownership import EndProcess, leaving_a_mark
from stream_learner.publishing.recover import Recovered
from stream_learner.publishing.shares import NoPeers, ShareWriter
from stream_learner.run.arrivals import with_predictions
from stream_learner.run.batch import Batch
from stream_learner.run.batches import MAX_BATCH_BYTES, OpenBatch, batches
from stream_learner.run.breaker import Breaker
from stream_learner.run.driver import Driver
from stream_learner.run.gang import Gang, Rank, join
from stream_learner.run.inputs import Inputs, shard_of
from stream_learner.run.lives import Lives
from stream_learner.run.outage import Outage
from stream_learner.run.saves import Saves
from stream_learner.run.shares import Shares
from stream_learner.run.together import any_rank, first_failure, from_ranks
from stream_learner.run.turn import Lead, follow, lead_in
from stream_learner.run.upkeep import Led, Upkeep, give_up
from stream_learner.streams.source import Source

log = structlog.get_logger()

MOST_SHOWN = 20


@dataclass
class Worker:
    """The worker's loop, and the objects that the loop uses."""

    stream: Iterable[list[Batch]]
    driver: Driver
    saves: Saves
    upkeep: Upkeep
    breaker: Breaker
    lives: Lives
    leave: Callable[[], None]
    """Waits until all ranks of the run have published everything."""
    warned_of: set[Split] = field(default_factory=set)
    failure: StreamLearnerError | None = None
    """The error that ended the stream."""

    def loop(self) -> None:
        """Learn until the stream ends, then save once more.

        After the save, raise InputError, DependencyError, RejectsError or DivergedError: the same on all ranks, so that
        all ask for the same of a supervisor.
        """
        learner, parallel = self.driver.learner, self.driver.learner.parallel
        for closed in self._stream():
            if closed:
                with self.lives.suspecting([place for batch in closed for place in batch.places]):
                    report = self.driver.learn(*closed)  # predict, then weighted step(s) with memory
                self.upkeep.learned(report)
                self.breaker.observe(report)
            self.upkeep.tend(self.saves.unsaved_records)
            must, may, busy, end = any_rank(parallel, *self.saves.due(), self.breaker.why is not None)
            if not busy:
                self.saves.published()
            if learner.release_due:
                self.saves.wait()  # training waits, so that the decision falls on the same batch in every execution
                decided = self.driver.decide()
                self.warn_of_few_groups()
                self.saves.save(decided)
            elif must or (may and not busy):
                self.saves.wait()
                self.saves.save()
            if end or learner.diverged:
                break
        # Fail only after the save, which published the dead letters. So a restart continues after these records.
        self.saves.finish()
        failure = first_failure(parallel, self._failure()) or self._divergence()
        self.leave()
        if failure:
            raise failure

    def _stream(self) -> Iterator[list[Batch]]:
        """Yield the stream's batches. An error of the stream ends it, and is kept for the end of the loop."""
        try:
            yield from self.stream
        except (InputError, DependencyError) as error:
            self.failure = error  # without a last save, learned records may be gone before they can be learned again

    def _failure(self) -> StreamLearnerError | None:
        """Return the reason why this rank ended the loop, None if it was asked to stop or another rank ended it."""
        if why := self.breaker.why:
            return RejectsError(
                f"{why}. See the records in the dead-letter topic and repair their producer. A restart continues after "
                "these records; `run --accept-rejects` never stops for rejected records"
            )
        return self.failure

    def _divergence(self) -> DivergedError | None:
        """Return the error of a learner that diverged, which is the same on all ranks."""
        if self.driver.learner.diverged:
            return DivergedError(
                "three batches in a row gave a loss or gradient that is not finite, so their records are dead letters, "
                "except those that a step learned. Lower learning.learning_rate or set learning.precision to fp32; if "
                "it happens again, choose a new run.id"
            )
        return None

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
    lead: Lead | None,
    rank: Rank,
    monitor: Monitor,
    stop: threading.Event,
    end_process: EndProcess,
    *,
    accept_rejects: bool = False,
) -> None:
    """Join the other ranks, wait for this worker's turn, recover, learn until `stop` is set, and save once more.

    `lead` is None except on rank 0. `lead.recovery.look()` must have been called once. Raises subclasses of
    StreamLearnerError. If a publication fails, another rank ends or another worker takes over, end the process through
    `end_process`.
    """
    decoder = Decoder.from_settings(settings)
    if settings.model.frozen and not settings.model.weights:
        log.warning("the network's body is frozen and random, unless its factory loads weights; set model.weights")
    set_up_torch(settings)
    # If the device does not work, fail before another worker is ended.
    placement = place(settings.learning, networks.factory(settings.model.name))

    health, metrics = monitor.health, monitor.metrics
    ends = Ends(leaving_a_mark(settings, store, end_process) if lead else end_process)
    gang = join(rank, settings, ends, health)
    parallel = gang.parallel
    if rank.count > 1:
        _check_alike(gang, placement.arithmetic(settings_digest(settings, identity(settings))))

    def stand_by() -> None:
        health.enter(Phase.STANDBY)
        if lead is None:
            health.heard(Answer.METADATA)  # rank 0 hears from the brokers, and it is alive
        give_up(settings.kafka, health)

    waits: dict[int, str] = {}  # of the local shards

    def wait_for(shard: int, why: str | None) -> None:
        waits.pop(shard, None)
        if why is not None:
            waits[shard] = why
        health.wait_for(next(iter(waits.values()), None))

    def recover() -> None:
        health.enter(Phase.RECOVERING)

    try:
        recovered = (
            lead_in(settings, store, lead, gang, stop, stand_by, recover)
            if lead
            else follow(settings, store, gang, stop, stand_by, recover)
        )
        if recovered is None:
            gang.leave()
            return
        driver = resumed(settings, recovered, parallel)
        last = recovered.checkpoint
        sequence = last.manifest.sequence if last else 0
        if last:
            metrics.recovered(last.manifest)
        sources = [
            Source(
                settings.kafka,
                settings.input,
                recovered.positions,
                health.heard,
                predictions_topic=settings.predictions_topic,
                reads=lambda topic, partition, shard=shard: shard_of(settings, topic, partition) == shard,
                sources=len(parallel.local),
            )
            for shard in parallel.local
        ]
        inputs = Inputs(sources)
        metrics.begin(inputs.positions)
        lives = Lives(store, settings, parallel.local)

        def committed(manifest: Manifest, seconds: float) -> None:
            monitor.committed(manifest, seconds)
            lives.committed(manifest.positions)

        shares = Shares(rank.count, Board(from_ranks(parallel, str(uuid.uuid4()))[0])) if rank.count > 1 else None
        with ExitStack() as opened:
            if lead:
                formats = Formats(settings.release, released_graph(store, last.manifest.release if last else None))
                opened.enter_context(closing(formats))
                writer = CheckpointWriter(settings, store, lead.clients, recovered, formats, shares or NoPeers())
                publisher = BackgroundPublisher(settings, writer, committed, metrics.store_failed, ends)
            else:
                assert shares
                share_writer = ShareWriter(store, settings.run.id, last.manifest.parts if last else [])
                send = partial(shares.send, rank.index)
                publisher = BackgroundSharer(share_writer, send, sequence, metrics.store_failed, ends)
            shards = [
                OpenBatch(
                    source,
                    with_predictions(settings, lives.guarded(decoder)),
                    driver.progress.positions,
                    settings.batch,
                    stop,
                    rows=driver.progress.rows,
                    shards=parallel.shards,
                    outage=Outage(settings.kafka.give_up_s, stop, partial(wait_for, shard)),
                    alone=lives.alone,
                    # All records of a batch may become dead letters. The transaction's time-out is long enough
                    # for dead letters of `max_pending_bytes` in total.
                    max_bytes=min(MAX_BATCH_BYTES, settings.checkpoint.max_pending_bytes) // parallel.shards,
                )
                for shard, source in enumerate(sources)
            ]
            stream = batches(shards, parallel, settings.batch, stop)
            breaker = Breaker(settings.rejects, enabled=not accept_rejects)
            upkeep = Upkeep(settings.kafka, driver, inputs, lead.clients.election if lead else Led(), monitor)
            saves = Saves(settings.checkpoint, driver, publisher, upkeep, lives, parallel)
            worker = Worker(stream, driver, saves, upkeep, breaker, lives, gang.leave)
            log.info("learning", epoch=recovered.epoch, sequence=sequence, classes=len(driver.learner.labels))
            del recovered, last  # frees the memory of the fetched state
            parallel.take_traffic()  # discards the time that this rank stood by
            health.enter(Phase.LEARNING)
            any_rank(parallel, False)  # now all ranks have read the notes on earlier lives
            ends.lives = lives
            try:
                with lives.watched():
                    worker.loop()
            except KafkaUnavailableError as error:
                log.error(str(error))
                if lead:
                    lead.clients.election.close()
                ends(error.code)  # a normal exit would wait for the publisher, which may wait for Kafka
    except FencedError as error:
        log.error(str(error))
        ends(error.code)


def _check_alike(gang: Gang, arithmetic: Arithmetic) -> None:
    """Raise UsageError, on all ranks, if ranks compute on other hardware or software than rank 0."""
    made = from_ranks(gang.parallel, msgspec.to_builtins(arithmetic))
    if odd := next((rank for rank, other in enumerate(made) if other != made[0]), None):
        gang.leave()
        raise UsageError(
            f"rank {odd} computes with {made[odd]}, rank 0 with {made[0]}. The result would depend on which rank has "
            "which shard: run all ranks on machines of one kind, with the same settings and program"
        )


class Ends:
    """Ends the process. A rank that ends because another one did is no death that a record may have caused."""

    def __init__(self, end_process: EndProcess):
        self.lives: Lives | None = None
        self._end_process = end_process

    def __call__(self, code: ExitCode) -> None:
        if code is ExitCode.RANK and self.lives:
            self.lives.ended_with_others()
        self._end_process(code)


def resumed(settings: Settings, recovered: Recovered, parallel: Parallel) -> Driver:
    """Build the learner and its progress from the checkpoint, with the positions that this rank reads.

    Raises StateError when the checkpoint's state cannot be restored.
    """
    checkpoint = recovered.checkpoint
    positions, rows = (
        {t: {p: n for p, n in ps.items() if shard_of(settings, t, p) in parallel.local} for t, ps in places.items()}
        for places in (recovered.positions, recovered.rows)
    )
    if checkpoint is None:
        return Driver.fresh(settings, positions, parallel)
    state = checkpoint.tensors, checkpoint.document
    try:
        restored = checkpoint.parts, checkpoint.released, checkpoint.shards, parallel
        driver = Driver.resumed(settings, positions, state, *restored, rows)
    except ValueError as error:
        raise StateError(
            f"the state of checkpoint {checkpoint.manifest.sequence} cannot be restored: {error}. Restore the object "
            "from a backup, or choose a new run.id"
        ) from None
    if retired := driver.learner.retired:
        log.info("[labels] has retired classes", classes=dict(islice(retired.items(), MOST_SHOWN)))
    return driver
