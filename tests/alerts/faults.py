"""Real faults of real workers, and the alerts that each must fire."""

import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import child
from confluent_kafka import Producer
from confluent_kafka.admin._config import AlterConfigOpType, ConfigEntry, ConfigResource
from feed import Draft, client, good, mixed, send
from hanging import MARK
from harness import Run, Worker
from prometheus import Prometheus

from stream_learner.local.broker import Broker, free_port

PACE = 60  # records a second
DEADLINE_S = 240.0
LONGEST_RULE_S = 45 * 60.0
POLL_S = 0.2
# Deletes old segments every second, not every five minutes.
PROPERTIES = """
log.retention.check.interval.ms=1000
log.segment.delete.delay.ms=1000
"""
RETENTION_S = 60


class Feeder:
    """Feeds a run on a thread of its own until closed, at a pace and from an iterator that may be replaced."""

    def __init__(self, run: Run, drafts: Iterator[Draft], per_s: float = PACE):
        self.drafts = drafts
        self.per_s = per_s
        self._run = run
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._feed)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _feed(self) -> None:
        producer = Producer(client(self._run.broker.bootstrap_servers))
        due, last = 0.0, time.monotonic()
        while not self._stop.wait(POLL_S):
            now = time.monotonic()
            due, last = due + (now - last) * self.per_s, now
            send(producer, self._run.input, islice(self.drafts, int(due)), self._run.partitions)
            due %= 1
        producer.flush()


