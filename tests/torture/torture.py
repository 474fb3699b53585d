"""Torture test: kills a run's worker many times, and lets the checker inspect the result.

Each life gets some good and bad records, and ends at a named point of the protocol or at a random time. A seed decides
everything. Named points are reached by wrapping the worker's collaborators in its process (see `child`). The worker
itself does not know them.
"""

import io
import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import checker
import numpy as np
import outputs
from checker import Violation
from child import Point
from feed import Draft, Images, classes, flipped, good, mixed, png, whole_batches
from harness import POLL_S, UNKNOWN_OUTCOME, Run, Worker
from PIL import Image

from stream_learner.local.broker import Broker
from stream_learner.local.datasets import Dataset

KILLED = (-signal.SIGKILL, -signal.SIGXFSZ)
RANDOM_S = 3.0
AGAIN_S = 1.0
# A worker that has saved all it learned, and has logged nothing for so long, has nothing left to publish.
IDLE_S = 8.0
IDLE = "idle, short of its point"
BATCH = 16
PICTURES = 2000
MAX_SIDE_PX = 16

# What each is a call of, and how many calls every life makes that lives long enough.
EFFECTS = {
    "snapshot": ("driver", "snapshot", 2),
    "serialise": ("tensors", "encode", 3),
    "put": ("store", "put", 3),
    "flush": ("os", "fsync", 12),
    "begin": ("transaction", "begin", 2),
    "send": ("transaction", "send", 6),
    "confirm": ("transaction", "confirm", 6),
    "offsets": ("transaction", "offsets", 2),
    "commit": ("transaction", "commit", 2),
    "read back": ("read_back", "verify", 2),
    "delete": ("retention", "delete_dropped", 2),
}
LEARNING = {
    "decision": ("driver", "decide", 2),
    "roll-back": ("memory", "drop_since", 1),  # in the middle of it
}
RECOVERY = {
    "topics check": ("cluster", "check_topics", 1),
    "election": ("worker", "await_turn", 1),
    "reading the checkpoints": ("cluster", "newest_manifest", 2),
    "fetch": ("store", "fetch", 3),  # the newest state, the last release's, parts
    "fence": ("transaction", "fence", 1),
    "restore": ("learner", "_load", 1),
    "restore of the release": ("learner", "_load_released", 1),
}
POINTS = EFFECTS | LEARNING | RECOVERY


class AtPoint(NamedTuple):
    """Ends at a point of the protocol."""

    name: str
    point: Point


class AtMoment(NamedTuple):
    """Ends so many seconds after its start."""

    name: str
    after_s: float


class Zombie(NamedTuple):
    """Is stopped at a point, wakes when another has taken over and published, and must end by itself. The other is
    killed so many seconds later."""

    name: str
    point: Point
    after_s: float


class Relay(NamedTuple):
    """Is killed so many seconds after a standby joined it, which takes over and is stopped in order."""

    name: str
    after_s: float


Life = AtPoint | AtMoment | Zombie | Relay

# Of a run without a manifest, then without a marker. Later lives do not come there.
FIRST: list[Life] = [
    AtPoint("half put", Point("store", "put", half=True)),
    AtPoint("before commit", Point("transaction", "commit", before=True)),
    AtPoint("before write marker", Point("checkpoint_writer", "write_marker", before=True)),
    AtPoint("before write marker, recovering", Point("recover", "write_marker", before=True)),
    AtPoint("after write marker, recovering", Point("recover", "write_marker")),
]
FIRST_OF_ONE_PARTITION: list[Life] = [AtPoint("after write marker", Point("checkpoint_writer", "write_marker"))]


