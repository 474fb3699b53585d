"""The process is stopped, runs out of memory, or its clock jumps: nothing is lost, and the next start continues."""

import resource
import signal
import time
from pathlib import Path

import child
import numpy as np
import pytest
from child import Point
from feed import Draft, good, mixed, png
from harness import NewRun, Worker

from stream_learner.errors import ExitCode

DAY_S = 86_400.0
# Height and width of an image that has no room in what the allocator keeps in reserve (64 MiB).
PIXELS = 12_000


@pytest.mark.parametrize(
    "point",
    [Point("store", "put", 2), Point("transaction", "commit", 2)],
    ids=["put", "commit"],
)
def test_a_stop_in_a_publication(new_run: NewRun, point: Point) -> None:
    run = new_run()
    run.feed(mixed(6000))  # more than is learned while two are published, however slowly
    worker = run.start_signalled(point, signal.SIGSTOP)
    worker.paused()
    worker.signal(signal.SIGTERM)
    worker.signal(signal.SIGCONT)
    worker.ends(ExitCode.OK)
    learned = run.saved()[run.input, 0]
    assert 0 < learned < 6000  # busy it was
    run.check()
    run.finish(run.start())


def test_a_stop_in_recovery_waits_for_nothing(new_run: NewRun) -> None:
    run = new_run()
    run.feed(mixed(300))
    run.finish(run.start())
    run.feed(mixed(300))
    worker = run.start_signalled(Point("transaction", "fence", before=True), signal.SIGSTOP)
    worker.paused()
    run.broker.freeze()
    try:
        worker.signal(signal.SIGTERM)
        worker.signal(signal.SIGCONT)
        worker.ends(ExitCode.OK)
    finally:
        run.broker.thaw()
    run.finish(run.start())


def test_a_worker_that_is_stopped_at_its_start_leaves_the_election(new_run: NewRun) -> None:
    run = new_run(run__on_conflict="standby", run__session_timeout_s=30.0)
    group = run.settings.standby_group

    def members() -> int:
        return len(run.admin.describe_consumer_groups([group])[group].result(60).members)

    worker = run.start_altered(child.without_torch)
    worker.until("a member", members)
    worker.signal(signal.SIGTERM)
    worker.ends(ExitCode.OK)
    deadline = time.monotonic() + 20  # before its session ends
    while members():
        assert time.monotonic() < deadline, "it is still a member"


def test_a_hangup_saves_unless_it_is_ignored(new_run: NewRun) -> None:
    run = new_run(checkpoint__every_records=1_000_000, checkpoint__every_s=600.0)
    run.feed(good(50))
    worker = run.start_altered(child.hung_up, signal.SIG_IGN)
    worker.reaches("records_in_total", 50)
    worker.signal(signal.SIGHUP)
    run.feed(good(50))
    worker.reaches("records_in_total", 100)
    worker.stop()
    run.feed(good(50))
    worker = run.start_altered(child.hung_up, signal.SIG_DFL)
    worker.reaches("records_in_total", 50)
    worker.signal(signal.SIGHUP)
    worker.ends(ExitCode.OK)
    assert run.saved() == {(run.input, 0): 150}
    run.check()


@pytest.mark.parametrize("seconds", [DAY_S, -DAY_S], ids=["forwards", "backwards"])
def test_a_clock_that_jumps(new_run: NewRun, seconds: float) -> None:
    run = new_run(checkpoint__every_records=1_000_000, checkpoint__every_s=0.5, release__every_records=10_000)
    run.feed(mixed(300))
    worker = run.start_jumping(Point("transaction", "commit"), seconds)
    worker.reaches("checkpoint_sequence", 1)
    for sequence in (2, 3):
        run.feed(mixed(300))
        worker.reaches("checkpoint_sequence", sequence)  # the cadences continue
        assert not any(lag_s < 0 for lag_s in worker.metric("lag_seconds").values())  # NaN before its first look
    log = run.finish(worker)
    assert len(log.history) < 20  # and are none too fast
    run.feed(mixed(300))
    run.finish(run.start())


def test_a_process_that_runs_out_of_memory(new_run: NewRun) -> None:
    run = new_run(input__max_record_bytes=200_000, input__max_image_pixels=PIXELS**2)
    run.feed(good(300))
    run.finish(run.start())
    worker = run.start()
    worker.learning()
    limit = data_bytes(worker) + 16 * 1024 * 1024  # room for a thread or two
    resource.prlimit(worker.pid, resource.RLIMIT_DATA, (limit, limit))
    large = png(np.zeros((PIXELS, PIXELS), np.uint8))
    run.feed([Draft(None, large, [("label", b"0"), ("split", b"train")], "train")])
    assert "input.max_image_pixels" in worker.ends(ExitCode.MEMORY)
    assert run.saved() == {(run.input, 0): 300}
    run.finish(run.start())  # where there is more memory, the image is learned, not rejected


def data_bytes(worker: Worker) -> int:
    """Private memory that a process has taken, as RLIMIT_DATA counts it (proc_pid_status(5))."""
    status = Path(f"/proc/{worker.pid}/status").read_text()
    return int(status.partition("VmData:")[2].split()[0]) * 1024
