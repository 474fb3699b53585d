"""A worker is stopped, killed and started again: every record is accounted for exactly once."""

import shutil
import signal
import time

from child import Point
from feed import mixed
from harness import DEADLINE_S, NewRun, Run
from outputs import Log, named_objects

from stream_learner.errors import ExitCode

# Where a worker is killed in its first publication, and the manifests this adds. Puts are those of parts, state,
# release and evaluation; three confirmations: windows and dead letters, chunks, manifests.
FIRST_POINTS = [
    (Point("store", "put"), 0),
    (Point("transaction", "offsets"), 0),
    (Point("transaction", "commit"), 1),
]
POINTS = [
    (Point("store", "put"), 0),
    (Point("tensors", "encode"), 0),  # the parts are there
    (Point("store", "put", 3), 0),
    (Point("transaction", "begin"), 0),
    (Point("transaction", "confirm"), 0),
    (Point("transaction", "confirm", 2), 0),
    (Point("transaction", "confirm", 3), 0),
    (Point("transaction", "offsets"), 0),
    (Point("transaction", "commit"), 1),
    (Point("read_back", "verify"), 1),
    (Point("retention", "delete_dropped", before=True), 1),
    (Point("retention", "delete_dropped"), 1),
]


def manifests(run: Run, at_least: int = 0) -> int:
    """Return the number of published manifests, once it is `at_least`: a commit may show a moment later."""
    deadline = time.monotonic() + DEADLINE_S
    while (found := len(run.read("history"))) < at_least:
        assert time.monotonic() < deadline, f"{found} manifests instead of {at_least}"
    return found


def test_a_stopped_run_goes_on(new_run: NewRun) -> None:
    run = new_run(partitions=2)
    run.feed(mixed(3000))
    worker = run.start_command()
    worker.reaches("checkpoint_sequence", 2)
    worker.stop()
    stopped_at = len(run.check().history)
    run.feed(mixed(1000))
    log = run.finish(run.start())
    assert len(log.history) > stopped_at


def test_a_run_whose_store_has_moved_goes_on(new_run: NewRun) -> None:
    run = new_run(release__every_records=400)
    run.feed(mixed(500))
    before = run.finish(run.start())
    moved = run.store.rename(run.folder / "elsewhere")
    assert "or set checkpoint.store to where the run's objects are" in run.start().ends(ExitCode.STATE)
    shutil.rmtree(run.store)  # the start made it
    run.overrides["checkpoint.store"] = str(moved)
    run.feed(mixed(250))
    log = run.finish(run.start())
    assert len(log.history) > len(before.history)
    assert (before.manifest["store"], log.manifest["store"]) == (run.store.as_uri(), moved.as_uri())
    assert not run.store.exists()
    url = f"{run.store.as_uri()}/{before.manifest['state']['key']}"  # a place where it is not any more
    run.call("rebuild", "--from", url, "--to", str(log.manifest["sequence"])).ends(ExitCode.OK)


def test_a_run_with_a_head_that_is_solved_goes_on(new_run: NewRun) -> None:
    run = new_run(model__head="ridge")
    run.feed(mixed(250))
    worker = run.start()
    run.learned(worker)
    worker.stop()
    assert "the network's body is frozen and random" in worker.text()
    run.feed(mixed(1000))
    log = run.finish(run.start())
    assert {window["steps"] for window in log.windows} == {0}


def test_only_what_is_kept_stays(finished: tuple[Run, Log]) -> None:
    run, log = finished
    named = {reference["key"] for reference in named_objects(log.manifest)}
    assert run.objects() == named | {f"{run.id}/run.json"}
    assert len(log.manifest["kept"]) < len(log.history)
    assert len(log.manifest["earlier"]) == 2 < sum(manifest["released"] for manifest in log.manifests)
    states = {kept["sequence"] for kept in log.manifest["kept"]}
    assert any(earlier["sequence"] not in states for earlier in log.manifest["earlier"])


def test_kills_after_each_effect(new_run: NewRun) -> None:
    run = new_run(partitions=2, release__every_records=200, release__keep=2, checkpoint__keep=1)
    run.feed(mixed(2000))
    for point, added in FIRST_POINTS + POINTS:
        before = manifests(run)
        run.start_signalled(point).ends(-signal.SIGKILL)
        assert manifests(run, before + added) == before + added, f"killed {point}"
    run.finish(run.start())
