"""The worker's loop with stand-ins for its collaborators: when it saves, when it waits, and how it ends."""

import inspect
import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from stream_learner.config import Settings
from stream_learner.contract.figures import Figures
from stream_learner.contract.ledger import Piece
from stream_learner.contract.spans import Positions, Span
from stream_learner.contract.vocabulary import Reason, Split
from stream_learner.errors import DivergedError, ExitCode, FencedError, KafkaUnavailableError, RejectsError, UsageError
from stream_learner.formats.record import Record, Rejection
from stream_learner.learning.gauges import Gauges
from stream_learner.monitoring.health import Health, Phase
from stream_learner.monitoring.metrics import Metrics
from stream_learner.monitoring.monitor import Monitor
from stream_learner.monitoring.report import Report
from stream_learner.publishing.snapshot import Interval
from stream_learner.run import saves, worker
from stream_learner.run.batches import Batch
from stream_learner.run.breaker import Breaker
from stream_learner.run.progress import Progress
from stream_learner.run.saves import Saves
from stream_learner.run.upkeep import Upkeep
from stream_learner.run.worker import Worker

NEVER, ALWAYS = 1e9, 1e-9  # checkpoint.every_s
BATCH = 10  # records
NOW_MS = 1_700_000_000_000
BEFORE_MS = NOW_MS - 10**9


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Learner:
    """Shows figures, and is due for a release after every `release_every` records."""

    def __init__(self, release_every: float = NEVER):
        self.labels = ["cat", "dog"]
        self.diverged = False
        self.few: list[dict[Split, float]] = []  # of each decision to come
        self.since_decision = 0
        self._release_every = release_every

    @property
    def release_due(self) -> bool:
        return self.since_decision >= self._release_every

    def few_groups(self) -> dict[Split, float]:
        return self.few.pop(0) if self.few else {}

    def gauges(self) -> Gauges:
        return Gauges({"cat": 3}, 12, recent=None, drift_window=0, boosted=False, refused=0)


class Driver:
    """Counts offsets as the real one does."""

    def __init__(self, learner: Learner, events: list[str]):
        self.learner = learner
        self.progress = Progress({"images": {0: 0}})
        self._events = events

    def learn(self, batch: Batch) -> Report:
        self._events.append("learn" if batch.records else "idle")
        report = Report(
            batch.spans,
            batch.records,
            Figures(samples={Split.TRAIN: batch.training}),
            pieces=batch.pieces,
            rejections=batch.rejections,
        )
        self.progress.add(report)
        self.learner.since_decision += batch.records
        return report

    def decide(self) -> None:
        self._events.append("decide")
        self.learner.since_decision = 0

    def snapshot(self, decided: None) -> Interval:
        del decided
        return self.progress.close()


class Publisher:
    """Publishes at once, or when it is waited for."""

    def __init__(self, events: list[str], busy: bool = False):
        self.published: list[Interval] = []
        self.lag: Positions = {}
        self.idle = True
        self._events = events
        self._busy = busy

    @property
    def unsaved_records(self) -> int:
        return 0 if self.idle else self.published[-1].tally.records

    def submit(self, snapshot: Interval, lag: Positions) -> None:
        assert self.idle
        self._events.append("save")
        self.published.append(snapshot)
        self.lag = lag
        self.idle = not self._busy

    def wait(self, meanwhile: Callable[[], None]) -> None:
        meanwhile()
        if not self.idle:
            self._events.append("wait")
        self.idle = True


class Election:
    def __init__(self):
        self.elected = True
        self.polls = 0

    def poll(self) -> None:
        self.polls += 1


class Lives:
    """A first life."""

    careful = False

    def suspecting(self, places: list[tuple[str, int, int]]) -> AbstractContextManager[None]:
        del places
        return nullcontext()


class Loop:
    """A worker and what it did."""

    def __init__(
        self,
        batches: Iterable[Batch],
        release_every: float = NEVER,
        busy: bool = False,
        accept_rejects: bool = False,
        **checkpoint: Any,
    ):
        settings = Settings.model_validate(
            {
                "run": {"id": "digits"},
                "input": {"topics": ["images"]},
                "checkpoint": {"every_s": NEVER} | checkpoint,
                "rejects": {"window": 20, "max_share": 0.5},
            }
        )
        self.events: list[str] = []
        self.learner = Learner(release_every)
        self.driver = Driver(self.learner, self.events)
        self.publisher = Publisher(self.events, busy)
        self.election = Election()
        self.registry = CollectorRegistry()
        self.oldest_ms: dict[int, int | None] = {0: NOW_MS, 1: BEFORE_MS}
        self.clock = Clock()
        self.health = Health(live_timeout_s=15, clock=self.clock)
        self.health.enter(Phase.LEARNING)
        source = SimpleNamespace(
            ends=lambda: {"images": {0: 100, 1: 7}},
            starts=lambda: {"images": {0: 3}},
            unanswered=("", 0.0),
            oldest_ms=lambda _, partition: self.oldest_ms[partition],
        )
        driver, lives = cast(Any, self.driver), cast(Any, Lives())
        monitor = Monitor(self.health, Metrics(self.registry, "1.2.3"))
        self.upkeep = Upkeep(settings.kafka, driver, cast(Any, source), cast(Any, self.election), monitor)
        saving = Saves(settings.checkpoint, driver, cast(Any, self.publisher), self.upkeep, lives)
        breaker = Breaker(settings.rejects, enabled=not accept_rejects)
        self.worker = Worker(batches, driver, saving, self.upkeep, breaker, lives)

    def run(self) -> list[str]:
        self.worker.loop()
        return self.events

    @property
    def saved(self) -> list[int]:
        """Records in each save."""
        return [closed.tally.records for closed in self.publisher.published]


