"""CPU time by thread and stage, with py-spy's samples; and the CPU time of an idle worker."""

import json
import re
import subprocess
import time
from collections import Counter
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from benchmarks.observation import TICKS_PER_S, Observation, between, observe
from benchmarks.performance import memory
from benchmarks.performance.inputs import Topics
from benchmarks.performance.rounds import RESULTS, TOPIC, Sides, Subject
from benchmarks.performance.worker import SAVE_EVERY_S, Worker, watch
from benchmarks.runs import Run
from stream_learner.errors import UsageError
from stream_learner.local.broker import Broker
from stream_learner.local.datasets import Example

PY_SPY = Path(__file__).parents[2] / ".venv" / "py-spy" / "bin" / "py-spy"
SAMPLED_S = 10
PARTITIONS = (1, 12, 600)
IDLE_RECORDS = 100
SETTLE_S = 15.0
IDLE_S = 20.0
# Stages of the main thread, by words in a frame. The innermost frame that has one decides.
STAGES = {
    "predict (learning/": "predict",
    "learning/prequential.py": "predict",
    "learning/trainers/": "step",
    "learning/strategies/": "step",
    "learning/muon.py": "step",
    "learning/augmentation.py": "augment",
    "learning/averaging.py": "average",
    "learning/memory/": "memory",
    "learning/drift.py": "drift",
    "learning/weighting/": "weights",
    "learning/": "other learning",
    "formats/": "decode",
    "streams/": "read Kafka",
    "monitoring/": "metrics",
    "publishing/": "save",
    "run/saves.py": "save",
    "run/": "batches and loop",
}
MAIN = "MainThread"
TORCH = "torch"


def sides(subject: Subject, broker: Broker) -> Sides:
    """Return the worker that learns as a plain loop does, and the worker with its defaults."""
    if not PY_SPY.exists():
        raise UsageError(f"{PY_SPY} does not exist; `make bench` installs it")
    return {
        "plain": partial(_measure, subject, "plain", memory.plain(), broker),
        "default": partial(_measure, subject, "default", [], broker),
    }


def flame(subject: Subject, side: str) -> Path:
    """Return the file of a side's flame graph."""
    return RESULTS / f"flame-{subject.model}-{subject.data}-{side}.svg"


def idle_sides(subject: Subject, topics: Topics, examples: list[Example]) -> Sides:
    """Return an idle worker for each number of partitions."""
    return {f"{count:,}": partial(_idle, subject, topics, examples, count) for count in PARTITIONS}


def stage(frames: list[str]) -> str:
    """Return the stage of a sample, from its frames `function (file:line)`, the outermost first."""
    for frame in reversed(frames):
        for words, name in STAGES.items():
            if words in frame.replace("stream_learner/", ""):
                return name
    return "other"


def _measure(subject: Subject, side: str, overrides: list[str], broker: Broker) -> Run:
    with TemporaryDirectory() as parent:
        folder, samples = Path(parent, uuid4().hex), Path(parent, "samples")
        folder.mkdir()
        with Worker(subject, overrides, broker, folder) as worker:
            while not worker.look().records:
                time.sleep(0.1)
            before = _threads(worker.pid)
            found = watch(worker.look)
            seconds = {task: cpu_s - before.get(task, 0.0) for task, cpu_s in _threads(worker.pid).items()}
            names = _names(worker.pid)
            _record(worker.pid, "raw", samples)
            flame(subject, side).parent.mkdir(parents=True, exist_ok=True)
            _record(worker.pid, "flamegraph", flame(subject, side))
        counted = Counter[str]()
        for line in samples.read_text().splitlines():
            frames, _, count = line.rpartition(" ")
            thread, *inner = frames.split(";")
            if MAIN in thread:
                counted[stage(inner)] += int(count)
    threads: dict[str, float] = {}
    for task, cpu_s in seconds.items():
        name = names.get(task, TORCH)
        threads[name] = threads.get(name, 0.0) + cpu_s
    total = sum(threads.values())
    of_record = {name: found.cpu_s_per_1000_records * cpu_s / total for name, cpu_s in threads.items()}
    main_s, samples_ = of_record.pop(MAIN), sum(counted.values())
    return found._asdict() | {
        "stages_cpu_s_per_1000": {name: main_s * count / samples_ for name, count in counted.most_common()},
        "threads_cpu_s_per_1000": of_record,
    }


def _threads(pid: int) -> dict[int, float]:
    """Return the CPU seconds of each thread of a process."""
    found = {}
    for file in Path(f"/proc/{pid}/task").glob("*/stat"):
        fields = file.read_text().rpartition(")")[2].split()
        found[int(file.parent.name)] = (int(fields[11]) + int(fields[12])) / TICKS_PER_S
    return found


def _names(pid: int) -> dict[int, str]:
    """Return the names of the threads that Python has started."""
    dump = subprocess.run([PY_SPY, "dump", "--json", "--pid", str(pid)], capture_output=True, text=True, check=True)
    named = {thread["os_thread_id"]: thread["thread_name"] or "unnamed" for thread in json.loads(dump.stdout)}
    return {task: re.sub("/?[0-9a-f]{32}", "", name) for task, name in named.items()}  # without the id of the run


def _record(pid: int, form: str, file: Path) -> None:
    command = [PY_SPY, "record", "--pid", str(pid), "--duration", str(SAMPLED_S), "--format", form, "--threads"]
    subprocess.run([*command, "--output", file], capture_output=True, check=True)


def _idle(subject: Subject, topics: Topics, examples: list[Example], partitions: int) -> Run:
    """Return the CPU time of a worker that waits for records, in percent of a core."""
    topic = f"{TOPIC}.idle-{partitions}"
    broker = topics.fill(topic, examples[:IDLE_RECORDS], IDLE_RECORDS, partitions)
    with TemporaryDirectory() as parent:
        folder = Path(parent, uuid4().hex)
        folder.mkdir()
        with Worker(subject, [f"input.topics=['{topic}']"], broker, folder, SAVE_EVERY_S) as worker:
            worker.await_figure("checkpoint_seconds_count", 1)
            time.sleep(SETTLE_S)
            first: Observation = observe(worker.pid, 0)
            time.sleep(IDLE_S)
            last = observe(worker.pid, 1)
    topics.drop(topic)
    figures = between(first, last)
    percent = 100 * (last.cpu_s - first.cpu_s) / (last.at_s - first.at_s)
    return {"percent_of_a_core": percent, "cores_elsewhere": figures.cores_elsewhere}
