"""The worker itself, on a topic that was filled before, with checkpoints and monitoring on."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from benchmarks.observation import Measurement, Observation, between, observe
from benchmarks.performance import limit, memory
from benchmarks.performance.apart import WARM_UP_S
from benchmarks.performance.inputs import RECORDS
from benchmarks.performance.rounds import Sides, Subject
from stream_learner import config
from stream_learner.local.broker import Broker, free_port
from stream_learner.local.datasets import Example
from stream_learner.local.processes import Child
from stream_learner.local.scrape import scrape
from stream_learner.streams import topics

SAVE_EVERY_S = 10.0  # also the time of the measurement, so that it holds one checkpoint
NEVER = 10**9


def sides(subject: Subject, examples: list[Example], broker: Broker) -> Sides:
    """Return the limit, the learner in memory and the worker, learning as a plain loop and with the defaults."""
    plain = memory.plain()
    return {
        "limit": partial(limit.measure, subject, limit.best(subject)),
        "in memory, plain": partial(memory.measure, subject, plain, examples),
        "worker without checkpoints, plain": partial(measure, subject, plain, broker, saves=False),
        "worker, plain": partial(measure, subject, plain, broker),
        "in memory, default": partial(memory.measure, subject, [], examples),
        "worker, default": partial(measure, subject, [], broker),
    }


def measure(subject: Subject, overrides: list[str], broker: Broker, saves: bool = True) -> Measurement:
    """Run `stream-learner run`, and measure it from outside by its metrics page."""
    with TemporaryDirectory() as folder:
        port = free_port()
        overrides = subject.overrides(
            *overrides,
            f"kafka.bootstrap_servers={broker.bootstrap_servers}",
            f"run.id={uuid4().hex}",
            f"checkpoint.store={folder}/objects",
            f"checkpoint.every_s={SAVE_EVERY_S if saves else NEVER}",
            f"checkpoint.max_unsaved_records={NEVER}",
            f"release.every_records={NEVER}",
            f"monitoring.port={port}",
        )
        topics.create(config.load(None, overrides))
        arguments = ["run", *(word for override in overrides for word in ("--set", override))]
        with Child(arguments, Path(folder, "worker.log")) as worker:

            def look() -> Observation:
                code = worker.ended()
                if code is not None:
                    raise worker.failure("worker", code)
                figures = scrape(port)
                return observe(worker.pid, figures.total("records_in_total") if figures else 0)

            return watch(look)


def watch(look: Callable[[], Observation]) -> Measurement:
    """Measure a process that learns the topic, after a warm-up. Raises RuntimeError at the topic's end."""
    while not look().records:
        time.sleep(0.1)
    time.sleep(WARM_UP_S)
    first = look()
    time.sleep(SAVE_EVERY_S)
    last = look()
    if last.records >= RECORDS:
        raise RuntimeError(f"all {RECORDS} records were read before the measurement ended")
    return between(first, last)
