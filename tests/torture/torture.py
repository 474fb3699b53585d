"""Torture test: kills a run's worker many times, and lets the checker inspect the result.

Each life gets some good and bad records, and ends at a named point of the protocol or at a random time. A seed decides
everything. Named points are reached by wrapping the worker's collaborators in its process (see `child`). The worker
itself does not know them.
"""

import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import checker
import outputs
from checker import Violation
from child import Point
from feed import Draft, flipped, good, mixed, whole_batches
from harness import POLL_S, UNKNOWN_OUTCOME, Run, Worker
from lives import FIRST, FIRST_OF_ONE_PARTITION, POINTS, AtMoment, AtPoint, Life, Relay, Zombie, draw
from pictures import Pictures
from served_predictions import Forecast, check_served, forecast, send, with_id

from stream_learner.local.broker import Broker

KILLED = (-signal.SIGKILL, -signal.SIGXFSZ)
# A worker that has saved all it learned, and has logged nothing for so long, has nothing left to publish.
IDLE_S = 8.0
IDLE = "idle, short of its point"
BATCH = 16
GOOD = (None, *checker.SPLITS)
# Images whose predictions are published before the first life. All of them are read before their labels.
PREDICTED = 2_000
# Records of a message that holds many. Neither batches nor saves end with messages.
ROWS = 37


@dataclass
class Report:
    """Results of all lives. Every loss and repetition is also a violation.

    `inside` is the number of manifests whose positions are inside messages.
    """

    kills: int = 0
    by_point: Counter[str] = field(default_factory=Counter)
    records: int = 0
    manifests: int = 0
    releases: int = 0
    roll_backs: int = 0
    discarded: int = 0
    inside: int = 0
    lost: int = 0
    twice: int = 0
    violations: list[str] = field(default_factory=list)

    def killed(self, name: str) -> None:
        self.kills += 1
        self.by_point[name] += 1

    def add(self, violations: Iterable[Violation]) -> None:
        for violation in violations:
            self.lost += violation.lost
            self.twice += violation.twice
            self.violations.append(violation.what)

    def account(self, log: outputs.Log) -> None:
        self.manifests += len(log.history)
        self.releases += sum(manifest["released"] for manifest in log.manifests)
        self.roll_backs += len(outputs.roll_backs(log))
        self.discarded += outputs.discarded(log)
        self.inside += sum(bool(manifest["rows"]) for manifest in log.manifests)

    def failed(self, what: str, error: Exception) -> None:
        """Note a worker that failed."""
        self.violations.append(f"{what}: {str(error).splitlines()[0]}")


