"""A worker with a good producer, a hostile one, and slow clients at its monitoring port."""

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path
from random import Random
from urllib.request import urlopen

import child
import feed
import nasties
import numpy as np
import outputs
import raw_batches
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.cimpl import NewTopic
from feed import Draft, Fed
from harness import DEADLINE_S, Run, Worker
from outputs import Place

from stream_learner.config import KafkaSettings
from stream_learner.local.broker import HOST, Broker, free_port

SLOW_CLIENTS_PROGRAM = Path(__file__).parents[1] / "monitoring" / "slow_clients.py"
TICKS_A_SECOND = 10
GOOD_A_SECOND = 100
MAX_CLASSES = 60
LARGEST_BYTES = 17 * nasties.MIB
SETTINGS = {
    "model.max_classes": MAX_CLASSES,
    "input.max_record_bytes": 4 * nasties.MIB,
    "input.max_image_pixels": 4096 * 4096,
    # Full early, so that what grows later is a leak.
    "memory.max_items": 1000,
    "held_out.max_items": 300,
    "release.every_records": 5000,
    "checkpoint.every_records": 5000,
    "checkpoint.every_s": 10.0,
}
MAX_TURN_S = 1.0
# Share of the run in which caches and memories fill.
SETTLED = 0.2
BLOCKS = 20
# Flat: even the upper estimate of an hour's growth is no more than this share.
FLAT_SHARE = 0.05


@dataclass
class Report:
    """Figures of the whole run. Times in seconds, memory in MiB."""

    seconds: float = 0.0
    good_fed: int = 0
    good_accounted: int = 0
    """Learned or held out, each once."""
    good_rejected: int = 0
    hostile_fed: int = 0
    hostile_refused: int = 0
    """By the broker or the producer's library."""
    rejected: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    twice: int = 0
    dead_letters: int = 0
    turns: int = 0
    turn_p50_s: float = 0.0
    turn_p99_s: float = 0.0
    turn_max_s: float = 0.0
    probes: int = 0
    probes_failed: int = 0
    probe_p99_s: float = 0.0
    rss_max_mib: float = 0.0
    rss_course_mib: list[float] = field(default_factory=list)
    """Means over twentieths of the run, with what malloc keeps in reserve."""
    in_use_mib: float = 0.0
    in_use_slope_mib_per_minute: float = 0.0
    in_use_slope_error: float = 0.0
    memory_flat: bool = False
    restarts: list[int | None] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    """Goals that were missed."""


