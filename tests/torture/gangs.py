"""Torture of a run over several ranks: in each life a rank is killed or stopped, and the number of ranks changes."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import checker
import child
from feed import flipped, mixed
from harness import POLL_S, Run
from lives import EFFECTS, RECOVERY
from pictures import Pictures
from torture import Report, restless

from stream_learner.errors import ExitCode
from stream_learner.local.broker import Broker

SHARDS = 4
RANKS = (1, 2, 2, 4)
# What every rank does. Rank 0 does all of `EFFECTS` and `RECOVERY`.
OF_ALL_RANKS = {name: EFFECTS[name] for name in ("snapshot", "serialise", "put", "flush")} | {
    name: RECOVERY[name] for name in ("fetch", "restore", "restore of the release")
}
POINT = "at a point of a rank"
MOMENT = "at random"
STOPPED = "stopped, and woken later"
KINDS = (POINT, POINT, MOMENT, MOMENT, STOPPED)
MOMENT_S = 6.0
POINT_S = 12.0
# Heartbeats notice a stopped rank after 7 to 8 s. The machine is busy.
END_S = 30.0
LAUNCHER_S = 5.0
ENDS = (0, ExitCode.RANK, ExitCode.FENCED, ExitCode.PUBLISH, -signal.SIGKILL, -signal.SIGXFSZ)


def gang_torture(
    broker: Broker,
    folder: Path,
    kills: int,
    seed: int,
    records: int,
    pictures: Pictures,
    on_life: Callable[[], None],
    rows: int,
) -> Report:
    """Kill ranks of a run of four shards and five partitions, one of which has no records. Then rebuild the run.

    Messages have `rows` records each; 0 for plain records.
    """
    random, report = Random(seed), Report()
    share = records // (kills + 1)
    settings = (
        pictures.settings
        | restless(seed, share)
        | {
            "run.shards": SHARDS,
            "batch.size": 16,
            "memory.max_items": 400,
            "held_out.max_items": 400,
        }
    )
    run = Run(broker, folder / f"torture-{seed}-ranks", 5, settings, rows=rows)
    drafts = list(flipped(mixed(records, seed, pictures.images), share))
    for number in range(kills):
        run.feed(drafts[number * share : (number + 1) * share], 4)
        ranks, kind = random.choice(RANKS), random.choice(KINDS)
        name = f"{kind}, {ranks} ranks"
        try:
            _live(run, random, ranks, kind)
            report.killed(name)
        except AssertionError as error:
            report.failed(f"life {number}, {name}, {run.workers[-1].log.name}", error)
        run.close()
        on_life()
    run.feed(drafts[kills * share :], 4)
    try:
        run.stop_ranks(run.start_ranks(2))
        log = run.published()
        report.account(log)
        report.add(checker.violations(log, run.fed))
        report.add(checker.check_drained(log, run.fed))
        rebuild = run.call("rebuild", "--from", "0", "--to", str(log.manifest["sequence"]))
        while rebuild.poll() is None:
            time.sleep(10 * POLL_S)
        rebuild.ends(0)
    except AssertionError as error:
        report.failed("the last life, or the rebuild", error)
        run.close()
    report.records = len(run.fed)
    return report


def _live(run: Run, random: Random, ranks: int, kind: str) -> None:
    victim = random.randrange(ranks)
    if kind == POINT:
        points = EFFECTS | RECOVERY if victim == 0 else OF_ALL_RANKS
        collaborator, function, calls = points[random.choice([*points])]
        point = child.Point(collaborator, function, random.randint(1, calls), random.random() < 0.5)
        workers = run.start_ranks(ranks, {victim: (child.signalled, point, signal.SIGKILL)})
        _until(lambda: workers[victim].poll() is not None, POINT_S)  # some points are never reached
    else:
        workers = run.start_ranks(ranks)
        time.sleep(random.uniform(0, MOMENT_S))
    if workers[victim].poll() is None:
        workers[victim].signal(signal.SIGSTOP if kind == STOPPED else signal.SIGKILL)
    others = [worker for worker in workers if worker is not workers[victim]]
    # Before the ranks have met, they cannot notice that one is missing. The launcher ends them then.
    met = all('"event":"learning"' in worker.text() for worker in workers)
    ended = _until(lambda: all(worker.poll() is not None for worker in others), END_S if met else LAUNCHER_S)
    assert ended or not met, "the other ranks did not end"
    if kind == STOPPED and ranks > 1 and met:
        workers[victim].signal(signal.SIGCONT)
        assert _until(lambda: workers[victim].poll() is not None, END_S), "the rank that was stopped did not end"
    for worker in workers:
        if worker.poll() is None:
            worker.signal(signal.SIGKILL)
        worker.ends(*ENDS)


def _until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True
