"""What a worker's process runs, in a child of the fork server."""

import os
import signal
import sys
import threading
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry

from stream_learner import cli, config, worker
from stream_learner.checkpoints.store import Store
from stream_learner.monitoring import logs
from stream_learner.monitoring.health import Health
from stream_learner.monitoring.metrics import Metrics
from stream_learner.streams.journal import ReadBack
from stream_learner.streams.transaction import Transaction


class Point(NamedTuple):
    """The end of the n-th call (from 1) of a collaborator's method; its beginning when `before`."""

    collaborator: str
    method: str
    call: int = 1
    before: bool = False

    def __str__(self) -> str:
        return f"{'before' if self.before else 'after'} {self.collaborator}.{self.method} {self.call}"


def command(log: Path, arguments: list[str]) -> None:
    """The command line, as `python -m stream_learner` runs it."""
    _write_to(log)
    sys.argv = ["stream-learner", *arguments]
    cli.main()


def signalled(log: Path, overrides: list[str], point: Point, number: signal.Signals) -> None:
    """A worker that sends itself a signal at a point of its protocol."""
    _write_to(log)
    logs.configure("info", "json")
    settings = config.load(None, overrides)
    store, transaction, read_back = Store(settings.checkpoint.store), Transaction(settings), ReadBack(settings)
    _signal_at(point, number, {"store": store, "transaction": transaction, "read_back": read_back}[point.collaborator])
    metrics, health = Metrics(CollectorRegistry(), "test"), Health(settings.monitoring.live_timeout_s)
    worker.run(settings, store, transaction, read_back, metrics, health, threading.Event(), os._exit)


def _signal_at(point: Point, number: signal.Signals, collaborator: Any) -> None:
    method = getattr(collaborator, point.method)
    calls = 0

    @wraps(method)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if point.before and calls == point.call:
            os.kill(os.getpid(), number)
        result = method(*args, **kwargs)
        if not point.before and calls == point.call:
            os.kill(os.getpid(), number)
        return result

    setattr(collaborator, point.method, wrapper)


def _write_to(log: Path) -> None:
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
