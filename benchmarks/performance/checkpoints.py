"""The cost of saves: stalls of the training thread, throughput, bytes written, and the time of a recovery."""

import json
import time
from datetime import datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from benchmarks.performance import memory
from benchmarks.performance.inputs import Topics, jpegs, noise
from benchmarks.performance.rounds import TOPIC, Sides, Subject
from benchmarks.performance.worker import NEVER, Worker, measure, watch
from benchmarks.runs import Run
from stream_learner.config import MIB
from stream_learner.local.broker import Broker

IMAGES = 1_000
# Seconds between two saves, and of the measurement. A large state takes long to write.
CADENCES_S = {"timm:resnet18": (2.0, 20.0), "timm:resnet50": (4.0, 30.0), "timm:wide_resnet101_2": (10.0, 45.0)}
USUAL_CADENCE_S = (0.5, 12.0)
# Learning as a plain loop does it, with an average: a state has four times the bytes of the parameters.
PLAIN = [each for each in memory.plain() if not each.startswith("learning.average_decay")]

MEMORIES_MIB = (0, 64, 256, 1024)
NOISE_PX = 128
NOISE_RECORDS = 45_000
FILL_DEADLINE_S = 300.0
EVENTS = {"monitoring": "start_to_monitoring_s", "learning": "start_to_input_s"}
"""Log events of a worker that starts, and the figures that are the seconds until them."""


def sides(subject: Subject, topics: Topics) -> Sides:
    """Return a worker without saves, and one that saves often."""

    def without() -> Run:
        broker = topics.fill(topic, jpegs(32, IMAGES), records)
        return measure(subject, overrides, broker, records=records, save_every_s=NEVER)._asdict()

    topic, records = f"{TOPIC}.jpeg32", 400_000
    overrides = [*PLAIN, f"input.topics=['{topic}']"]
    every_s, measured_s = CADENCES_S.get(subject.model, USUAL_CADENCE_S)

    def saving() -> Run:
        broker = topics.fill(topic, jpegs(32, IMAGES), records)
        return with_saves(subject, overrides, broker, records, every_s, measured_s)

    return {"without saves": without, "with saves": saving}


def sides_with_memories(subject: Subject, topics: Topics) -> Sides:
    """Return a worker for each size of the memory, which is full before the measurement."""
    return {f"{mib:,} MiB": partial(_with_memory, subject, topics, mib) for mib in MEMORIES_MIB}


def _with_memory(subject: Subject, topics: Topics, mib: int) -> Run:
    topic = f"{TOPIC}.noise{NOISE_PX}"
    broker = topics.fill(topic, noise(NOISE_PX, IMAGES), NOISE_RECORDS)
    overrides = [
        f"input.topics=['{topic}']",
        f"memory.max_bytes={mib * MIB}",
        f"memory.max_items={100_000 if mib else 0}",
        "memory.replay_size=16",
        "split.validation=0",
        "split.test=0",
    ]
    return with_saves(subject, overrides, broker, NOISE_RECORDS, 2.0, 15.0, full_bytes=0.9 * mib * MIB)


def with_saves(
    subject: Subject,
    overrides: list[str],
    broker: Broker,
    records: int,
    every_s: float,
    measured_s: float,
    full_bytes: float = 0,
) -> Run:
    """Measure a worker that saves every `every_s`, once its memory holds `full_bytes`. Then start it again."""
    with TemporaryDirectory() as parent:
        folder, clocked = Path(parent, uuid4().hex), Path(parent, "clock.json")
        folder.mkdir()
        with Worker(subject, overrides, broker, folder, every_s, clocked) as worker:
            worker.await_figure("step_seconds_count", 1)
            worker.await_figure("memory_bytes", full_bytes, FILL_DEADLINE_S)
            first = worker.await_figure("checkpoint_seconds_count", 1, FILL_DEADLINE_S)
            began, wrote = time.monotonic(), _written_bytes(worker.pid)
            found = watch(worker.look, records, measured_s)
            last = worker.await_figure("checkpoint_seconds_count", first.total("checkpoint_seconds_count") + 1)
            seconds, wrote = time.monotonic() - began, _written_bytes(worker.pid) - wrote
        saves, commit_s, learned = (
            last.total(name) - first.total(name)
            for name in ("checkpoint_seconds_count", "checkpoint_seconds_sum", "records_in_total")
        )
        return {
            **found._asdict(),
            **json.loads(clocked.read_text()),
            "seconds_per_save": seconds / saves,
            "records_per_save": learned / saves,
            "commit_s": commit_s / saves,
            "state_bytes": last.total("last_checkpoint_bytes"),
            "memory_bytes": last.total("memory_bytes"),
            "written_bytes_per_save": wrote / saves,
            **recovery(subject, overrides, broker, folder),
        }


def recovery(subject: Subject, overrides: list[str], broker: Broker, folder: Path) -> Run:
    """Start the run in a folder again. Return the seconds from the start of the process to its first step."""
    worker = Worker(subject, overrides, broker, folder, NEVER)
    began = time.time()
    with worker:
        worker.await_figure("step_seconds_count", 1)
        first_step_s = time.time() - began
        events = [json.loads(line) for line in (folder / "worker.log").read_text().splitlines() if line[:1] == "{"]
    times = {each["event"]: datetime.fromisoformat(each["timestamp"]).timestamp() - began for each in events}
    return {name: times[event] for event, name in EVENTS.items()} | {"start_to_first_step_s": first_step_s}


def _written_bytes(pid: int) -> int:
    """Return the bytes that a process has written to disks."""
    return int(Path(f"/proc/{pid}/io").read_text().partition("\nwrite_bytes:")[2].split()[0])
