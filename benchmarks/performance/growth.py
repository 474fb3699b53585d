"""How figures change with the length of the stream, and with classes, partitions, images, records and backlog."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import numpy as np
from rich.progress import Progress

from benchmarks.observation import between
from benchmarks.performance.inputs import Topics, flat, jpegs, padded
from benchmarks.performance.rounds import Sides, Subject, console
from benchmarks.performance.worker import Worker, watch
from benchmarks.runs import Run
from stream_learner.config import MIB
from stream_learner.local.datasets import Example

CLASSES = (10, 1_000, 10_000)
PARTITIONS = (1, 12, 600)
RECORDS = 250_000
# Sizes, and the number of records of a topic, which the worker must not read in the time of the measurement.
IMAGES_PX = {32: RECORDS, 224: 40_000, 1024: 4_000}
RECORDS_KIB = {1: RECORDS, 64: 30_000, 4096: 400}
DISTINCT = 100
BACKLOGS = (100_000, 10_000_000)
LOOK_EVERY_S = 1.0
DEADLINE_S = 3600.0
# The memory fills at the start, so only the rest of the stream counts for the slopes.
LEFT_OUT = 0.25
# Neighbouring observations are not independent. Their means over blocks nearly are.
BLOCKS = 20


def sides(subject: Subject, topics: Topics, examples: Sequence[Example], records: int) -> Sides:
    """Return the sides of a part: `long`, `classes`, `partitions`, `images`, `records` or `backlog`."""

    def side(name: str, of: Callable[[], Sequence[Example]], count: int, partitions: int = 1) -> Callable[[], Run]:
        return partial(_measure, subject, topics, f"{subject.part}-{name}", of, count, partitions)

    match subject.part:
        case "long":
            return {f"{records:,} records": partial(_long, subject, topics, examples, records)}
        case "classes":
            return {f"{count:,}": side(str(count), partial(_labelled, examples, count), RECORDS) for count in CLASSES}
        case "partitions":
            return {f"{count:,}": side(str(count), lambda: examples, RECORDS, count) for count in PARTITIONS}
        case "images":
            return {f"{px:,} px": side(str(px), partial(jpegs, px, DISTINCT), count) for px, count in IMAGES_PX.items()}
        case "records":
            return {f"{kib:,} KiB": side(str(kib), partial(_sized, kib), n) for kib, n in RECORDS_KIB.items()}
        case _:
            return {f"{count:,}": side(str(count), flat, count) for count in BACKLOGS}


def trend(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return the slope of y over x, and its standard error, from the means of BLOCKS blocks."""
    mean_x, mean_y = (np.array([block.mean() for block in np.array_split(values, BLOCKS)]) for values in (x, y))
    (slope, intercept), from_mean = np.polyfit(mean_x, mean_y, 1), mean_x - mean_x.mean()
    residual = ((mean_y - slope * mean_x - intercept) ** 2).sum() / (BLOCKS - 2)
    return float(slope), float(np.sqrt(residual / (from_mean**2).sum()))


def _measure(
    subject: Subject,
    topics: Topics,
    name: str,
    examples: Callable[[], Sequence[Example]],
    records: int,
    partitions: int,
) -> Run:
    """Measure a start and the throughput on a topic of its own."""
    topic = f"growth.{name}"
    broker = topics.fill(topic, examples(), records, partitions)
    try:
        with TemporaryDirectory() as parent:
            folder = Path(parent, uuid4().hex)
            folder.mkdir()
            worker = Worker(subject, [f"input.topics=['{topic}']", "model.max_classes=10000"], broker, folder)
            began = time.monotonic()
            with worker:
                worker.await_figure("step_seconds_count", 1)
                first_step_s = time.monotonic() - began
                found = watch(worker.look, records)
        return found._asdict() | {"start_to_first_step_s": first_step_s}
    finally:
        topics.drop(topic)


def _long(subject: Subject, topics: Topics, examples: Sequence[Example], records: int) -> Run:
    """Learn many records. Return the slopes of the memory and of the time of a step."""
    topic = "growth.long"
    broker = topics.fill(topic, examples, records)
    series: list[tuple[float, float, float, float]] = []  # records, resident bytes, seconds of steps, steps
    with TemporaryDirectory() as parent, Progress(console=console, transient=True) as progress:
        folder, bar = Path(parent, uuid4().hex), progress.add_task("learning", total=records)
        folder.mkdir()
        with Worker(subject, [f"input.topics=['{topic}']"], broker, folder) as worker:
            worker.await_figure("step_seconds_count", 1)
            first, deadline = worker.look(), time.monotonic() + DEADLINE_S
            last = first
            while last.records < records:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{last.records:,.0f} of {records:,} records were learned in {DEADLINE_S:.0f} s")
                time.sleep(LOOK_EVERY_S)
                figures, last = worker.figures(), worker.look()
                if figures:
                    names = "records_in_total", "step_seconds_sum", "step_seconds_count"
                    learned, seconds, steps = map(figures.total, names)
                    if not series or steps > series[-1][-1]:
                        series.append((learned, _resident_bytes(worker.pid), seconds, steps))
                    progress.update(bar, completed=learned)
    topics.drop(topic)
    learned, resident, seconds, steps = np.array(series).T
    step_ms = 1e3 * np.diff(seconds) / np.diff(steps)
    late = learned > LEFT_OUT * records
    memory_slope, memory_error = trend(learned[late] / 1e6, resident[late] / MIB)
    step_slope, step_error = trend(learned[1:][late[1:]] / 1e6, step_ms[late[1:]])
    return {
        **between(first, last)._asdict(),
        "memory_mib": float(resident[late].mean() / MIB),
        "memory_slope_mib": memory_slope,
        "memory_slope_error_mib": memory_error,
        "step_ms": float(step_ms[late[1:]].mean()),
        "step_slope_ms": step_slope,
        "step_slope_error_ms": step_error,
        "series": [
            [int(n), round(b / MIB, 1), round(ms, 3)]
            for n, b, ms in zip(learned[1:], resident[1:], step_ms, strict=True)
        ],
    }


def _labelled(examples: Sequence[Example], classes: int) -> list[Example]:
    return [example._replace(label=f"class {i % classes}") for i, example in enumerate(examples)]


def _sized(kib: int) -> list[Example]:
    return [padded(example, kib * 1024) for example in jpegs(32, min(DISTINCT, 64 * 1024 // kib))]


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0]) * 1024
