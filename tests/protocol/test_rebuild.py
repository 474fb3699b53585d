"""The ledger holds the records of a checkpoint: learning them again gives the same bytes."""

import re
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.cimpl import NewPartitions
from feed import flipped, mixed
from harness import DEADLINE_S, NewRun, Run
from outputs import Log, roll_backs

from stream_learner.errors import ExitCode
from stream_learner.local.broker import Broker

RESTARTS = 3
# Every state, and so little in each that the manifest has room for the parts of all of them.
ALL_KEPT = {
    "checkpoint.keep": 100,
    "memory.max_bytes": 40_000,
    "held_out.max_bytes": 16_000,
    "memory.segment_bytes": 16 * 1024,
}
SETTINGS = ALL_KEPT | {
    "model.name": "cnn",
    "batch.size": 8,
    "memory.max_items": 200,
    "held_out.max_items": 100,
    "release.every_records": 200,
    "release.max_drop": 0.02,
    "release.patience": 1,
    "checkpoint.every_records": 100,
    "checkpoint.max_unsaved_records": 150,
}


@pytest.fixture(scope="module")
def restarted(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Log]:
    """Return a run on three partitions and its output. It was killed three times and went back to a release.

    All its states are kept.
    """
    run = Run(broker, tmp_path_factory.mktemp("restarted"), 3, SETTINGS)
    for seed in range(RESTARTS):
        run.feed(flipped(mixed(1200, seed), 1200))
        published = len(run.read("history"))
        worker = run.start()
        worker.reaches("checkpoint_sequence", published + 3)
        worker.kill()
    return run, run.finish(run.start())


def rebuild(run: Run, start: Any, target: Any, code: int = 0) -> str:
    before = written(run)
    text = run.call("rebuild", "--from", str(start), "--to", str(target)).ends(code)
    assert written(run) == before
    return text


def written(run: Run) -> dict[Path, int]:
    """When each file and folder of the store was written, in nanoseconds."""
    return {path: path.stat().st_mtime_ns for path in (run.store, *run.store.rglob("*"))}


def releases(log: Log) -> list[dict[str, Any]]:
    return [manifest for manifest in log.manifests if manifest["released"]]


