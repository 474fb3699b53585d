"""A run in two ranks of one thread, beside one rank of one thread, and beside one process of two threads.

`ranks` is measured in memory, `ranks from Kafka` with the real worker, `idle rank` also with a rank that gets no
records. `exchanges` measures collectives alone. The simulation in `benchmarks/scale/` begins with these figures.
"""

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from uuid import uuid4

from benchmarks.observation import Observation, between, observe
from benchmarks.performance.inputs import Topics
from benchmarks.performance.rounds import Sides, Subject
from benchmarks.performance.worker import START_DEADLINE_S, WARM_UP_S, Worker
from benchmarks.runs import Run
from stream_learner.local.datasets import Example

TOPIC = "images-2"
RECORDS = 60_000
MEASURED_S = 8.0
PROGRAM_DEADLINE_S = 100.0
STAGES = ((2, 2), (4, 1))
"""More runs of one rank: its number of shards, and their samples as multiples of those of `1 rank`."""
STAGES_BATCH = 32


class Side(NamedTuple):
    ranks: int
    shards: int
    threads: int

    def overrides(self, batch: int) -> list[str]:
        return [
            f"run.shards={self.shards}",
            f"memory.replay_size={replay(batch)}",
            f"learning.threads={self.threads}",
        ]


SIDES = {"1 rank": Side(1, 2, 1), "2 ranks": Side(2, 2, 1), "2 threads": Side(1, 1, 2)}


IDLE_RANK_SIDES = "both ranks have records", "only rank 0 has records"


def replay(batch: int) -> int:
    """Return the number of replayed samples in a step: 96 beside 32 new ones, 128 beside 128."""
    return min(3 * batch, 128)


def sides(subject: Subject) -> Sides:
    """Return the learner in memory, in the three ways, and with STAGES_BATCH in one rank with more samples or shards.

    From the latter the simulation takes the parts of a step: of the step, of each shard, and of each sample.
    """
    found: dict[str, partial[Run]] = {}
    for name, side in SIDES.items():
        overrides = subject.overrides(*side.overrides(subject.batch))
        found[name] = partial(_in_memory, side.ranks, subject.batch // side.shards, overrides)
    own = subject.batch // SIDES["1 rank"].shards
    for shards, times in STAGES if subject.batch == STAGES_BATCH else ():
        sizes = [
            f"batch.size={shards * times * own}",
            f"memory.replay_size={shards * times * replay(subject.batch) // 2}",
        ]
        overrides = subject.overrides(*Side(1, shards, 1).overrides(subject.batch), *sizes)
        found[f"1 rank, {shards} shards of {times * own}"] = partial(_in_memory, 1, times * own, overrides)
    return found


def kafka_sides(subject: Subject, topics: Topics, examples: list[Example]) -> Sides:
    """Return the worker on a topic of two partitions, in the three ways."""
    return {name: partial(_from_kafka, subject, side, topics, examples) for name, side in SIDES.items()}


def idle_rank_sides(subject: Subject, topics: Topics, examples: list[Example]) -> Sides:
    """Return two ranks with records for both, and with records only for rank 0."""
    return {
        side: partial(_from_kafka, subject, SIDES["2 ranks"], topics, examples, empty)
        for empty, side in enumerate(IDLE_RANK_SIDES)
    }


def beside_sides(subject: Subject) -> Sides:
    """Return one rank alone, and beside a run of its own kind with which it exchanges nothing."""
    side = SIDES["1 rank"]
    arguments = "rank", "1", str(subject.batch // side.shards), *subject.overrides(*side.overrides(subject.batch))
    return {"alone": partial(_measured, *arguments), "beside another": partial(_measured, *arguments, at_once=2)}


def exchange_sides() -> Sides:
    """Return two ranks that only use their collectives."""
    return {"2 ranks": partial(_measured, "exchanges", "2")}


def _in_memory(ranks: int, samples: int, overrides: list[str]) -> Run:
    return _measured("rank", str(ranks), str(samples), *overrides)


def _measured(program: str, *arguments: str, at_once: int = 1) -> Run:
    """Run a program of this folder, which writes figures to a file. Return them with `cores_elsewhere`.

    The figures are those of the first of `at_once` processes.
    """
    with TemporaryDirectory() as folder, ExitStack() as stack:
        first = observe(os.getpid(), 0)
        outputs = [Path(folder, str(number)) for number in range(at_once)]
        for output in outputs:
            command = [sys.executable, "-m", f"benchmarks.performance.{program}", str(output), *arguments]
            process = stack.enter_context(subprocess.Popen(command))
            stack.callback(process.kill)
            stack.callback(process.wait, PROGRAM_DEADLINE_S)
        stack.close()
        elsewhere = between(first, observe(os.getpid(), 1)).cores_elsewhere
        return json.loads(outputs[0].read_text()) | {"cores_elsewhere": elsewhere}


class _Look(NamedTuple):
    """Figures of all ranks, and of the steps and the traffic of rank 0."""

    observation: Observation
    steps: float
    collectives_s: float
    sent_bytes: float


def _from_kafka(subject: Subject, side: Side, topics: Topics, examples: list[Example], empty: int = 0) -> Run:
    """Measure the worker on a topic of two partitions, of which the last `empty` have no records."""
    topic = f"{TOPIC}-{empty}-empty" if empty else TOPIC
    broker = topics.fill(topic, examples, RECORDS, 2, empty)
    with TemporaryDirectory() as parent:
        folder = Path(parent, uuid4().hex)
        folder.mkdir()
        overrides = [f"input.topics=['{topic}']", *side.overrides(subject.batch)]
        with Worker(subject, overrides, broker, folder, ranks=side.ranks) as worker:
            _next_step(worker)
            time.sleep(WARM_UP_S)
            first = _next_step(worker)
            time.sleep(MEASURED_S)
            last = _next_step(worker)
    if last.observation.records >= RECORDS:
        raise RuntimeError(f"all {RECORDS} records were read before the measurement ended")
    found, steps = between(first.observation, last.observation), last.steps - first.steps
    return found._asdict() | {
        "step_ms": 1e3 * (last.observation.at_s - first.observation.at_s) / steps,
        "collectives_ms_per_step": 1e3 * (last.collectives_s - first.collectives_s) / steps,
        "sent_bytes_per_step": (last.sent_bytes - first.sent_bytes) / steps,
    }


def _next_step(worker: Worker) -> _Look:
    """Wait for the next step. Raises TimeoutError."""
    deadline, before = time.monotonic() + START_DEADLINE_S, None
    while time.monotonic() < deadline:
        if figures := worker.figures():
            steps = figures.total("steps_total")
            if steps and before is not None and steps > before:
                traffic = (figures.total(f"collectives_{name}_total") for name in ("seconds", "sent_bytes"))
                return _Look(worker.look(), steps, *traffic)
            before = steps
        time.sleep(0.02)
    raise TimeoutError(f"no step was taken in {START_DEADLINE_S:.0f} s")
