"""The worker itself, on a topic that was filled before, with checkpoints and monitoring on."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from benchmarks.observation import Measurement, Observation, between, observe
from benchmarks.performance import limit, memory
from benchmarks.performance.inputs import RECORDS
from benchmarks.performance.rounds import Sides, Subject
from stream_learner import config
from stream_learner.local.broker import ENDS_WITH_PARENT, Broker, free_port
from stream_learner.local.datasets import Example
from stream_learner.local.processes import Child
from stream_learner.local.scrape import Figures, scrape
from stream_learner.streams import topics

WARM_UP_S = 2.0
MEASURED_S = 5.0
LEAST_MEASURED_S = 1.0
LOOK_EVERY_S = 1.0
SAVE_EVERY_S = 5.0  # so that the measurement holds one checkpoint
NEVER = 10**9
START_DEADLINE_S = 120.0


def sides(subject: Subject, examples: list[Example], broker: Broker) -> Sides:
    """Return the limit, the learner in memory and the worker, learning as a plain loop and with the defaults."""
    plain = memory.plain()
    return {
        "limit": partial(limit.measure, subject, limit.best(subject)),
        "in memory, plain": partial(memory.measure, subject, plain, examples),
        "worker without checkpoints, plain": partial(measure, subject, plain, broker, save_every_s=NEVER),
        "worker, plain": partial(measure, subject, plain, broker),
        "in memory, default": partial(memory.measure, subject, [], examples),
        "worker, default": partial(measure, subject, [], broker),
    }


class Worker(Child):
    """`stream-learner run` in its own process, with the state of its run in a folder. A context manager.

    A second worker with the same folder resumes the run. `ranks` is the number of its ranks. With `clocked`, the worker
    measures its own saves and writes the figures to that file when it stops (`clocked.py`).
    """

    def __init__(
        self,
        subject: Subject,
        overrides: Sequence[str],
        broker: Broker,
        folder: Path,
        save_every_s: float = SAVE_EVERY_S,
        clocked: Path | None = None,
        ranks: int = 1,
    ):
        self.port, self._ranks = free_port(), ranks
        settings = subject.overrides(
            f"kafka.bootstrap_servers={broker.bootstrap_servers}",
            f"run.id={folder.name}",
            f"checkpoint.store={folder}/objects",
            f"checkpoint.every_s={save_every_s}",
            f"checkpoint.max_unsaved_records={NEVER}",
            f"release.every_records={NEVER}",
            f"monitoring.port={self.port}",
            "log.format=json",
            *overrides,
        )
        topics.create(config.load(None, settings))
        self._clocked = clocked
        super().__init__(
            ["run", "--ranks", str(ranks), *(word for each in settings for word in ("--set", each))],
            folder / "worker.log",
        )

    def start(self) -> None:
        if self._clocked is None:
            super().start()
            return
        self._asked = False
        program = [sys.executable, "-m", "benchmarks.performance.clocked", str(self._clocked)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*ENDS_WITH_PARENT, *program, *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def figures(self) -> Figures | None:
        """Return the metrics, None while the page does not answer. Raises ChildError if the worker has ended."""
        code = self.ended()
        if code is not None:
            raise self.failure("worker", code)
        return scrape(self.port)

    def look(self) -> Observation:
        """Return the figures of the process and its ranks, without any records while a metrics page does not answer."""
        pages = [self.figures(), *(scrape(self.port + rank) for rank in range(1, self._ranks))]
        if None in pages:
            return Observation(time.monotonic(), 0, 0.0, 0, 0.0)
        return observe(self.pid, sum(page.total("records_in_total") for page in pages if page))

    def await_figure(self, name: str, least: float, timeout_s: float = START_DEADLINE_S) -> Figures:
        """Wait until a metric reaches a value. Raises TimeoutError, and ChildError if the worker ends."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            figures = self.figures()
            if figures and figures.total(name) >= least:
                return figures
            time.sleep(0.05)
        raise TimeoutError(f"{name} did not reach {least} in {timeout_s:.0f} s")


def measure(
    subject: Subject,
    overrides: list[str],
    broker: Broker,
    *,
    records: int = RECORDS,
    save_every_s: float = SAVE_EVERY_S,
) -> Measurement:
    """Run a worker on a topic of `records` records, and measure it from outside by its metrics page."""
    with TemporaryDirectory() as parent:
        folder = Path(parent, uuid4().hex)
        folder.mkdir()
        with Worker(subject, overrides, broker, folder, save_every_s) as worker:
            return watch(worker.look, records)


def watch(look: Callable[[], Observation], records: int = RECORDS, measured_s: float = MEASURED_S) -> Measurement:
    """Measure a process that learns a topic, after a warm-up, until `measured_s` later or the topic's end.

    Raises RuntimeError when the topic ends too soon, TimeoutError when nothing is learned.
    """
    _next_batch(look, records)
    time.sleep(WARM_UP_S)
    first = last = _next_batch(look, records)
    until = time.monotonic() + measured_s
    while time.monotonic() < until:
        time.sleep(LOOK_EVERY_S)
        now = look()
        if now.records >= records:
            break
        last = now if now.records else last  # the page may be late
    else:
        last = _next_batch(look, records)
    if last.at_s - first.at_s < LEAST_MEASURED_S:
        raise RuntimeError(f"all {records} records were read before the measurement ended")
    return between(first, last)


def _next_batch(look: Callable[[], Observation], records: int) -> Observation:
    """Look until the next batch is learned, so that whole batches are measured. Raises TimeoutError."""
    before, deadline = look(), time.monotonic() + START_DEADLINE_S
    while True:
        now = look()
        if now.records > before.records or now.records >= records:
            return now
        if time.monotonic() > deadline:
            raise TimeoutError(f"no record was learned in {START_DEADLINE_S:.0f} s")
        time.sleep(0.05)
