"""The worker's loop with stand-ins for its collaborators."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any, cast

from prometheus_client import CollectorRegistry

from stream_learner.config import Settings
from stream_learner.contract.figures import Figures
from stream_learner.contract.spans import Positions, Span
from stream_learner.contract.vocabulary import Reason, Split
from stream_learner.formats.record import Record, Rejection
from stream_learner.learning.gauges import Gauges
from stream_learner.learning.parallel import Parallel
from stream_learner.monitoring.health import Health, Phase
from stream_learner.monitoring.metrics import Metrics
from stream_learner.monitoring.monitor import Monitor
from stream_learner.monitoring.report import Report
from stream_learner.publishing.snapshot import Interval
from stream_learner.run.batch import Batch
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

    def __init__(self, release_every: float, parallel: Parallel):
        self.labels = ["cat", "dog"]
        self.parallel = parallel
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
        self.served = None
        self._events = events

    def learn(self, batch: Batch) -> Report:
        self._events.append("learn")
        report = Report(
            batch.spans,
            batch.records,
            Figures(samples={Split.TRAIN: batch.training}),
            pieces=[batch.pieces],
            rejections=batch.rejections,
        )
        self.progress.add(report)
        self.learner.since_decision += batch.records
        return report

    def decide(self) -> None:
        self._events.append("decide")
        self.learner.since_decision = 0

    def snapshot(self, decided: None) -> SimpleNamespace:
        del decided
        return SimpleNamespace(interval=self.progress.close(), positions=self.progress.positions)


class Publisher:
    """Publishes at once, or when it is waited for."""

    def __init__(self, events: list[str], busy: bool = False):
        self.published: list[Interval] = []
        self.lag: Positions = {}
        self.idle = True
        self._events = events
        self._busy = busy

    def submit(self, snapshot: SimpleNamespace, lag: Positions) -> None:
        assert self.idle
        self._events.append("save")
        self.published.append(snapshot.interval)
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

    def committed(self, positions: Positions) -> None: ...


class Loop:
    """A worker and what it did."""

    def __init__(
        self,
        stream: Iterable[list[Batch]],
        release_every: float = NEVER,
        busy: bool = False,
        accept_rejects: bool = False,
        parallel: Parallel | None = None,
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
        self.learner = Learner(release_every, parallel or Parallel())
        self.driver = Driver(self.learner, self.events)
        self.publisher = Publisher(self.events, busy)
        self.election = Election()
        self.registry = CollectorRegistry()
        self.oldest_ms: dict[int, int | None] = {0: NOW_MS, 1: BEFORE_MS}
        self.ends: Positions = {"images": {0: 100, 1: 7}}
        self.clock = Clock()
        self.health = Health(live_timeout_s=15, clock=self.clock)
        self.health.enter(Phase.LEARNING)
        source = SimpleNamespace(
            ends=lambda: self.ends,
            starts=lambda: {"images": {0: 3}},
            unanswered=("", 0.0),
            oldest_ms=lambda _, partition: self.oldest_ms[partition],
        )
        driver, lives = cast(Any, self.driver), cast(Any, Lives())
        monitor = Monitor(self.health, Metrics(self.registry, "1.2.3"))
        self.upkeep = Upkeep(settings.kafka, driver, cast(Any, source), cast(Any, self.election), monitor)
        publisher = cast(Any, self.publisher)
        saving = Saves(settings.checkpoint, driver, publisher, self.upkeep, lives, self.learner.parallel)
        breaker = Breaker(settings.rejects, enabled=not accept_rejects)
        self.worker = Worker(stream, driver, saving, self.upkeep, breaker, lives, lambda: None)

    def run(self) -> list[str]:
        self.worker.loop()
        return self.events

    @property
    def saved(self) -> list[int]:
        """Records in each save."""
        return [closed.tally.read.records for closed in self.publisher.published]


def batch(start: int, rejected: int = 0, value: bytes = b"") -> Batch:
    record = Record("images", 0, start, NOW_MS, None, value, [])
    return Batch(
        rejections=[Rejection(record, Reason.NO_LABEL, "decode", "")] * rejected,
        spans={"images": {0: Span(start, start + BATCH)}},
        records=BATCH,
        training=BATCH - rejected,
    )


def stream(count: int, **rest: Any) -> list[list[Batch]]:
    return [[batch(BATCH * i, **rest)] for i in range(count)]
