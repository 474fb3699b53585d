"""Two workers of one run: one learns, the other stands by, and a replaced worker publishes nothing."""

import signal
from typing import Any

import pytest
from child import Point
from feed import mixed
from harness import NewRun, Run, Worker

from stream_learner.errors import ExitCode
from stream_learner.local.broker import free_port

STANDBY: dict[str, Any] = {"run__on_conflict": "standby", "run__session_timeout_s": 3.0}


def stands_by(worker: Worker) -> None:
    worker.until("standby", lambda: worker.metric("phase").get('{phase="standby"}') == 1)


def pair(run: Run) -> tuple[Worker, Worker]:
    """A worker that has learned what was fed, and a standby."""
    active = run.start()
    run.learned(active)
    standby = run.start()
    stands_by(standby)
    return active, standby


def test_a_standby_takes_over_when_the_active_worker_stops(new_run: NewRun) -> None:
    run = new_run(partitions=2, **STANDBY)
    run.feed(mixed(500))
    active, standby = pair(run)
    assert standby.metric("phase")['{phase="learning"}'] == 0
    active.stop()
    run.feed(mixed(500))
    run.finish(standby)


def test_a_standby_takes_over_when_the_active_worker_is_killed(new_run: NewRun) -> None:
    run = new_run(partitions=2, **STANDBY)
    run.feed(mixed(500))
    active, standby = pair(run)
    run.feed(mixed(500))
    active.kill()
    run.finish(standby)


def test_a_restarted_worker_stands_by_for_its_dead_self(new_run: NewRun) -> None:
    run = new_run(**STANDBY)
    run.feed(mixed(500))
    worker = run.start()
    worker.reaches("checkpoint_sequence", 2)
    worker.kill()
    run.finish(run.start())


def test_a_standby_has_fetched_the_state_already(new_run: NewRun) -> None:
    run = new_run(**STANDBY, checkpoint__every_records=1000, checkpoint__every_s=3600.0)
    run.feed(mixed(1000))
    active = run.start()
    active.until("its only save", lambda: run.saved() == run.ends())
    standby = run.start()
    stands_by(standby)
    state = run.store / run.published().manifest["state"]["key"]
    active.kill()
    aside = state.rename(run.folder / "aside")
    standby.learning()
    aside.rename(state)
    run.finish(standby)


@pytest.mark.parametrize("method", ["begin", "offsets"])
def test_an_active_worker_that_wakes_up_after_it_was_replaced_publishes_nothing(new_run: NewRun, method: str) -> None:
    run = new_run(**STANDBY)
    run.feed(mixed(500))
    sleeper = run.start_signalled(Point("transaction", method, 2), signal.SIGSTOP)
    sleeper.paused()
    standby = run.start()
    run.learned(standby)
    sleeper.signal(signal.SIGCONT)
    sleeper.ends(ExitCode.FENCED)
    run.finish(standby)


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_a_worker_that_wakes_up_between_its_election_and_its_take_over_learns_nothing(
    new_run: NewRun, before: bool
) -> None:
    run = new_run(**STANDBY)
    run.feed(mixed(500))
    sleeper = run.start_signalled(Point("transaction", "fence", before=before), signal.SIGSTOP)
    sleeper.paused()
    second = run.start()
    run.learned(second)
    sleeper.signal(signal.SIGCONT)
    assert '"event":"learning"' not in sleeper.ends(ExitCode.FENCED)
    run.feed(mixed(300))
    if before:  # it was past the question, and costs the new one a restart
        second.ends(ExitCode.FENCED)
        second = run.start()
    run.finish(second)


def test_an_idle_worker_that_wakes_up_after_it_was_replaced_ends_too(new_run: NewRun) -> None:
    run = new_run(**STANDBY)
    run.feed(mixed(500))
    active, standby = pair(run)
    active.until("its only save", lambda: run.saved() == run.ends())
    active.signal(signal.SIGSTOP)
    standby.learning()
    active.signal(signal.SIGCONT)
    assert "another worker was elected" in active.ends(ExitCode.FENCED)
    run.finish(standby)


def test_a_second_worker_on_one_host_does_without_the_port_of_the_first(new_run: NewRun) -> None:
    """Also when the first is frozen, and would not answer."""
    run = new_run(**STANDBY, monitoring__port=free_port())
    run.feed(mixed(500))
    first = run.start()
    run.learned(first)
    first.signal(signal.SIGSTOP)
    second = run.start()
    run.feed(mixed(500))
    run.learned(second)
    assert "another worker of the run on this host uses monitoring.port" in second.text()
    second.stop()
    first.kill()
    run.check()


def test_a_standby_stops(new_run: NewRun) -> None:
    run = new_run(**STANDBY)
    run.feed(mixed(500))
    active, standby = pair(run)
    standby.stop()
    run.finish(active)


def test_a_standby_that_does_not_fit_ends_and_disturbs_nobody(new_run: NewRun) -> None:
    run = new_run(**STANDBY)
    run.feed(mixed(500))
    active = run.start()
    active.reaches("checkpoint_sequence", 1)
    run.overrides["model.height"] = 9
    assert "its model.height is" in run.start().ends(ExitCode.STATE)
    del run.overrides["model.height"]
    run.feed(mixed(500))
    run.finish(active)


def test_a_second_worker_may_exit(new_run: NewRun) -> None:
    run = new_run(**STANDBY | {"run__on_conflict": "exit"})
    run.feed(mixed(500))
    active = run.start()
    run.learned(active)
    assert "is alive" in run.start().ends(ExitCode.CONFLICT)
    run.feed(mixed(500))
    run.finish(active)


def test_a_replaced_worker_comes_back_as_a_standby(new_run: NewRun) -> None:
    run = new_run(run__on_conflict="take_over", run__session_timeout_s=3.0)
    run.feed(mixed(500))
    # A worker is known by its host and port when it comes back.
    as_first, as_second = (("--set", f"monitoring.port={free_port()}") for _ in range(2))
    first = run.start(*as_first)
    run.learned(first)
    second = run.start(*as_second)
    second.learning()
    first.ends(ExitCode.FENCED)
    first = run.start(*as_first)
    stands_by(first)
    assert "comes back as a standby" in first.text()
    run.feed(mixed(500))
    run.learned(second)
    second.kill()
    run.finish(first)


def test_two_workers_that_take_the_run_from_each_other(new_run: NewRun) -> None:
    """Even when nothing is remembered of who was replaced."""
    run = new_run(partitions=2, run__on_conflict="take_over", checkpoint__every_records=50)
    worker = run.start()
    for seed in range(3):
        run.feed(mixed(300, seed))
        worker.learning()
        for mark in (run.store / run.id).glob("fenced/*"):
            mark.unlink()
        worker, before = run.start(), worker
        before.ends(ExitCode.FENCED)
    run.finish(worker)