def test_a_release_in_the_middle_of_the_run(restarted: tuple[Run, Log]) -> None:
    run, log = restarted
    release = releases(log)[len(releases(log)) // 2]
    said = rebuild(run, 2, release["sequence"])
    assert f"checkpoint {release['sequence']} rebuilt from 2" in said
    assert f"state {release['state']['digest']}, as published" in said
    assert f"release {release['release']['object']['digest']}, as published" in said
    records = sum(window["records"] for window in log.windows if 2 < window["sequence"] <= release["sequence"])
    assert re.search(rf"\b{records} records", said)


def test_the_whole_run_from_the_beginning(restarted: tuple[Run, Log]) -> None:
    run, log = restarted
    assert log.manifest["state"]["digest"] in rebuild(run, 0, log.manifest["sequence"])


def test_a_roll_back_needs_the_state_of_the_release(restarted: tuple[Run, Log], tmp_path: Path) -> None:
    run, log = restarted
    back = next(m for m in roll_backs(log) if m["rolled_back_to"] < m["sequence"] - 1)
    start, end = back["sequence"] - 1, back["sequence"]
    assert f"state {back['state']['digest']}, as published" in rebuild(run, start, end)
    release = log.manifests[back["rolled_back_to"] - 1]
    path, backup = run.store / release["state"]["key"], tmp_path / "backup"
    shutil.move(path, backup)
    said = rebuild(run, start, end, ExitCode.STATE)
    shutil.move(backup, path)
    assert f"the state of checkpoint {release['sequence']}, which has the last release, is also needed" in said
    assert f"rebuilt from {release['sequence']}" in rebuild(run, release["sequence"], end)


def test_any_state_that_is_kept_will_do(finished: tuple[Run, Log]) -> None:
    """Also one that was saved under a release that is not the last any more."""
    run, log = finished
    for start in [state["sequence"] for state in log.manifest["kept"][:-1]]:
        assert f"rebuilt from {start}" in rebuild(run, start, log.manifest["sequence"])


def test_files_and_keys(restarted: tuple[Run, Log], tmp_path: Path) -> None:
    run, log = restarted
    first, second, third, *_ = log.manifests
    manifest = tmp_path / "manifest.json"
    manifest.write_bytes(log.history[2].value or b"")
    assert "from 1" in rebuild(run, first["state"]["key"], manifest)
    backup = tmp_path / "backup"
    backup.write_bytes(log.objects[second["state"]["key"]])
    said = rebuild(run, backup, manifest)
    assert f"checkpoint {third['sequence']} rebuilt from {second['sequence']}" in said


def test_other_settings_give_other_bytes(restarted: tuple[Run, Log]) -> None:
    run, log = restarted
    changed = Run.__new__(Run)
    changed.__dict__ |= run.__dict__ | {"overrides": SETTINGS | {"learning.learning_rate": 0.001}}
    said = rebuild(changed, 1, 3, ExitCode.MISMATCH)
    assert log.manifests[2]["state"]["digest"] in said
    assert "it is rebuilt with other settings, unlike checkpoint 3" in said


@pytest.mark.parametrize(
    ("start", "target", "message"),
    [
        (3, 3, "not the state of a checkpoint before 3"),
        (9999, 3, "not the state of a checkpoint before 3"),
        ("file:///nowhere", 3, "not the state of a checkpoint before 3"),
        ("nowhere", 3, "neither a sequence, a key, a URL nor a file"),
        (0, 9999, "is not in the history topic"),
        (0, "nowhere", "neither a sequence nor a file"),
    ],
)
def test_what_is_not_there(restarted: tuple[Run, Log], start: Any, target: Any, message: str) -> None:
    assert message in rebuild(restarted[0], start, target, ExitCode.USAGE)


def test_records_that_were_lost_are_passed_over_again(new_run: NewRun) -> None:
    run = new_run(2, input__on_lost="continue", **{name.replace(".", "__"): value for name, value in ALL_KEPT.items()})
    run.feed(mixed(500))
    before = len(run.finish(run.start()).history)
    run.feed(mixed(1000))
    run.lose(0, 400)
    log = run.finish(run.start())
    lost = [span for window in log.windows for span in window["lost"].get(run.input, {}).get("0", [])]
    assert lost == [[250, 400]]
    assert "as published" in rebuild(run, before, log.manifest["sequence"])
    assert "are needed, but the topic no longer holds them" in rebuild(run, 0, log.manifest["sequence"], ExitCode.INPUT)


def test_partitions_that_were_empty_or_unread_at_a_release_are_part_of_it(new_run: NewRun) -> None:
    """The third partition is written to after a release, the fourth never, the fifth is added."""
    run = new_run(4, **{name.replace(".", "__", 1): value for name, value in SETTINGS.items()})
    drafts = mixed(750)
    run.feed(islice(drafts, 300), 2)
    run.finish(run.start())
    run.feed(islice(drafts, 200), 3)
    run.finish(run.start())
    run.partitions = 5
    run.admin.create_partitions([NewPartitions(run.input, 5)])[run.input].result(DEADLINE_S)
    run.feed(drafts)
    log = run.finish(run.start())
    first, last = releases(log)[0], log.manifest
    assert [first["positions"][run.input][p] for p in "23"] == [0, 0]
    for manifest in first, last:
        assert f"state {manifest['state']['digest']}, as published" in rebuild(run, 0, manifest["sequence"])
    assert "as published" in rebuild(run, first["sequence"], last["sequence"])


def test_a_path_across_a_change_of_settings_is_reported_as_such(new_run: NewRun) -> None:
    run = new_run(**{name.replace(".", "__", 1): value for name, value in SETTINGS.items()})
    drafts = mixed(500)
    run.feed(islice(drafts, 250))
    last = len(run.finish(run.start()).history)
    run.overrides["learning.learning_rate"] = 0.002
    run.feed(drafts)
    end = run.finish(run.start()).manifest["sequence"]
    change = f"checkpoint {last + 1} was made with other settings, unlike {last}"
    said = rebuild(run, 0, end, ExitCode.MISMATCH)
    assert said.count(change) == 2  # before it learns, and at the end
    said = rebuild(run, last, end)
    assert "as published" in said
    assert change not in said
    said = rebuild(run, 0, last, ExitCode.MISMATCH)
    assert f"it is rebuilt with other settings, unlike checkpoint {last}" in said
