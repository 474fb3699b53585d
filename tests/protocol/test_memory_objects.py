"""The memory's samples are written once, not with every checkpoint, and deleted when no state needs them."""

from itertools import pairwise
from pathlib import Path

from feed import good, mixed
from harness import DEFAULTS, NewRun, Run
from outputs import Log, roll_backs

from stream_learner.errors import ExitCode

SEGMENT_BYTES: int = DEFAULTS["memory.segment_bytes"]
MEMORIES = 3  # for replay, validation and test


def written(part: dict) -> int:
    """The sequence of the checkpoint that wrote a part."""
    return int(Path(part["key"]).name.split("-")[0])


def test_a_checkpoint_writes_what_is_new_and_no_more(finished: tuple[Run, Log]) -> None:
    run, log = finished
    largest = max(len(record.draft.value or b"") for record in run.fed if record.draft.fate is None)
    for (before, after), window in zip(pairwise(log.manifests), log.windows[1:], strict=True):
        new = [part for part in after["parts"] if part not in before["parts"]]
        assert sum(part["size"] for part in new) <= window["records"] * largest + MEMORIES * SEGMENT_BYTES
        assert all(written(part) == after["sequence"] for part in new)
        for part in before["parts"]:
            # A roll-back drops what came since a release; a part stays as long as a state from before needs it.
            rolled_back = range(written(part), after["sequence"] + 1)
            assert part in after["parts"] or any(back["sequence"] in rolled_back for back in roll_backs(log))
    parts = b"".join(log.objects[part["key"]] for part in log.manifest["parts"])
    assert len(parts) > 20 * SEGMENT_BYTES
    kept = [image for record in run.fed if (image := record.draft.value) and image in parts]
    assert len(kept) > 1000
    state = log.objects[log.manifest["state"]["key"]]  # holds what is not sealed yet
    assert sum(len(image) for image in set(kept) if image in state) < MEMORIES * SEGMENT_BYTES


def test_what_no_state_needs_is_deleted(new_run: NewRun) -> None:
    run = new_run(memory__max_items=200, held_out__max_items=50, checkpoint__keep=2)
    run.feed(good(3000))
    log = run.finish(run.start())
    named = {part["key"] for part in log.manifest["parts"]}
    assert {f"{run.id}/memory/{path.name}" for path in (run.store / run.id / "memory").iterdir()} == named
    assert {part["key"] for manifest in log.manifests for part in manifest["parts"]} > named


def test_without_one_of_them_nothing_is_changed(new_run: NewRun) -> None:
    run = new_run()
    run.feed(mixed(500))
    log = run.finish(run.start())
    path = next((run.store / run.id / "memory").iterdir())
    data = path.read_bytes()
    for damage, message in ((data[:-1], "is not the one a manifest names"), (None, "is missing")):
        path.unlink()
        if damage is not None:
            path.write_bytes(damage)
        assert message in run.start().ends(ExitCode.STATE)
    assert run.read("checkpoints") == log.checkpoints
    path.write_bytes(data)
    run.feed(good(100))
    run.finish(run.start())