def batch(start: int, rejected: int = 0, value: bytes = b"") -> Batch:
    record = Record("images", 0, start, NOW_MS, None, value, [])
    return Batch(
        rejections=[Rejection(record, Reason.NO_LABEL, "decode", "")] * rejected,
        spans={"images": {0: Span(start, start + BATCH)}},
        records=BATCH,
        training=BATCH - rejected,
    )


def stream(count: int, **rest: Any) -> list[Batch]:
    return [batch(BATCH * i, **rest) for i in range(count)]


def test_what_is_left_is_saved_at_the_end():
    loop = Loop(stream(3))
    with capture_logs() as logs:
        assert loop.run() == ["learn", "learn", "learn", "save"]
    assert loop.saved == [30]
    assert loop.driver.progress.empty
    assert [(entry["event"], entry["unsaved_records"]) for entry in logs] == [("stopping after a last save", 30)]


def test_nothing_learned_is_nothing_to_save():
    assert Loop([]).run() == []
    assert Loop([Batch(), Batch()], every_s=ALWAYS).run() == ["idle", "idle"]


def test_a_release_falls_on_its_batch_and_the_save_follows():
    loop = Loop(stream(5), release_every=20)
    assert loop.run() == ["learn", "learn", "decide", "save", "learn", "learn", "decide", "save", "learn", "save"]
    assert loop.saved == [20, 20, 10]


def test_a_release_waits_for_the_publisher():
    loop = Loop(stream(2), release_every=10, busy=True)
    assert loop.run() == ["learn", "decide", "save", "learn", "wait", "decide", "save", "wait"]


def test_a_held_out_set_of_few_groups_is_warned_of_once_until_it_changes():
    loop = Loop(stream(5), release_every=10)
    loop.learner.few = [{Split.TEST: 0.9}, {Split.TEST: 0.8}, {}, {Split.TEST: 0.7, Split.VALIDATION: 0.6}]
    with capture_logs() as logs:
        loop.run()
    warnings = [(entry["split"], entry["share"]) for entry in logs if entry["log_level"] == "warning"]
    assert warnings == [("test", 0.9), ("test", 0.7), ("validation", 0.6)]


def test_saves_by_count():
    assert Loop(stream(5), every_records=20).run() == ["learn", "learn", "save"] * 2 + ["learn", "save"]


def test_saves_by_the_clock():
    loop = Loop([batch(0), Batch(), batch(10)], every_s=ALWAYS)
    assert loop.run() == ["learn", "save", "idle", "learn", "save"]


def test_training_goes_on_while_a_save_is_published():
    loop = Loop(stream(5), busy=True, every_s=ALWAYS, every_records=10)
    assert loop.run() == ["learn", "save", "learn", "learn", "learn", "learn", "wait", "save", "wait"]
    assert loop.saved == [10, 40]


def test_it_stops_reading_rather_than_outrun_what_can_be_saved():
    loop = Loop(stream(6), busy=True, every_records=10, max_unsaved_records=40)
    assert loop.run() == [
        *("learn", "save"),
        *("learn", "learn", "learn", "wait", "save"),  # 10 in flight and 30 open
        *("learn", "wait", "save"),
        *("learn", "wait", "save", "wait"),
    ]


def test_dead_letters_that_grow_too_many_force_a_save():
    loop = Loop(stream(4, rejected=1, value=bytes(3000)), busy=True, every_records=10, max_pending_bytes=8000)
    assert loop.run() == ["learn", "save", "learn", "learn", "wait", "save", "learn", "wait", "save", "wait"]
    assert [len(closed.dead_letters) for closed in loop.publisher.published] == [1, 2, 1]


def test_a_ledger_that_grows_too_long_forces_a_save(monkeypatch):
    monkeypatch.setattr(saves, "MAX_ENTRIES", 25)
    loop = Loop([replace(b, pieces=[Piece("images", 0, 1)] * 10) for b in stream(6)], busy=True)
    assert loop.run() == ["learn", "learn", "learn", "save", "learn", "learn", "learn", "wait", "save", "wait"]


def test_too_many_rejects_are_saved_before_they_stop_it():
    loop = Loop(stream(9, rejected=6), busy=True)
    with pytest.raises(RejectsError, match=r"60% of the last records were rejected, over rejects\.max_share = 50%"):
        loop.run()
    assert loop.events == ["learn", "learn", "save", "wait"]
    assert len(loop.publisher.published[0].dead_letters) == 12
    assert RejectsError.code is ExitCode.REJECTS