@dataclass
class Victim:
    """A run and its lives. Each life gets an equal share of `drafts`."""

    run: Run
    drafts: list[Draft]
    report: Report
    newest: outputs.Read | None = None
    began_s: float = field(default_factory=time.time)
    forecasts: list[Forecast] = field(default_factory=list)

    def suffer(self, lives: list[Life], on_life: Callable[[], None]) -> outputs.Log | None:
        """Run and kill all lives, then learn the rest. Return the checked output, or None if that failed."""
        self._predict()
        *shares, rest = _deal(self.drafts, len(lives) + 1)
        for number, (life, share) in enumerate(zip(lives, shares, strict=True)):
            fed = len(self.run.fed)
            try:
                self.report.killed(self._live(life, share))
            except (AssertionError, OSError) as error:
                self.report.failed(f"life {number}, {life}, {self.run.workers[-1].log.name}", error)
                self.run.feed(share[len(self.run.fed) - fed :])
            self.run.close()
            self._inspect()
            on_life()
        try:
            self.run.feed(rest)
            worker = self.run.start()
            self.run.learned(worker)
            worker.stop()
            log = self.run.published()
        except AssertionError as error:
            self.report.failed("the last life", error)
            self.run.close()
            return None
        self.report.account(log)
        self.report.add(checker.violations(log, self.run.fed))
        self.report.add(checker.check_drained(log, self.run.fed))
        self.report.add(check_served(log, self.run.fed, self.forecasts, f"{self.run.prefix}.predictions"))
        return log

    def _predict(self) -> None:
        """Publish a prediction of each image that has an id, with timestamps before the first record's."""
        first_ms = int(self.began_s * 1000) - len(self.drafts) - len(self.run.fed)
        for draft in [*self.drafts, *(fed.draft for fed in self.run.fed)]:
            headers = dict(draft.headers)
            if (id_ := headers.get("id")) and draft.fate in GOOD:
                number = len(self.forecasts)
                label = headers["label"].decode() if number % 3 else "wrong"
                self.forecasts.append(forecast(self.run.id, id_.decode(), 1 + number % 2, label, first_ms + number))
        send(self.run.broker.bootstrap_servers, f"{self.run.prefix}.predictions", self.forecasts)
        self.run.predictions = len(self.forecasts)

    def _live(self, life: Life, share: list[Draft]) -> str:
        """Run one life. Return the name under which it is counted."""
        match life:
            case AtPoint(name, point):
                self.run.feed(share)
                worker = self.run.start_signalled(point)
                if _falls_idle(worker):
                    _kill(worker)
                    return IDLE
                worker.ends(*KILLED)
                return name
            case AtMoment(name, after_s):
                self.run.feed(share)
                _kill(self.run.start(), after_s)
                return name
            case Zombie(name, point, after_s):
                owner = self._outlive(point, share)
                time.sleep(after_s)
                if owner.poll() is not None:  # a zombie may cost it one restart
                    owner.ends(*UNKNOWN_OUTCOME)
                    owner = self.run.start()
                _kill(owner)
                return name
            case Relay(name, after_s):
                self._relay(after_s, share)
                return name

    def _relay(self, after_s: float, share: list[Draft]) -> None:
        active = self.run.start()
        active.learning()
        standby = self.run.start("--set", "run.on_conflict=standby")
        standby.until("standby", lambda: "standing by" in standby.text())
        before, after = _deal(share, 2)
        self.run.feed(before)
        _kill(active, after_s)
        seen = self._look()
        self.run.feed(after)
        standby.until("a publication", lambda: self._look() != seen)
        standby.stop()

    def _outlive(self, point: Point, share: list[Draft]) -> Worker:
        """Stop a worker at a point, let another take over, and wake the first, which must end. Return the other."""
        before, meanwhile, after = _deal(share, 3)
        self.run.feed(before)
        zombie = self.run.start_signalled(point, signal.SIGSTOP)
        zombie.paused()
        self.run.feed(meanwhile)
        seen = self._look()
        owner = self.run.start()
        owner.until("a publication", lambda: self._look() != seen)
        zombie.signal(signal.SIGCONT)
        self.run.feed(after)
        zombie.ends(*UNKNOWN_OUTCOME)
        return owner

    def _look(self) -> outputs.Read | None:
        """Return the record of the newest manifest."""
        for read in self.run.read("checkpoints", self.newest.offset if self.newest else 0):
            self.newest = read
        return self.newest

    def _inspect(self) -> None:
        """Check that everything that the newest manifest names is present."""
        newest = self._look()
        if newest:
            manifest = json.loads(newest.value or b"")
            self.report.add(checker.check_objects(manifest, outputs.objects([manifest])))
            self.report.add(checker.check_chunks(manifest, self.run.read("weights")))


def _falls_idle(worker: Worker) -> bool:
    """Wait until the worker has no work left. Return False if it ended before."""
    text, since = worker.text(), time.monotonic()
    while worker.poll() is None:
        if worker.text() != text:
            text, since = worker.text(), time.monotonic()
        if time.monotonic() - since > IDLE_S and _saved_all(worker):
            return True
        time.sleep(POLL_S)
    return False


def _saved_all(worker: Worker) -> bool:
    """Return whether the worker has learned something since its start, and all of it is published."""
    return list(worker.metric("unsaved_records").values()) == [0] and bool(worker.metric("position"))


