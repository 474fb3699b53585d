"""Runs of the worker as processes of their own, on the real broker."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import HTTPError
from urllib.request import urlopen

import checker
import child
import envelopes
import feed
import outputs
from child import Point
from confluent_kafka import OFFSET_END, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import AlterConfigOpType, ConfigEntry, ConfigResource
from confluent_kafka.cimpl import NewTopic
from feed import Draft, Fed

from stream_learner import config
from stream_learner.config import Settings
from stream_learner.errors import ExitCode
from stream_learner.local.broker import Broker, free_port
from stream_learner.streams import topics

DEADLINE_S = 60.0
POLL_S = 0.02
DEFAULTS: dict[str, Any] = {
    # A restart does not wait until the brokers have given up its killed predecessor; nor long, when it may have been
    # replaced and stands by.
    "run.on_conflict": "take_over",
    "run.session_timeout_s": 3.0,
    "model.name": "mlp",
    "model.height": 8,
    "model.width": 8,
    "model.channels": 1,
    "model.max_classes": feed.MAX_CLASSES,
    "learning.threads": 1,
    "learning.augment": [],  # a digit in a mirror is none
    "batch.linger_s": 0.2,
    # So small that they are sealed, rewritten and dropped all the time.
    "memory.segment_bytes": 4096,
    "memory.max_bytes": 1024 * 1024,
    "held_out.max_bytes": 512 * 1024,
    "input.max_record_bytes": feed.MAX_RECORD_BYTES,
    "input.max_image_pixels": feed.MAX_IMAGE_PIXELS,
    "release.every_records": 1000,
    "release.formats": ["safetensors"],  # an export would take longer than most of these runs
    "release.min_held_out": 20,
    "checkpoint.every_records": 200,
    "rejects.max_share": 0.2,
    "monitoring.port": 0,
    "log.format": "json",
}
# The least that a transaction's time-out can be: 3 s.
SHORT = {
    "checkpoint__timeout_s": 1.0,
    "checkpoint__max_pending_bytes": 1024 * 1024,
    "release__inline_max_bytes": 1024 * 1024,
}
# Settings of a run of two shards that often saves and releases.
TWO_SHARDS = {
    "run__shards": 2,
    "batch__size": 16,
    "memory__max_items": 200,
    "held_out__max_items": 100,
    "release__every_records": 300,
    "checkpoint__every_records": 100,
    "checkpoint__every_s": 1.0,
}
UNKNOWN_OUTCOME = (ExitCode.FENCED, ExitCode.PUBLISH, ExitCode.WATCHDOG)

# A process that has imported torch already makes a worker in a moment.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["stream_learner.cli", "stream_learner.run.worker"])

T = TypeVar("T")


@dataclass
class Worker:
    """A worker's process and its log. `poll` gives its exit code, negative for a signal, None while it runs."""

    pid: int
    poll: Callable[[], int | None]
    log: Path

    def page(self, name: str) -> tuple[int, str]:
        """Return status and text of one of the worker's pages, or (0, "") while there is none."""
        port = re.search(r'"port":(\d+)', self.text())
        try:
            with urlopen(f"http://127.0.0.1:{port[1]}/{name}", timeout=DEADLINE_S) if port else nullcontext() as page:
                return (page.status, page.read().decode()) if page else (0, "")
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:  # it may just have ended
            return 0, ""

    def metric(self, name: str) -> dict[str, float]:
        """Return a metric's series on the worker's page, by their labels. There are none while there is no page."""
        run = re.compile(r'\{run="[^"]*"\}|,run="[^"]*"(?=[,}])|(?<=\{)run="[^"]*",')
        series = re.compile(rf"stream_learner_{name}(\{{.*\}})? (.+)")
        page = self.page("metrics")[1].splitlines()
        lines = [run.sub("", line) for line in page if line.startswith(f"stream_learner_{name}")]
        return {found[1]: float(found[2]) for line in lines if (found := series.fullmatch(line))}

    def reaches(self, name: str, value: float) -> None:
        """Returns once a metric, summed over its series, is at least `value`."""
        self.until(f"{name} >= {value:g}", lambda: sum(self.metric(name).values()) >= value)

    def learning(self) -> None:
        """Returns once the process has taken the run over, and obeys signals."""
        self.until("takeover", lambda: '"event":"learning"' in self.text())

    def paused(self) -> None:
        """Returns once the process has stopped itself (SIGSTOP)."""
        self.until("pause", lambda: self.poll() is None and "(stopped)" in Path(f"/proc/{self.pid}/status").read_text())

    def until(self, what: str, condition: Callable[[], T]) -> T:
        """The condition's first true value. Fails, with the log, when the process ends or takes too long."""
        deadline = time.monotonic() + DEADLINE_S
        while not (found := condition()):
            assert self.poll() is None, f"the worker ended with {self.poll()}, before {what}:\n{self.text()}"
            assert time.monotonic() < deadline, f"no {what} in {DEADLINE_S:g} s:\n{self.text()}"
            time.sleep(POLL_S)
        return found

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def ends(self, *codes: int) -> str:
        """Wait for the end, which must be with one of these exit codes. Return the log."""
        deadline = time.monotonic() + DEADLINE_S
        while (found := self.poll()) is None:
            assert time.monotonic() < deadline, f"no end in {DEADLINE_S:g} s:\n{self.text()}"
            time.sleep(POLL_S)
        assert found in codes, f"ended with {found}, not {codes}:\n{self.text()}"
        return self.text()

    def stop(self) -> None:
        """An orderly stop, after a last save."""
        self.signal(signal.SIGTERM)
        self.ends(0)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.ends(-signal.SIGKILL)

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


