"""The worker beside programs that users would write instead, on the same topic."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import numpy as np

from benchmarks.observation import Measurement, Observation, observe
from benchmarks.performance import limit, memory, worker
from benchmarks.performance.rounds import TOPIC, Sides, Subject, console
from stream_learner.errors import UsageError
from stream_learner.local.broker import ENDS_WITH_PARENT, Broker
from stream_learner.local.datasets import Example

ROOT = Path(__file__).parents[2]
QUIX = ROOT / ".venv" / "quix" / "bin" / "python"
AVALANCHE = ROOT / ".venv" / "avalanche" / "bin" / "python"
LOOPS = {
    "kafka-python": "kafka_python_loop",
    "confluent-kafka": "confluent_loop",
    "DataLoader": "data_loader_loop",
    "quix-streams": "quix_loop",
}
REPLAYED_PER_IMAGE = 3  # as the worker does by default


def sides(subject: Subject, broker: Broker) -> Sides:
    """Return the worker that learns as a plain loop does, the loops, and the limit."""
    beside = {
        "limit": partial(limit.measure, subject, limit.best(subject)),
        "worker": partial(worker.measure, subject, memory.plain(), broker),
    }
    return beside | {name: partial(measure, subject, name, broker, 0) for name in available()}


def sides_with_replay(subject: Subject, broker: Broker) -> Sides:
    """Return the worker with its default strategy, and the loops with a plain replay buffer, at equal views."""
    learn_all = ["split.validation=0", "split.test=0"]
    replay = REPLAYED_PER_IMAGE * subject.batch
    loops = {name: partial(measure, subject, name, broker, replay) for name in available()}
    return {"worker": partial(worker.measure, subject, learn_all, broker)} | loops


def sides_with_avalanche(subject: Subject, examples: list[Example]) -> Sides:
    """Return the learner in memory, learning as a plain loop does, and Avalanche. Raises UsageError without it."""
    if not AVALANCHE.exists():
        raise UsageError(f"{AVALANCHE} does not exist; `make bench` installs it")
    return {
        "learner": partial(memory.measure, subject, memory.plain(), examples),
        "Avalanche": partial(measure_avalanche, subject, examples),
    }


def available() -> list[str]:
    """Return the names of the loops whose libraries are installed."""
    if not QUIX.exists():
        console.print(f"quix-streams is left out: {QUIX} does not exist; `make bench` installs it", style="yellow")
    return [name for name in LOOPS if name != "quix-streams" or QUIX.exists()]


def measure(subject: Subject, name: str, broker: Broker, replay: int) -> Measurement:
    """Measure a loop that learns the topic."""
    python = QUIX if name == "quix-streams" else Path(sys.executable)
    source = [broker.bootstrap_servers, TOPIC, uuid4().hex]
    return _measure(python, LOOPS[name], [*source, *_network(subject), "--replay", str(replay)])


def measure_avalanche(subject: Subject, examples: list[Example]) -> Measurement:
    """Measure Avalanche, which learns the images in memory, repeatedly."""
    with TemporaryDirectory() as folder:
        file = Path(folder, "images.npz")
        lengths = [len(example.image) for example in examples]
        images = np.frombuffer(b"".join(example.image for example in examples), np.uint8)
        np.savez(file, images=images, lengths=lengths, labels=[int(example.label) for example in examples])
        return _measure(AVALANCHE, "avalanche_loop", [str(file), *_network(subject)])


def _network(subject: Subject) -> list[str]:
    height, width, channels = subject.size
    if height != width:
        raise ValueError(f"the loops take square images, not {height} x {width}")
    return [subject.model, str(height), str(channels), str(subject.batch)]


def _measure(python: Path, program: str, arguments: list[str]) -> Measurement:
    """Run a program of `benchmarks.loops`, and measure it from outside by the record counts that it prints."""
    command = [str(python), "-m", f"benchmarks.loops.{program}", *arguments]
    with TemporaryDirectory() as folder, Path(folder, "log").open("w+b") as log:
        process = subprocess.Popen(
            [*ENDS_WITH_PARENT, *command],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            text=True,
        )
        assert process.stdout is not None
        printed = 0.0, 0  # time and records

        def read() -> None:
            nonlocal printed
            for line in process.stdout or ():
                words = line.split()
                if words and words[0].isdigit():  # a library may print, too
                    printed = time.monotonic(), int(words[0])

        def look() -> Observation:
            if process.poll() is not None:
                raise RuntimeError(f"{program} ended: {Path(folder, 'log').read_text()[-2000:]}")
            at_s, records = printed
            return observe(process.pid, records)._replace(at_s=at_s)

        reader = threading.Thread(target=read)
        reader.start()
        try:
            return worker.watch(look)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the loop and the processes that it started
            process.wait()
            reader.join()