@dataclass
class Stage:
    """A broker, a Prometheus with rules `factor` times as fast, and runs that it scrapes."""

    broker: Broker
    folder: Path
    prometheus: Prometheus
    factor: float
    seconds: dict[str, float] = field(default_factory=dict)
    """From a fault to its alert."""

    @contextmanager
    def run(self, name: str, broker: Broker | None = None, **settings: Any) -> Iterator[Run]:
        """Return a run with topics and a store of its own. Settings are keyword arguments, `section__key`."""
        overrides: dict[str, Any] = {
            "checkpoint.every_s": max(0.5, 30 / self.factor),
            "kafka.request_timeout_s": max(3.0, 30 / self.factor),
            "monitoring.port": free_port(),
            **{key.replace("__", ".", 1): value for key, value in settings.items()},
        }
        self.prometheus.scrape(overrides["monitoring.port"])
        run = Run(broker or self.broker, self.folder / f"{self.folder.name}-{name}", overrides=overrides)
        with closing(run):
            yield run

    def well(self, run: Run, worker: Worker, records: int = 5 * PACE) -> None:
        """Return once a worker has learned and saved. No alert may fire by then."""
        worker.reaches("records_learned_total", records)
        worker.reaches("checkpoint_sequence", 1)
        self.until("series of the run", lambda: self.prometheus.query(f'stream_learner_steps_total{{run="{run.id}"}}'))
        assert not self.prometheus.firing(run.id)

    def fires(self, run: Run, *names: str, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Return once these alerts have fired for a run."""
        began, awaited = time.monotonic(), set(names)

        def all_fired() -> bool:
            meanwhile()
            for name in self.prometheus.firing(run.id) & awaited:
                awaited.remove(name)
                self.seconds[name] = round(time.monotonic() - began, 1)
            return not awaited

        self.until(f"{', '.join(names)} for {run.id}", all_fired)

    def until(self, what: str, condition: Callable[[], object]) -> None:
        limit_s = DEADLINE_S + LONGEST_RULE_S / self.factor
        deadline = time.monotonic() + limit_s
        while not condition():
            alerts = self.prometheus.query("ALERTS")
            assert time.monotonic() < deadline, f"no {what} in {limit_s:g} s; alerts: {alerts}"
            time.sleep(POLL_S)


def killed(stage: Stage) -> None:
    with stage.run("killed") as run, closing(Feeder(run, endless())):
        worker = run.start()
        stage.well(run, worker)
        worker.kill()
        stage.fires(run, "StreamLearnerDown")


def hung(stage: Stage) -> None:
    """Everything is learned and saved when the worker's loop hangs at a record."""
    settings = {"input__format": "hanging:Hanging", "monitoring__live_timeout_s": max(5.0, 120 / stage.factor)}
    with stage.run("hung", **settings) as run:
        worker = run.start_altered(child.with_modules, Path(__file__).parent)
        with closing(Feeder(run, endless())):
            stage.well(run, worker)
        worker.until("nothing unsaved", lambda: [*worker.metric("unsaved_records").values()] == [0])
        run.feed(draft._replace(key=MARK) for draft in good(1))
        stage.fires(run, "StreamLearnerDown")


def held_up(stage: Stage) -> None:
    """A producer's transaction stays open, so that no record behind it may be read."""
    with stage.run("held-up") as run, closing(Feeder(run, endless())):
        stage.well(run, run.start())
        producer = Producer(client(stage.broker.bootstrap_servers) | {"transactional.id": f"{run.id}.producer"})
        producer.init_transactions()
        producer.begin_transaction()
        producer.produce(run.input, b"", partition=0)
        producer.flush()
        stage.fires(run, "StreamLearnerNotLearning")
        producer.abort_transaction()


def store_gone(stage: Stage) -> None:
    with stage.run("store-gone") as run, closing(Feeder(run, endless())):
        stage.well(run, run.start())
        run.store.rename(run.folder / "elsewhere")
        run.store.touch()
        stage.fires(run, "StreamLearnerNotSaving")


def broker_frozen(stage: Stage) -> None:
    """SIGSTOP: connections stay open and nothing answers."""
    with Broker(stage.folder / "frozen") as broker, stage.run("broker-frozen", broker) as run:
        with closing(Feeder(run, endless())):
            stage.well(run, run.start())
        broker.freeze()
        stage.fires(run, "StreamLearnerKafkaLost")
        run.close()


def bad_records(stage: Stage) -> None:
    with stage.run("bad-records") as run, closing(Feeder(run, endless())) as feeder:
        stage.well(run, run.start())
        feeder.drafts = mixed(100_000)
        stage.fires(run, "StreamLearnerRejectRatio")


def too_fast(stage: Stage) -> None:
    """Feed twice as many records as the worker learns to a topic that keeps them for a minute."""
    with stage.run("too-fast", learning__steps_per_batch=20) as run, closing(Feeder(run, endless())) as feeder:
        configure(run, "segment.ms", "1000")
        configure(run, "retention.ms", str(1000 * RETENTION_S))
        worker = run.start()
        stage.well(run, worker)
        began, reached = time.monotonic(), position(worker)

        def feed_twice_as_fast() -> None:
            pace = (position(worker) - reached) / (time.monotonic() - began)
            feeder.per_s = max(PACE, 2 * pace)

        stage.fires(run, "StreamLearnerLagGrowing", "StreamLearnerRetentionRisk", meanwhile=feed_twice_as_fast)


def wrong_labels(stage: Stage) -> None:
    """Feed wrong labels, which ruin a model without a memory. Validation samples keep their labels."""
    settings = {"learning__strategy": "finetune", "learning__average_decay": 0.9, "release__every_records": 300}
    with stage.run("wrong-labels", **settings) as run, closing(Feeder(run, endless(), 2 * PACE)) as feeder:
        stage.well(run, run.start(), 40 * PACE)
        feeder.drafts = mislabelled(feeder.drafts)
        stage.fires(run, "StreamLearnerReleaseRefused", "StreamLearnerAccuracyDrop")


def kill_loop(stage: Stage) -> None:
    with stage.run("kill-loop") as run, closing(Feeder(run, endless())):
        starts: set[float] = set()

        def is_new() -> bool:
            seen = {start for _, start in stage.prometheus.query(f'process_start_time_seconds{{run="{run.id}"}}')}
            new = bool(seen - starts)
            starts.update(seen)
            return new

        def kill_once_scraped() -> None:
            worker = run.start()
            stage.until("scrape of a new process", is_new)
            worker.kill()

        kill_once_scraped()
        stage.fires(run, "StreamLearnerRestartLoop", meanwhile=kill_once_scraped)


FAULTS = [killed, hung, held_up, store_gone, broker_frozen, bad_records, too_fast, wrong_labels, kill_loop]


def fire(stage: Stage, faults: Iterable[Callable[[Stage], None]]) -> None:
    """One fault after the other, beside a run that is well: its alerts must stay silent."""
    with ExitStack() as stack:
        bystander = stack.enter_context(stage.run("bystander"))
        stack.enter_context(closing(Feeder(bystander, endless(), PACE / 6)))
        stage.well(bystander, bystander.start(), PACE)
        for fault in faults:
            fault(stage)
        assert not {name for name, run in stage.prometheus.fired() if run == bystander.id}


def endless() -> Iterator[Draft]:
    return good(10**9)


def mislabelled(drafts: Iterator[Draft]) -> Iterator[Draft]:
    """Drafts whose training samples have any label."""
    chance = random.Random(0)
    for draft in drafts:
        if draft.fate == "train":
            headers = dict(draft.headers) | {"label": str(chance.randrange(10)).encode()}
            yield draft._replace(headers=[*headers.items()])
        else:
            yield draft


def position(worker: Worker) -> float:
    return sum(worker.metric("position").values())


def configure(run: Run, name: str, value: str) -> None:
    """Set a config of the input topic."""
    entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, run.input, incremental_configs=[entry])
    run.admin.incremental_alter_configs([resource])[resource].result(DEADLINE_S)