@dataclass
class Run:
    """A run with topics, settings and a store of its own. It knows the records that were fed to it, and its workers.

    `rows` is the number of records in each message; 0 for plain records.
    """

    broker: Broker
    folder: Path
    partitions: int = 1
    overrides: dict[str, Any] = field(default_factory=dict)
    fed: list[Fed] = field(default_factory=list)
    rows: int = 0
    predictions: int = 0
    workers: list[Worker] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        topics.create(self.settings)
        self.create_input()

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def prefix(self) -> str:
        return self.overrides.get("topics.prefix", self.id)

    @property
    def input(self) -> str:
        return f"{self.id}.input"

    @property
    def store(self) -> Path:
        return self.folder / "objects"

    @property
    def arguments(self) -> list[str]:
        """`section.key=value` for each setting."""
        settings = DEFAULTS | {
            "run.id": self.id,
            "input.topics": [self.input],
            "kafka.bootstrap_servers": self.broker.bootstrap_servers,
            "checkpoint.store": str(self.store),
            "input.format": "arrow" if self.rows else "plain",
        }
        return [f"{name}={toml(value)}" for name, value in (settings | self.overrides).items()]

    @property
    def settings(self) -> Settings:
        return config.load(None, self.arguments)

    def create_input(self) -> None:
        """The input takes records that the worker's settings do not."""
        created = self.admin.create_topics([NewTopic(self.input, self.partitions, 1)])
        created[self.input].result(DEADLINE_S)

    @cached_property
    def admin(self) -> AdminClient:
        return AdminClient(feed.client(self.broker.bootstrap_servers))

    def feed(self, drafts: Iterable[Draft], partitions: int | None = None) -> None:
        """Feed the first `partitions` partitions in turn; all of them when left out."""
        messages = envelopes.packed(drafts, self.rows) if self.rows else drafts
        self.fed += feed.feed(self.broker.bootstrap_servers, self.input, messages, partitions or self.partitions)

    def lose(self, partition: int, end: int) -> None:
        """Let retention delete the records before the offset `end`. No worker may run."""
        start = self.saved().get((self.input, partition), 0)
        self.delete(partition, end)
        self.lost(partition, start, end)

    def lost(self, partition: int, start: int, end: int) -> None:
        """Note that retention deleted the records from `start` to `end` before they were read."""
        place = self.input, partition
        for i, record in enumerate(self.fed):
            if (record.topic, record.partition) == place and start <= record.offset < end:
                self.fed[i] = record._replace(draft=record.draft._replace(fate=feed.LOST))

    def delete(self, partition: int, end: int) -> None:
        """Deletes the input's records up to the offset `end`, as retention does."""
        place = TopicPartition(self.input, partition, end)
        self.admin.delete_records([place])[place].result(DEADLINE_S)

    def delete_topic(self, topic: str) -> None:
        """Returns once the brokers do not know the topic any more."""
        self.admin.delete_topics([topic])[topic].result(DEADLINE_S)
        deadline = time.monotonic() + DEADLINE_S
        while topic in self.admin.list_topics(timeout=DEADLINE_S).topics:
            assert time.monotonic() < deadline, f"{topic} is still there"

    def set_max_message_bytes(self, topic: str, limit: int) -> None:
        """Limits what an output topic takes, named without its prefix."""
        self.configure(topic, "max.message.bytes", str(limit))

    def empty(self, topic: str) -> None:
        """Delete all records of a compacted output topic, named without its prefix."""
        self.configure(topic, "cleanup.policy", "delete")
        place = TopicPartition(f"{self.prefix}.{topic}", 0, OFFSET_END)
        self.admin.delete_records([place])[place].result(DEADLINE_S)
        self.configure(topic, "cleanup.policy", "compact")

    def configure(self, topic: str, name: str, value: str) -> None:
        """Set a config of an output topic, and wait until the broker applies it, which is after the answer."""
        entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ConfigResource.Type.TOPIC, f"{self.prefix}.{topic}", incremental_configs=[entry])
        self.admin.incremental_alter_configs([resource])[resource].result(DEADLINE_S)
        deadline = time.monotonic() + DEADLINE_S
        while self.admin.describe_configs([resource])[resource].result(DEADLINE_S)[name].value != value:
            assert time.monotonic() < deadline, f"{name} = {value} is not applied in {DEADLINE_S:g} s"
            time.sleep(POLL_S)

    def start(self, *options: str) -> Worker:
        """A worker, as the command line starts it."""
        return self.call("run", *options)

    def call(self, command: str, *options: str, target: Callable[..., None] = child.command) -> Worker:
        """A command of the command line, with this run's settings, in a process that runs `target`."""
        return self._child(target, [*command.split(), *self._sets, *options])

    def start_signalled(self, point: Point, number: signal.Signals = signal.SIGKILL) -> Worker:
        """A worker that sends itself a signal at a point of its protocol."""
        return self.start_altered(child.signalled, point, number)

    def start_altered(self, target: Callable[..., None], *arguments: Any) -> Worker:
        """Start a worker whose process `target` prepares. It is called with log, command line and `arguments`."""
        return self._child(target, ["run", *self._sets], *arguments)

    def start_ranks(self, ranks: int, altered: Mapping[int, tuple[Any, ...]] | None = None) -> list[Worker]:
        """Start the ranks of a worker, as the launcher does.

        `altered` has, for some ranks, a target that prepares the process, and the target's arguments after log and
        command line; see `start_altered`.
        """
        place = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        started = []
        for rank in range(ranks):
            environment = place | {"RANK": str(rank), "LOCAL_RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"}
            target, *arguments = (altered or {}).get(rank, (child.command,))
            started.append(self._child(target, ["run", *self._sets], *arguments, environment=environment))
        return started

    def start_jumping(self, point: Point, seconds: float) -> Worker:
        """A worker whose wall clock jumps by `seconds` at a point of its protocol."""
        return self.start_altered(child.jumping, point, seconds)

    def start_command(self, *options: str, within: Sequence[str] = ()) -> Worker:
        """Start a worker by a shell's command line, which is slower. It is a child of this process.

        `within` is a command that runs it somewhere else (`nsenter`).
        """
        log = self._log()
        with log.open("ab") as file:
            command = [*within, sys.executable, "-m", "stream_learner", "run", *self._sets, *options]
            process = subprocess.Popen(command, stdout=file, stderr=file)
        return self._add(Worker(process.pid, process.poll, log))

    def learned_by_ranks(self, workers: Sequence[Worker]) -> None:
        """Wait until a checkpoint has everything that was fed. Fails when a rank ends, or when progress stops."""
        saved = 0
        deadline = time.monotonic() + DEADLINE_S
        while self.saved() != self.ends():
            for worker in workers:
                assert worker.poll() is None, f"a rank ended with {worker.poll()}:\n{worker.text()}"
            if (now := sum(self.saved().values())) > saved:
                saved, deadline = now, time.monotonic() + DEADLINE_S
            assert time.monotonic() < deadline, f"no progress in {DEADLINE_S:g} s:\n{workers[0].text()}"
            time.sleep(10 * POLL_S)

    def stop_ranks(self, workers: Sequence[Worker]) -> None:
        """Let the ranks learn everything that was fed, then stop them in order."""
        self.learned_by_ranks(workers)
        for worker in workers:
            worker.signal(signal.SIGTERM)
        for worker in workers:
            worker.ends(0)

    def finish(self, worker: Worker) -> outputs.Log:
        """Let a worker learn everything that was fed, and stop it. Check the run's output, and return it."""
        self.learned(worker)
        worker.stop()
        return self.check()

    def learned(self, worker: Worker) -> None:
        """Wait until the worker has learned everything that was fed, however long it takes while it makes progress."""
        # A partition that had no news since the worker's start has no series, but a saved position.
        saved, ends = self.saved(), self.ends()

        def further_than(reached: float) -> float:
            """Return the worker's position, summed over all partitions, or 0 while that is no further."""
            series = worker.metric("position")
            now = sum(
                min(end, max(saved.get((topic, p), 0), series.get(f'{{partition="{p}",topic="{topic}"}}', 0)))
                for (topic, p), end in ends.items()
            )
            return now if now > reached else 0

        worker.learning()
        reached = 0.0
        while reached < sum(ends.values()):
            reached = worker.until("progress in the input", partial(further_than, reached))

    def ends(self) -> dict[outputs.Place, int]:
        """End of each partition, as far as it was fed through this object."""
        ends = {(topic, p): 0 for topic in {record.topic for record in self.fed} for p in range(self.partitions)}
        ends |= {(f"{self.prefix}.predictions", 0): self.predictions} if self.predictions else {}
        return ends | {(record.topic, record.partition): record.offset + 1 for record in self.fed}

    def saved(self) -> dict[outputs.Place, int]:
        """Return the positions of the newest manifest, or nothing before the first."""
        manifests = self.read("checkpoints")
        return outputs.places(json.loads(manifests[-1].value or b"")["positions"]) if manifests else {}

    def read(self, topic: str, start: int = 0) -> list[outputs.Read]:
        """Committed records of an output topic, named without its prefix, from an offset on."""
        return outputs.read_topic(self.broker.bootstrap_servers, f"{self.prefix}.{topic}", start)

    def published(self) -> outputs.Log:
        return outputs.read(self.broker.bootstrap_servers, self.prefix, self.ends())

    def check(self) -> outputs.Log:
        """Check the run's output, and return it."""
        log = self.published()
        checker.check(log, self.fed)
        return log

    def objects(self) -> set[str]:
        """Return the keys of all files of the run's store."""
        return {path.relative_to(self.store).as_posix() for path in self.store.rglob("*") if path.is_file()}

    def close(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.kill()

    @property
    def _sets(self) -> list[str]:
        return [word for argument in self.arguments for word in ("--set", argument)]

    def _child(
        self, target: Callable[..., None], *arguments: Any, environment: Mapping[str, str] | None = None
    ) -> Worker:
        log = self._log()
        variables = {**os.environ, **(environment or {})}
        process = processes.Process(target=child.started, args=(variables, target, log, *arguments), daemon=True)
        process.start()
        assert process.pid
        ended: int | None = None

        def poll() -> int | None:
            nonlocal ended
            if ended is None and (ended := process.exitcode) is not None:
                process.close()  # its file descriptors: a run may have hundreds of workers
            return ended

        return self._add(Worker(process.pid, poll, log))

    def _log(self) -> Path:
        return self.folder / f"worker-{len(self.workers)}.log"

    def _add(self, worker: Worker) -> Worker:
        self.workers.append(worker)
        return worker


def toml(value: Any) -> str:
    """Write a setting's value. Scalars and lists are written as in JSON."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {toml(item)}" for name, item in value.items()) + "}"
    return json.dumps(value)


NewRun = Callable[..., Run]


def not_ready(worker: Worker) -> None:
    """Wait until a worker that Kafka does not answer is not ready. It stays live."""
    worker.until("silence", lambda: worker.page("readyz")[0] == 503 and "not answered" in worker.page("readyz")[1])
    assert "kafka.request_timeout_s = 3" in worker.page("readyz")[1]
    assert worker.page("livez")[0] == 200
