"""The newest release stays in the weights topic, even if the publication of the next one is killed many times."""

import math
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from child import Point
from feed import mixed
from harness import Run

from stream_learner.config import MIB
from stream_learner.local.broker import Broker

DEATHS = 4
# A broker that deletes and compacts all the time.
EAGER = """
log.retention.check.interval.ms=100
log.initial.task.delay.ms=100
log.cleaner.backoff.ms=100
"""
# Releases of 3.6 MiB in eight chunks, one every 100 records.
LARGE = {
    "model.name": "cnn",
    "model.height": 32,
    "model.width": 32,
    "release.every_records": 100,
    "checkpoint.every_records": 10_000,
    "checkpoint.every_s": 3600.0,
}


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path / "kafka", properties=EAGER) as broker:
        yield broker


@pytest.fixture
def run(broker: Broker, tmp_path: Path) -> Iterator[Run]:
    run = Run(broker, tmp_path / "run", overrides=dict(LARGE))
    yield run
    run.close()


def test_chunks_of_killed_publications_displace_no_release(run: Run) -> None:
    run.configure("weights", "segment.bytes", str(MIB))
    run.configure("weights", "retention.bytes", str(8 * MIB))  # two releases, if it counted
    segments = run.broker.folder / "data" / f"{run.id}.weights-0"

    def bytes_on_disk() -> float:
        try:
            return sum(segment.stat().st_size for segment in segments.glob("*.log"))
        except FileNotFoundError:  # replaced in the meantime
            return math.inf

    run.feed(mixed(150))
    run.finish(run.start())
    released = run.published().manifest["release"]
    assert len(released["chunks"]) == 8
    run.feed(mixed(150))
    for _ in range(DEATHS):
        run.start_signalled(Point("transaction", "commit", before=True)).ends(-9)
    worker = run.start_signalled(Point("cluster", "newest_manifest", 2), signal.SIGSTOP)  # has aborted what was open
    worker.paused()
    worker.until("compaction", lambda: bytes_on_disk() < 3 * released["object"]["size"])
    assert run.check().manifest["release"] == released
    worker.kill()
    assert run.finish(run.start()).manifest["release"]["sequence"] > released["sequence"]