def _kill(worker: Worker, after_s: float = 0.0) -> None:
    time.sleep(after_s)
    assert worker.poll() is None, f"ended with {worker.poll()} by itself"
    worker.kill()


def _deal(drafts: list[Draft], count: int) -> list[list[Draft]]:
    """Divide drafts into equal shares. The last share also takes the remainder."""
    share = len(drafts) // count
    return [*(drafts[i * share : (i + 1) * share] for i in range(count - 1)), drafts[(count - 1) * share :]]


def _with_ids(drafts: Iterable[Draft]) -> list[Draft]:
    """Give the first `PREDICTED` good records an id each."""
    return [
        with_id(draft, f"image-{i}") if i < PREDICTED and draft.fate in GOOD else draft
        for i, draft in enumerate(drafts)
    ]


def restless(seed: int, share: int) -> dict[str, Any]:
    """Return settings of a run that learns fast, and goes back as soon as it learned wrong labels.

    It also decides and saves often. `share` is the number of records of a life.
    """
    return {
        "run.seed": seed,
        "learning.learning_rate": 0.03,
        "learning.average_decay": 0.5,
        "release.every_records": max(50, share // 4),
        "release.max_drop": 0.05,
        "release.patience": 1,
        "checkpoint.every_records": max(50, share // 4),
        "checkpoint.every_s": 1.0,
    }


def torture(
    broker: Broker,
    folder: Path,
    kills: int,
    seed: int,
    records: int,
    pictures: Pictures,
    on_life: Callable[[], None],
    points: Collection[str] = POINTS.keys(),
    rows: int = 0,
) -> Report:
    """Kill a run of three partitions, then one of a single partition, which must learn the same as an unkilled one.

    Each life sees right labels, then wrong ones, so that training goes back to a release. The first run gets `records`.
    A tenth of the kills belongs to the second run, with additional records at the same rate. `points` are the points at
    which a worker is killed. Messages have `rows` records each; 0 for plain records. Everything is kept in `folder`, by
    the run's id.
    """
    random, report = Random(seed), Report()
    of_one = max(len(FIRST_OF_ONE_PARTITION), kills // 10)
    lives = draw(random, FIRST, kills - of_one, points), draw(random, FIRST_OF_ONE_PARTITION, of_one, points)
    share = records // len(lives[0])
    settings = (
        pictures.settings
        | restless(seed, share)
        | {
            "learning.steps_per_batch": 2,
            "checkpoint.keep": 1,
            # Small states: they are written often. So small a memory gives much up, and its segments are rewritten.
            "memory.max_items": 300,
            "held_out.max_items": 500,
            "served.evaluate": True,
        }
    )

    three = Run(broker, folder / f"torture-{seed}-three-partitions", 3, settings, rows=rows)
    Victim(three, _with_ids(flipped(mixed(records, seed, pictures.images), share)), report).suffer(lives[0], on_life)

    # Batches close only when they are full: wherever a life begins, they are the same.
    settings |= {"batch.size": BATCH, "batch.linger_s": 3600.0}
    killed = Run(broker, folder / f"torture-{seed}-one-partition", 1, settings, rows=rows)
    drafts = _with_ids(whole_batches(flipped(good(share * len(lives[1]), seed, pictures.images), share), BATCH))
    victim = Victim(killed, drafts, report)
    log = victim.suffer(lives[1], on_life)

    same_input = {"input.topics": [killed.input], "checkpoint.every_s": 3600.0, "checkpoint.every_records": records}
    unkilled = Run(broker, folder / f"torture-{seed}-unkilled", 1, settings | same_input, killed.fed, rows)
    expected = Victim(unkilled, [], report, began_s=victim.began_s).suffer([], on_life)
    if log and expected:
        report.add(checker.compare_states(log, expected))
        if not outputs.roll_backs(expected):
            report.add([Violation("training went back to no release")])
    report.records = len(three.fed) + len(killed.fed)
    return report