def draw(random: Random, first: list[Life], count: int, points: Collection[str]) -> list[Life]:
    """Return `count` lives: `first`, then hands with a life for each of `points` and each other kind. Each hand is
    shuffled, and its calls and moments are drawn again."""
    lives = list(first)
    hands = 0
    while len(lives) < count:
        # A point that one hand has before a call, the next one has after it.
        hand: list[Life] = [_at_point(random, name, (place + hands) % 2 == 0) for place, name in enumerate(points)]
        hand.append(AtPoint("half put", Point("store", "put", random.randint(1, 2), half=True)))
        hand += [AtMoment("at random", random.uniform(0, RANDOM_S)) for _ in range(2)]
        hand += [AtMoment("again within a second", random.uniform(0, AGAIN_S)) for _ in range(3)]
        hand += [_zombie(random), Relay("beside a standby", random.uniform(0, AGAIN_S))]
        random.shuffle(hand)
        lives += hand
        hands += 1
    return lives[:count]


def _at_point(random: Random, name: str, before: bool) -> AtPoint:
    collaborator, function, calls = POINTS[name]
    when = "before" if before else "after"
    return AtPoint(f"{when} {name}", Point(collaborator, function, random.randint(1, calls), before))


def _zombie(random: Random) -> Zombie:
    collaborator, function, _ = EFFECTS[random.choice([*EFFECTS])]
    point = Point(collaborator, function, before=random.random() < 0.5)
    return Zombie("beside a zombie", point, random.uniform(0, AGAIN_S))


class Pictures(NamedTuple):
    """What is fed, and the settings of a model for it."""

    images: Images
    settings: dict[str, Any]