def test_accepted_rejects_do_not_stop_it():
    assert Loop(stream(4, rejected=10), accept_rejects=True).run() == ["learn"] * 4 + ["save"]


def test_a_divergence_is_saved_before_it_stops_it():
    loop = Loop(stream(9), busy=True)

    def diverging() -> Iterable[Batch]:
        for i, b in enumerate(stream(9)):
            loop.learner.diverged = i == 2
            yield b

    loop.worker.stream = diverging()
    with pytest.raises(DivergedError, match="three batches in a row"):
        loop.run()
    assert loop.events == ["learn", "learn", "learn", "save", "wait"]


def test_an_error_while_learning_saves_nothing():
    loop = Loop([batch(0), batch(20)])
    with pytest.raises(ValueError, match="offset 10 comes next"):
        loop.run()
    assert loop.events == ["learn", "learn"]


def test_a_device_that_fails_ends_a_worker_before_it_takes_part(monkeypatch):
    def busy(*_: Any) -> None:
        raise UsageError("learning.device = 'cuda' cannot be used: busy")

    monkeypatch.setattr(worker, "place", busy)
    monkeypatch.setattr(worker, "await_turn", lambda *_: pytest.fail("another worker was disturbed"))
    nothing = cast(Any, None)
    settings = Settings.model_validate({"run": {"id": "digits"}, "input": {"topics": ["images"]}})
    arguments = inspect.signature(worker.run).parameters
    given: dict[str, Any] = dict.fromkeys(
        [name for name, p in arguments.items() if p.kind is not p.KEYWORD_ONLY], nothing
    )
    with pytest.raises(UsageError, match="busy"):
        cast(Any, worker.run)(**(given | {"settings": settings}))


def test_a_worker_that_was_replaced_learns_and_saves_no_more():
    loop = Loop([])

    def replaced() -> Iterable[Batch]:
        yield batch(0)
        loop.election.elected = False
        loop.upkeep.tended_at = -NEVER  # a second later
        yield batch(10)
        raise AssertionError

    loop.worker.stream = replaced()
    with pytest.raises(FencedError, match="another worker was elected"):
        loop.run()
    assert loop.events == ["learn", "learn"]
    assert loop.election.polls == 2


def test_a_worker_that_hears_nothing_from_kafka_gives_up():
    loop = Loop([])

    def cut_off() -> Iterable[Batch]:
        yield batch(0)
        for silence_s, expected in ((600, None), (601, "kafka.give_up_s = 600")):
            loop.clock.now = silence_s
            loop.upkeep.tended_at = -NEVER  # a second later
            if expected:
                with pytest.raises(KafkaUnavailableError, match=expected):
                    loop.upkeep.tend(0)
            else:
                loop.upkeep.tend(0)
        loop.health.heard("metadata")

    loop.worker.stream = cut_off()
    assert loop.run() == ["learn", "save"]


def test_every_turn_and_every_wait_is_a_heartbeat():
    loop = Loop([])

    def slow() -> Iterable[Batch]:
        for b in [batch(0), Batch(), batch(10)]:
            loop.clock.now += 10
            yield b
            assert loop.health.why_not_live() is None
        loop.clock.now += 1000

    loop.worker.stream = slow()
    loop.run()
    assert loop.health.why_not_live() is None  # the last save was waited for


def test_lag_and_memory_are_told():
    loop = Loop(stream(1))
    loop.run()
    assert loop.publisher.lag == {"images": {0: 90, 1: 7}}

    def value(name: str, **labels: str) -> float | None:
        return loop.registry.get_sample_value(f"stream_learner_{name}", labels)

    assert value("lag_records", topic="images", partition="0") == 90
    assert value("lag_records", topic="images", partition="1") == 7
    assert value("lag_seconds", topic="images", partition="0") == pytest.approx(time.time() - NOW_MS / 1000, abs=60)
    assert value("lag_seconds", topic="images", partition="1") == pytest.approx(time.time() - BEFORE_MS / 1000, abs=60)
    assert value("memory_items", label="cat") == 3
    assert value("memory_items", label="dog") is None  # held out alone
    assert value("memory_bytes") == 12
    assert value("records_in_total") == 10


@pytest.mark.parametrize("oldest_ms", [None, -1, 0, 2**62, 2 * NOW_MS])
def test_a_lag_whose_time_is_not_known_is_not_zero(oldest_ms: int | None):
    loop = Loop(stream(1))
    loop.oldest_ms[1] = oldest_ms
    loop.run()
    lag_s = loop.registry.get_sample_value("stream_learner_lag_seconds", {"topic": "images", "partition": "1"})
    assert lag_s is not None
    assert math.isnan(lag_s)


def test_a_partition_that_was_read_to_its_end_has_no_lag():
    loop = Loop(stream(11))
    loop.run()
    assert loop.upkeep.lag() == {"images": {0: 0, 1: 7}}
