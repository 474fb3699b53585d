"""Measurements of a side that runs in a process of its own, without Kafka."""

import os
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection

from benchmarks.observation import Measurement, between, observe
from stream_learner.run.process import keep_freed_memory, spin_briefly

WARM_UP_S = 1.0
MEASURED_S = 3.0


def measure_apart(turns: Callable[..., Iterator[float]], *arguments: object, keep_freed: bool = True) -> Measurement:
    """Start a process that calls `turns(*arguments)`, which yields the records of each turn. Measure after a warm-up.

    Its threads wait as the worker's do. `keep_freed` keeps freed memory in the process, as the worker does. Raises
    RuntimeError when the process fails.
    """
    processes = get_context("spawn")
    ours, theirs = processes.Pipe()
    process = processes.Process(target=_measure, args=(turns, arguments, keep_freed, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        raise RuntimeError("the process of this side failed, see above") from None
    finally:
        process.kill()  # also when this process is stopped
        process.join()
        ours.close()


def _measure(
    turns: Callable[..., Iterator[float]], arguments: tuple[object, ...], keep_freed: bool, parent: Connection
) -> None:
    spin_briefly()
    if keep_freed:
        keep_freed_memory()
    running = turns(*arguments)
    next(running)

    def run_for(seconds: float) -> float:
        until, records = time.monotonic() + seconds, 0.0
        while time.monotonic() < until:
            records += next(running)
        return records

    run_for(WARM_UP_S)
    first = observe(os.getpid(), 0)
    parent.send(between(first, observe(os.getpid(), run_for(MEASURED_S))))
