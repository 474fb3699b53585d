"""Records that repeatedly end the process: a later start sets them aside, and all other records are learned."""

import signal
from collections.abc import Iterable
from pathlib import Path

import child
import numpy as np
import pytest
from feed import Draft, digits, good, png
from harness import NewRun, Run, Worker
from outputs import Log

from stream_learner.errors import ExitCode

MODULE = """
import os

from stream_learner.learning.strategies.finetune import FineTune
from stream_learner.formats.plain import Plain


class Format(Plain):
    def read(self, record):
        said = dict(record.headers).get("poison")
        if said == b"abort":
            os.abort()
        if said == b"raise":
            raise KeyError("poison")
        return super().read(record)


class Poisonous(FineTune):
    def losses(self, step):
        if (step.stream.images_NHWC.float().mean((1, 2, 3)) == 255).any():
            os.abort()
        return super().losses(step)
"""
# No life gets to a save before it dies.
NEVER = {"checkpoint__every_s": 1e6, "checkpoint__every_records": 1_000_000, "release__every_records": 1_000_000}
WHITE = png(np.full((8, 8), 255, np.uint8))


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "poisonous.py").write_text(MODULE)
    return tmp_path / "modules"


def start(run: Run, modules: Path) -> Worker:
    return run.start_altered(child.with_modules, modules)


def poison(**headers: str) -> Draft:
    image, label = digits()[0]
    sent = [("label", label), ("split", b"train"), *((name, value.encode()) for name, value in headers.items())]
    return Draft(b"key", image, sent, "poison")


def set_aside(log: Log) -> list[int]:
    """Offsets, by the manifests, of a run with one partition."""
    return [offset for manifest in log.manifests for ps in manifest["poisoned"].values() for offset in ps["0"]]


def feed(run: Run, *drafts: Iterable[Draft]) -> None:
    for some in drafts:
        run.feed(some)


def rebuilt(run: Run, modules: Path, log: Log) -> str:
    arguments = ["rebuild", *run._sets, "--from", "0", "--to", str(log.manifest["sequence"])]
    return run._child(child.with_modules, arguments, modules).ends(0)


def test_a_record_that_ends_the_process_three_times_is_set_aside(new_run: NewRun, modules: Path) -> None:
    run = new_run(input__format="poisonous:Format", **NEVER)
    feed(run, good(100), [poison(poison="abort")], good(50), [poison(poison="raise")], good(100))
    for _ in range(3):
        start(run, modules).ends(-signal.SIGABRT)
    said = start(run, modules).ends(ExitCode.INTERNAL)
    for _ in range(2):
        start(run, modules).ends(ExitCode.INTERNAL)
    note = "a record ended the process repeatedly, so it is set aside as a dead letter (poison)"
    assert f'"offset":100,"event":"{note}"' in said
    log = run.finish(start(run, modules))
    assert set_aside(log) == [100, 151]
    assert not (run.store / run.id / "lives.json").exists()
    assert "as published" in rebuilt(run, modules, log)


def test_the_culprit_of_a_batch_is_found_by_learning_its_records_one_by_one(new_run: NewRun, modules: Path) -> None:
    run = new_run(learning__strategy="poisonous:Poisonous", **NEVER)
    feed(run, good(100), [poison()._replace(value=WHITE)], good(50))
    for _ in range(5):
        start(run, modules).ends(-signal.SIGABRT)
    log = run.finish(start(run, modules))
    assert set_aside(log) == [100]
    assert "as published" in rebuilt(run, modules, log)