@dataclass
class Attack:
    """The producers, the worker, and what is measured meanwhile."""

    run: Run
    random: Random
    slow_clients: int
    report: Report = field(default_factory=Report)
    rss_mib: list[float] = field(default_factory=list)
    probe_s: list[float] = field(default_factory=list)
    good: list[list[Fed]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.topic = f"{self.run.id}.hostile"
        self.turns, self.in_use = self.run.folder / "turns", self.run.folder / "in_use"
        self.port = free_port()
        configs = {"message.timestamp.after.max.ms": str(2**63 - 1), "max.message.bytes": str(LARGEST_BYTES)}
        created = self.run.admin.create_topics([NewTopic(self.topic, 1, 1, config=configs)])
        created[self.topic].result(DEADLINE_S)
        self.run.overrides |= {
            "input.topics": [self.run.input, self.topic],
            "split.held_out_from": [self.run.input],
            "monitoring.port": self.port,
        }
        servers = self.run.broker.bootstrap_servers
        self._good = Producer(feed.client(servers) | {"linger.ms": 5})
        self._hostile = Producer(feed.client(servers) | {"linger.ms": 5, "message.max.bytes": LARGEST_BYTES})
        self._raw = partial(raw_batches.send, KafkaSettings(bootstrap_servers=servers), self.topic)

    def start(self) -> Worker:
        target = partial(child.measured, turns=self.turns, in_use=self.in_use)
        return self.run.call("run", "--accept-rejects", target=target)

    def last(self, seconds: float, on_second: Callable[[], None]) -> None:
        """Feed both topics and watch the worker for this time, then let it learn the rest."""
        nasties.prepare()
        drafts = cycle(feed.good(100_000))
        # All good labels come first: later there may be no class left for them.
        self.good.append(feed.send(self._good, self.run.input, [next(drafts) for _ in range(1000)]))
        self._good.flush()
        worker = self.start()
        worker.learning()
        worker.reaches("records_in_total", 1000)
        stop = threading.Event()
        probing = threading.Thread(target=self._probe, args=(stop,))
        probing.start()
        clients = self._clients()
        began = time.monotonic()
        for second in range(round(seconds)):
            nasty = [*nasties.records(second, self.random)]
            for tick in range(TICKS_A_SECOND):
                some = [next(drafts) for _ in range(GOOD_A_SECOND // TICKS_A_SECOND)]
                self.good.append(feed.send(self._good, self.run.input, some))
                self._send(nasty[tick::TICKS_A_SECOND])
                time.sleep(max(0.0, began + second + (tick + 1) / TICKS_A_SECOND - time.monotonic()))
            self._send_raw(second)
            worker = self._tend(worker)
            on_second()
        self._good.flush()
        self._hostile.flush()
        self.report.seconds = time.monotonic() - began
        clients.communicate()
        stop.set()
        probing.join()
        self._finish(worker)

    def _clients(self) -> subprocess.Popen[str]:
        command = [sys.executable, str(SLOW_CLIENTS_PROGRAM), str(self.port), str(self.slow_clients)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def _send(self, some: list[nasties.Nasty]) -> None:
        for value, headers, key, timestamp_ms in some:
            try:
                self._hostile.produce(
                    self.topic, value, key, 0, timestamp=timestamp_ms, headers=[*headers], on_delivery=self._delivered
                )
            except KafkaException:
                self.report.hostile_refused += 1
            self._hostile.poll(0)

    def _delivered(self, error: KafkaError | None, _: Message) -> None:
        self.report.hostile_refused += error is not None

    def _send_raw(self, round_: int) -> None:
        for batch in nasties.batches(round_):
            try:
                self._raw(batch)
            except AssertionError:
                self.report.hostile_refused += 1

    def _tend(self, worker: Worker) -> Worker:
        """Note the worker's memory. Start another worker when it has ended."""
        if worker.poll() is not None:
            self.report.restarts.append(worker.poll())
            worker = self.start()
            worker.learning()
        with suppress(OSError):
            pages = int(Path(f"/proc/{worker.pid}/statm").read_text().split()[1])
            self.rss_mib.append(pages * 4096 / nasties.MIB)
        return worker

    def _probe(self, stop: threading.Event) -> None:
        while not stop.wait(1.0):
            began = time.monotonic()
            try:
                with urlopen(f"http://{HOST}:{self.port}/livez", timeout=10):
                    self.probe_s.append(time.monotonic() - began)
            except OSError:
                self.report.probes_failed += 1
            self.report.probes += 1

    def _finish(self, worker: Worker) -> None:
        """Lets the worker learn the rest, and stops it."""
        self.run.fed = [record for records in self.good for record in records]
        ends = self._end(self.topic)
        self.run.fed.append(Fed(self.topic, 0, ends - 1, Draft(None, None, [], None)))
        self.run.learned(worker)
        worker.stop()

    def _end(self, topic: str) -> int:
        consumer = Consumer(feed.client(self.run.broker.bootstrap_servers) | {"group.id": "ends"})
        end = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=DEADLINE_S)[1]
        consumer.close()
        return end


def attack(
    broker: Broker, folder: Path, seconds: float, seed: int, slow_clients: int, on_second: Callable[[], None]
) -> Report:
    """Let both producers and the slow clients use a worker for this time. Return the report."""
    run = Run(broker, folder / f"hostile-{seed}", 1, dict(SETTINGS))
    attack = Attack(run, Random(seed), slow_clients)
    try:
        attack.last(seconds, on_second)
    finally:
        run.close()
    report = attack.report
    account(attack, report)
    measure(attack, report)
    return report


def account(attack: Attack, report: Report) -> None:
    """Finds every record in what was published, with another Kafka client and nothing of the worker's."""
    run, servers = attack.run, attack.run.broker.bootstrap_servers
    *good, last = run.fed
    windows = [json.loads(read.value or b"") for read in run.read("metrics")]
    covered: dict[Place, Counter[int]] = {(run.input, 0): Counter(), (attack.topic, 0): Counter()}
    for window in windows:
        for place, (start, end) in outputs.places(window["spans"]).items():
            covered[place].update(range(start, end))
    letters = dead_letters(servers, f"{run.id}.dead-letters")
    rejected = Counter[str]()
    for window in windows:
        rejected.update(window["rejected"])
    report.rejected = dict(rejected)
    report.good_fed, report.hostile_fed = len(good), last.offset + 1
    once = {offset for offset, times in covered[run.input, 0].items() if times == 1}
    set_aside = {offset for topic, offset in letters if topic == run.input}
    report.good_rejected = len(set_aside)
    report.good_accounted = sum(record.offset in once - set_aside for record in good)
    ends = {(run.input, 0): len(good), (attack.topic, 0): last.offset + 1}
    report.lost = sum(offset not in covered[place] for place, end in ends.items() for offset in range(end))
    report.twice = sum(times - 1 for counts in covered.values() for times in counts.values())
    report.twice += sum(times - 1 for times in letters.values())
    report.dead_letters = letters.total()
    held_out = Counter(record.draft.fate for record in good)
    for split in ("validation", "test"):
        if (found := sum(window["splits"].get(split, 0) for window in windows)) != held_out[split]:
            report.missed.append(
                f"{found} {split} samples were held out, not the {held_out[split]} of the good producer"
            )
    if report.dead_letters != rejected.total():
        report.missed.append(f"{report.dead_letters} dead letters, but {rejected.total()} rejected records")
    counted = [window["records"] for window in windows]
    named = [sum(w["splits"].values()) + sum(w["rejected"].values()) + w["tombstones"] for w in windows]
    if counted != named or sum(counted) != sum(ends.values()):
        report.missed.append(f"windows count {sum(counted)} records, {sum(named)} by fate, of {sum(ends.values())}")
    goals = {
        "all good records learned or held out": report.good_accounted == report.good_fed,
        "nothing lost": report.lost == 0,
        "nothing twice": report.twice == 0,
        "no restart": not report.restarts,
    }
    report.missed += [goal for goal, reached in goals.items() if not reached]


def dead_letters(bootstrap_servers: str, topic: str) -> Counter[tuple[str, int]]:
    """How often each topic and offset is in the dead letters. They may be too many to be kept."""
    found = Counter[tuple[str, int]]()
    for letter in outputs.reads(bootstrap_servers, topic):
        # The worker replaces a hostile producer's headers of the same names.
        errors = dict(letter.headers)
        found[errors["__connect.errors.topic"].decode(), int(errors["__connect.errors.offset"])] += 1
    return found


def measure(attack: Attack, report: Report) -> None:
    turns_s = np.frombuffer(attack.turns.read_bytes())
    report.turns = len(turns_s)
    report.turn_p50_s, report.turn_p99_s = (float(p) for p in np.percentile(turns_s, [50, 99]))
    report.turn_max_s = float(turns_s.max())
    report.probe_p99_s = float(np.percentile(attack.probe_s, 99)) if attack.probe_s else float("nan")
    report.rss_max_mib = max(attack.rss_mib)
    report.rss_course_mib = [round(float(np.mean(b)), 1) for b in np.array_split(attack.rss_mib, BLOCKS) if len(b)]
    in_use = np.frombuffer(attack.in_use.read_bytes()) / nasties.MIB
    settled = in_use[int(len(in_use) * SETTLED) :]
    report.in_use_mib = float(np.mean(settled))
    if len(settled) > 3:
        minutes = np.arange(len(settled)) * child.LOOK_AT_MEMORY_EVERY_S / 60
        (slope, _), covariance = np.polyfit(minutes, settled, 1, cov=True)
        report.in_use_slope_mib_per_minute, report.in_use_slope_error = float(slope), float(covariance[0, 0] ** 0.5)
    hour_mib = 60 * (report.in_use_slope_mib_per_minute + 2 * report.in_use_slope_error)
    report.memory_flat = hour_mib < FLAT_SHARE * report.in_use_mib


def judge(report: Report) -> None:
    """Adds the goals of time and memory that were missed, which a short form cannot be held to."""
    goals = {
        f"turns under {MAX_TURN_S:g} s (99th percentile)": report.turn_p99_s < MAX_TURN_S,
        "memory flat": report.memory_flat,
        "every probe answered": report.probes_failed == 0,
    }
    report.missed += [goal for goal, reached in goals.items() if not reached]
