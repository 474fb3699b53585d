"""Topics belong to one run: a worker of a second run is refused before it writes anything."""

import time
from pathlib import Path

import pytest
from feed import mixed
from harness import DEADLINE_S, POLL_S, NewRun, Run, Worker

from stream_learner.errors import ExitCode
from stream_learner.local.broker import Broker

OUTPUTS = ("checkpoints", "history", "weights", "metrics", "dead-letters")


def sharing(new_run: NewRun, on_conflict: str, records: int) -> tuple[Run, Run]:
    """Two runs with input and store of their own, and one prefix."""
    one = new_run(run__on_conflict=on_conflict)
    other = new_run(run__on_conflict=on_conflict, topics__prefix=one.id)
    for run in (one, other):
        run.feed(mixed(records))
    return one, other


def first_to_end(workers: list[Worker]) -> int:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        for place, worker in enumerate(workers):
            if worker.poll() is not None:
                return place
        time.sleep(POLL_S)
    raise AssertionError("none of the workers ended:\n" + "\n".join(worker.text() for worker in workers))


def written(run: Run) -> int:
    """Records in the output topics."""
    return sum(len(run.read(topic)) for topic in OUTPUTS)


@pytest.mark.parametrize("on_conflict", ["standby", "take_over", "exit"])
def test_a_second_run_is_refused_while_the_first_has_not_published(new_run: NewRun, on_conflict: str) -> None:
    first, second = sharing(new_run, on_conflict, records=0)
    worker = first.start()
    worker.learning()
    second.feed(mixed(500))
    text = second.start().ends(ExitCode.STATE)
    assert f"a worker of run '{first.id}' uses the prefix '{first.id}', and topics belong to one run" in text
    assert "set topics.prefix or run.id" in text
    assert written(second) == 0
    first.feed(mixed(500))
    first.finish(worker)
    assert f"it belongs to run '{first.id}'" in second.start().ends(ExitCode.STATE)
    first.check()


@pytest.mark.parametrize("on_conflict", ["standby", "take_over"])
def test_of_two_runs_that_start_at_once_one_publishes(new_run: NewRun, on_conflict: str) -> None:
    runs = sharing(new_run, on_conflict, records=500)
    workers = [run.start() for run in runs]
    refused = first_to_end(workers)
    assert "topics belong to one run" in workers[refused].ends(ExitCode.STATE)
    first, second, worker = runs[1 - refused], runs[refused], workers[1 - refused]
    first.finish(worker)
    assert {manifest["run_id"] for manifest in first.published().manifests} == {first.id}
    assert list((second.store / second.id).rglob("*.safetensors")) == []


def test_runs_whose_prefix_and_id_read_alike_know_nothing_of_each_other(broker: Broker, tmp_path: Path) -> None:
    """Prefix `team.a` with run `b`, and prefix `team` with run `a.b`."""
    run_id, prefix = tmp_path.name, f"{tmp_path.name}.prefix"
    runs = [
        Run(broker, tmp_path / run_id, overrides={"topics.prefix": f"{prefix}.a"}),
        Run(broker, tmp_path / f"a.{run_id}", overrides={"topics.prefix": prefix}),
    ]
    try:
        workers = []
        for run in runs:
            run.feed(mixed(500))
            workers.append(run.start())
        for run, worker in zip(runs, workers, strict=True):
            run.finish(worker)
    finally:
        for run in runs:
            run.close()