def small_pictures(dataset: Dataset, random: Random) -> Pictures:
    """Some of a data set's pictures, of every class in turn, no larger than a cheap model needs."""
    height, width = min(dataset.height, MAX_SIDE_PX), min(dataset.width, MAX_SIDE_PX)
    of_class: dict[int, list[int]] = {}
    for index in random.sample(range(len(dataset)), len(dataset)):
        of_class.setdefault(dataset.targets[index], []).append(index)
    turns = [cycle(indices) for indices in of_class.values()]
    # Three of a class at a time: as `good` wants them.
    chosen = [next(turn) for _ in range(max(1, PICTURES // (3 * len(turns)))) for turn in turns for _ in range(3)]
    images = [(_shrunk(dataset[i].image, height, width, dataset.channels), dataset[i].label.encode()) for i in chosen]
    return Pictures(
        images,
        {
            "model.height": height,
            "model.width": width,
            "model.channels": dataset.channels,
            "model.max_classes": classes(images),
        },
    )


def _shrunk(image: bytes, height: int, width: int, channels: int) -> bytes:
    with Image.open(io.BytesIO(image)) as picture:
        return png(np.asarray(picture.convert("L" if channels == 1 else "RGB").resize((width, height))))


@dataclass
class Report:
    """What the lives came to. Every loss and repetition is among the violations, too."""

    kills: int = 0
    by_point: Counter[str] = field(default_factory=Counter)
    records: int = 0
    manifests: int = 0
    releases: int = 0
    roll_backs: int = 0
    discarded: int = 0
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

    def failed(self, what: str, error: Exception) -> None:
        """A worker that did not do what it had to."""
        self.violations.append(f"{what}: {str(error).splitlines()[0]}")


@dataclass
class Victim:
    """A run's lives, one after the other. `drafts` are dealt out to them in equal shares."""

    run: Run
    drafts: list[Draft]
    report: Report
    newest: outputs.Read | None = None

    def suffer(self, lives: list[Life], on_life: Callable[[], None]) -> outputs.Log | None:
        """Lives and dies so often, then learns the rest; what was published, checked. None when the rest could not be
        learned."""
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
        return log

    def _live(self, life: Life, share: list[Draft]) -> str:
        """One life; what it is counted as."""
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
        """A worker that took over from one that stopped at a point, and saw that one wake up and end."""
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
        """The newest manifest's record."""
        for read in self.run.read("checkpoints", self.newest.offset if self.newest else 0):
            self.newest = read
        return self.newest

    def _inspect(self) -> None:
        """All that the newest manifest names must be there, whatever the worker died of."""
        newest = self._look()
        if newest:
            manifest = json.loads(newest.value or b"")
            self.report.add(checker.check_objects(manifest, outputs.objects([manifest])))
            self.report.add(checker.check_chunks(manifest, self.run.read("weights")))


def _falls_idle(worker: Worker) -> bool:
    """Whether the worker runs out of work; False when it ended before."""
    text, since = worker.text(), time.monotonic()
    while worker.poll() is None:
        if worker.text() != text:
            text, since = worker.text(), time.monotonic()
        if time.monotonic() - since > IDLE_S and _saved_all(worker):
            return True
        time.sleep(POLL_S)
    return False


def _saved_all(worker: Worker) -> bool:
    """Whether the worker has learned something since its start, and all of that is published."""
    return list(worker.metric("unsaved_records").values()) == [0] and bool(worker.metric("position"))


def _kill(worker: Worker, after_s: float = 0.0) -> None:
    time.sleep(after_s)
    assert worker.poll() is None, f"ended with {worker.poll()} by itself"
    worker.kill()


def _deal(drafts: list[Draft], count: int) -> list[list[Draft]]:
    """Equal shares; the last takes what is left over."""
    share = len(drafts) // count
    return [*(drafts[i * share : (i + 1) * share] for i in range(count - 1)), drafts[(count - 1) * share :]]


def torture(
    broker: Broker,
    folder: Path,
    kills: int,
    seed: int,
    records: int,
    pictures: Pictures,
    on_life: Callable[[], None],
    points: Collection[str] = POINTS.keys(),
) -> Report:
    """Kills a run of three partitions, then one of a single partition, which must learn the same as an unkilled one.
    Each life sees right labels, then wrong ones, so that training goes back to a release.

    `records` are the former's. A tenth of the kills is the latter's, with as many records a kill on top. `points` are
    those at which a worker is killed. Keeps everything in `folder`, by the run's id.
    """
    random, report = Random(seed), Report()
    of_one = max(len(FIRST_OF_ONE_PARTITION), kills // 10)
    lives = draw(random, FIRST, kills - of_one, points), draw(random, FIRST_OF_ONE_PARTITION, of_one, points)
    share = records // len(lives[0])
    settings = pictures.settings | {
        "run.seed": seed,
        # Learns fast, and goes back as soon as it learned what is wrong.
        "learning.learning_rate": 0.03,
        "learning.average_decay": 0.5,
        "learning.steps_per_batch": 2,
        "release.every_records": max(50, share // 4),
        "release.max_drop": 0.05,
        "release.patience": 1,
        "checkpoint.every_records": max(50, share // 4),
        "checkpoint.every_s": 1.0,
        "checkpoint.keep": 1,
        # Small states: they are written often. So small a memory gives much up, and its segments are rewritten.
        "memory.max_items": 300,
        "held_out.max_items": 500,
    }

    three = Run(broker, folder / f"torture-{seed}-three-partitions", 3, settings)
    Victim(three, list(flipped(mixed(records, seed, pictures.images), share)), report).suffer(lives[0], on_life)

    # Batches close only when they are full: wherever a life begins, they are the same.
    settings |= {"batch.size": BATCH, "batch.linger_s": 3600.0}
    killed = Run(broker, folder / f"torture-{seed}-one-partition", 1, settings)
    drafts = whole_batches(flipped(good(share * len(lives[1]), seed, pictures.images), share), BATCH)
    log = Victim(killed, drafts, report).suffer(lives[1], on_life)

    same_input = {"input.topics": [killed.input], "checkpoint.every_s": 3600.0, "checkpoint.every_records": records}
    unkilled = Run(broker, folder / f"torture-{seed}-unkilled", 1, settings | same_input, killed.fed)
    expected = Victim(unkilled, [], report).suffer([], on_life)
    if log and expected:
        report.add(checker.compare_states(log, expected))
        if not outputs.roll_backs(expected):
            report.add([Violation("training went back to no release")])
    report.records = len(three.fed) + len(killed.fed)
    return report
