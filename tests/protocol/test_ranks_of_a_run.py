"""One run over several ranks, which end together and continue as another number of ranks."""

from feed import mixed
from harness import TWO_SHARDS, NewRun

from stream_learner.errors import ExitCode


def test_a_run_learns_and_releases_beside_a_rank_that_never_gets_records(new_run: NewRun) -> None:
    run = new_run(2, **TWO_SHARDS)
    run.feed(mixed(500), 1)
    run.stop_ranks(run.start_ranks(2))
    log = run.check()
    assert log.manifest["positions"][run.input]["1"] == 0
    assert any(manifest["release"] for manifest in log.manifests)


def test_a_rank_that_is_killed_ends_the_others_and_any_number_of_ranks_continues(new_run: NewRun) -> None:
    run = new_run(3, **TWO_SHARDS)
    drafts = list(mixed(1000))
    run.feed(drafts[:500])
    first, second = run.start_ranks(2)
    for worker in (first, second):
        worker.learning()
    first.until("a checkpoint", run.saved)
    second.kill()
    assert "another rank of the run ended" in first.ends(ExitCode.RANK) or "rank 1 of the run ended" in first.text()

    run.feed(drafts[500:])
    run.stop_ranks([run.start()])
    run.feed(mixed(100, 1), 1)  # one shard has no records
    run.stop_ranks(run.start_ranks(2))
    log = run.check()
    assert len(log.manifests) > 3
    run.call("rebuild", "--from", "0", "--to", str(log.manifest["sequence"])).ends(0)
