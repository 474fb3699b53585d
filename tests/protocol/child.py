"""The worker's process, as a child of the fork server."""

import ctypes
import math
import os
import resource
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from functools import wraps
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

from no_hard_links import refuse_links

from stream_learner import cli
from stream_learner.checkpoints import retention
from stream_learner.checkpoints.store import Store
from stream_learner.contract import tensors
from stream_learner.learning.learner import Learner
from stream_learner.learning.memory import BalancedMemory
from stream_learner.publishing import checkpoint_writer, recover
from stream_learner.run import start, turn, upkeep
from stream_learner.run.driver import Driver
from stream_learner.streams.cluster import Cluster
from stream_learner.streams.journal import ReadBack
from stream_learner.streams.transaction import Transaction

LOOK_AT_MEMORY_EVERY_S = 10.0

# Whose functions have an effect of the protocol, or come between two.
COLLABORATORS: dict[str, type | ModuleType] = {
    "driver": Driver,
    "learner": Learner,
    "memory": BalancedMemory,
    "os": os,
    "cluster": Cluster,
    "checkpoint_writer": checkpoint_writer,
    "read_back": ReadBack,
    "recover": recover,
    "retention": retention,
    "tensors": tensors,
    "store": Store,
    "transaction": Transaction,
    "turn": turn,
}


class Point(NamedTuple):
    """The end of the n-th call (from 1) of a collaborator's function, or its beginning when `before`.

    When `half`, the last argument is bytes. The kernel ends the process (SIGXFSZ) once half of them are in a file.
    """

    collaborator: str
    function: str
    call: int = 1
    before: bool = False
    half: bool = False

    def __str__(self) -> str:
        when = "half" if self.half else "before" if self.before else "after"
        return f"{when} {self.collaborator}.{self.function} {self.call}"


def started(environment: dict[str, str], target: Callable[..., None], *arguments: Any) -> None:
    """Call `target` with the caller's environment. The fork server has its own."""
    os.environ.update(environment)
    target(*arguments)


def command(log: Path, arguments: list[str]) -> None:
    """The command line, as `python -m stream_learner` runs it."""
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = ["stream-learner", *arguments]
    cli.main()


def signalled(log: Path, arguments: list[str], point: Point, number: signal.Signals) -> None:
    """The command line in a process that sends itself a signal at a point of the protocol."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
    # To this thread: the process's first one, which would get it otherwise, may wake when this one is past the point.
    _at(point, lambda: signal.pthread_kill(threading.get_ident(), number))
    command(log, arguments)


def with_modules(log: Path, arguments: list[str], folder: Path) -> None:
    """The command line in a process that finds modules in a folder too."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.path.insert(0, str(folder))
    command(log, arguments)


def without_hard_links(log: Path, arguments: list[str], error: int) -> None:
    """The command line in a process whose hard links fail with an error number."""
    refuse_links(error)
    command(log, arguments)


def hung_up(log: Path, arguments: list[str], action: signal.Handlers) -> None:
    """The command line in a process that began with this action for SIGHUP."""
    signal.signal(signal.SIGHUP, action)
    command(log, arguments)


def without_torch(log: Path, arguments: list[str]) -> None:
    """The command line in a process whose import of torch does not end."""
    start.importlib = SimpleNamespace(import_module=lambda _: threading.Event().wait())  # pyright: ignore
    command(log, arguments)


def jumping(log: Path, arguments: list[str], point: Point, seconds: float) -> None:
    """The command line in a process whose wall clock jumps at a point of the protocol."""

    class Jumped(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.now(tz) + timedelta(seconds=seconds)

    def jump() -> None:
        before = time.time
        time.time = lambda: before() + seconds
        checkpoint_writer.datetime = Jumped

    _at(point, jump)
    command(log, arguments)


def measured(log: Path, arguments: list[str], turns: Path, in_use: Path) -> None:
    """Run the command line in a process that writes two files of doubles.

    One has the seconds of each turn of the worker's loop. The other has, every ten seconds, the bytes of memory in use:
    the resident ones without malloc's reserve.
    """
    tend = upkeep.Upkeep.tend
    libc = ctypes.CDLL(None)
    turned: float | None = None
    looked = -math.inf

    def measured_tend(self: upkeep.Upkeep, unsaved_records: int) -> None:
        nonlocal turned, looked
        now = time.monotonic()
        if turned is not None:
            os.write(turns_file, struct.pack("d", now - turned))
        turned = now
        tend(self, unsaved_records)
        if now - looked >= LOOK_AT_MEMORY_EVERY_S:
            looked, began = now, time.monotonic()
            libc.malloc_trim(0)
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            os.write(in_use_file, struct.pack("d", pages * os.sysconf("SC_PAGE_SIZE")))
            turned += time.monotonic() - began  # not the worker's own time

    turns_file, in_use_file = (os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND) for path in (turns, in_use))
    upkeep.Upkeep.tend = measured_tend
    command(log, arguments)


def _at(point: Point, act: Callable[[], None]) -> None:
    collaborator = COLLABORATORS[point.collaborator]
    function = getattr(collaborator, point.function)
    calls = 0

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        reached = calls == point.call
        if reached and point.half:
            _end_after(len(args[-1]) // 2)
        if reached and point.before:
            act()
        result = function(*args, **kwargs)
        if reached and not point.before:
            act()
        return result

    setattr(collaborator, point.function, wrapper)


def _end_after(size: int) -> None:
    """The first file that outgrows `size` bytes ends the process."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
