"""Two gangs of one run, started by the command line: the second one stands by as one, and takes over."""

from confluent_kafka.cimpl import NewPartitions
from feed import mixed
from harness import DEADLINE_S, TWO_SHARDS, NewRun

STANDS_BY = "standing by"


def test_a_gang_stands_by_as_one_and_takes_over_with_added_partitions(new_run: NewRun) -> None:
    run = new_run(3, run__on_conflict="standby", **TWO_SHARDS)
    run.feed(mixed(500))
    active = run.start_command("--ranks", "2")
    active.until("a checkpoint", run.saved)
    standby = run.start_command("--ranks", "2")
    standby.until(STANDS_BY, lambda: STANDS_BY in standby.text())
    active.kill()  # the launcher, whose ranks end with it
    run.partitions = 5
    run.admin.create_partitions([NewPartitions(run.input, run.partitions)])[run.input].result(DEADLINE_S)
    run.feed(mixed(500, 1))
    run.learned_by_ranks([standby])
    standby.stop()
    log = run.check()
    assert len(log.manifests) > 3
    run.call("rebuild", "--from", "0", "--to", str(log.manifest["sequence"])).ends(0)
