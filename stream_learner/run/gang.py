"""The gang of a run: processes, called ranks, that learn its shards together and end together.

Each process finds its place in the environment variables of torchrun. `run/launcher.py`, torchrun, or the manifest of a
cluster sets them.
"""

import os
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import structlog

from stream_learner.config import Settings
from stream_learner.errors import ExitCode, UsageError
from stream_learner.monitoring.health import Health
from stream_learner.run.heartbeats import SILENT_BEATS, Heartbeats, connections

if TYPE_CHECKING:
    from stream_learner.learning.parallel import Parallel

log = structlog.get_logger()

EndProcess = Callable[[ExitCode], None]

# The ranks wait for each other this long, and `kafka.give_up_s` longer. A rank may fetch a large state before it joins,
# and later it may wait for Kafka or for the store. The heartbeats notice a rank that ends, stops or hangs. So once all
# have joined, only a bug of the collectives reaches this time-out.
PATIENCE_S = 1800.0
LAST_PORT = 2**16 - 1
LISTENER = "MASTER_LISTEN_FD"
"""Environment variable for rank 0: file descriptor of the inherited socket that listens on MASTER_PORT."""


@dataclass(frozen=True)
class Rank:
    """Place of this process in the gang. The default is a process alone."""

    index: int = 0
    count: int = 1
    local: int = 0
    """Index among the ranks on this host."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read RANK, WORLD_SIZE and LOCAL_RANK. Raises UsageError."""
        if "RANK" not in environment and "WORLD_SIZE" not in environment:
            return cls()
        try:
            rank = cls(int(environment["RANK"]), int(environment["WORLD_SIZE"]), int(environment.get("LOCAL_RANK", 0)))
        except (KeyError, ValueError):
            raise UsageError(
                "of RANK and WORLD_SIZE in the environment, one is missing or is not a number; set both or none"
            ) from None
        if not 0 <= rank.index < rank.count:
            raise UsageError(
                f"RANK = {rank.index} in the environment is not from 0 to WORLD_SIZE - 1 = {rank.count - 1}"
            )
        if rank.count > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
            raise UsageError(
                "WORLD_SIZE is in the environment, but MASTER_ADDR or MASTER_PORT is not; set them to the host of rank "
                "0 and a free port there"
            )
        port = environment.get("MASTER_PORT", "")
        if rank.count > 1 and not (port.isdecimal() and 1 <= int(port) <= LAST_PORT):
            raise UsageError(
                f"MASTER_PORT = {port!r} in the environment is not a port from 1 to {LAST_PORT}; set it to a free port "
                "on the host of rank 0 (with torchrun: --master-port)"
            )
        return rank


def is_started(ranks: int, environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether this process is one of `ranks` ranks already. Raises UsageError if it is one of another number."""
    count = Rank.from_environment(environment).count
    if count not in (1, ranks):
        raise UsageError(f"--ranks is {ranks}, but WORLD_SIZE in the environment is {count}; leave out --ranks")
    return count == ranks


def check_ranks(ranks: int, shards: int) -> None:
    """Raise UsageError if the ranks cannot carry equal numbers of shards."""
    if shards % ranks:
        raise UsageError(
            f"{ranks} ranks cannot share run.shards = {shards} equally. Use a number of ranks that divides run.shards, "
            "or start a new run with more shards"
        )


class Gang:
    """The ranks of a run, of which this process is one.

    While the gang exists, a thread ends this process through `end_process` with exit code RANK when another rank ends
    or stops.
    """

    def __init__(self, parallel: "Parallel", heartbeats: Heartbeats | None):
        self.parallel = parallel
        self._heartbeats = heartbeats

    def leave(self) -> None:
        """Wait until all ranks call this method. From then on, a rank that ends does not end the others.

        Call it on every rank when the run ends in order, after the last commit, and before an error that all ranks
        raise alike.
        """
        if self._heartbeats:
            self._heartbeats.leave()


def join(rank: Rank, settings: Settings, end_process: EndProcess, health: Health | None = None) -> Gang:
    """Join the gang, and wait until all its ranks have joined. Imports torch.

    From then on, if `health` is given, this process also ends when its main thread hangs outside of a collective: when
    the loop made no turn for `monitoring.live_timeout_s`. A rank that waits for others in a collective counts as alive.

    Raises UsageError if the ranks cannot share the shards, if a rank has no CUDA device and others have one, if
    MASTER_ADDR is not an address of the host of rank 0, or if another program uses MASTER_PORT there.
    Raises RankLostError if a rank ends while the others join.
    """
    shards = settings.run.shards
    check_ranks(rank.count, shards)
    if rank.count == 1:
        from stream_learner.learning.parallel import Parallel

        return Gang(Parallel(shards), None)
    from stream_learner.learning.ranks import Ranks, check_alike, join_group

    again = "Start all ranks again: they continue from the last save"

    def end(reason: str) -> None:
        log.error(f"{reason}, so this rank ends too. {again}")
        end_process(ExitCode.RANK)

    def hang(why: str) -> None:
        stack = traceback.format_stack(sys._current_frames()[threading.main_thread().ident or 0])
        log.error(f"{why}, so this rank ends. {again}", stack="".join(stack))
        end_process(ExitCode.WATCHDOG)

    listener = os.environ.get(LISTENER)
    timeout_s = PATIENCE_S + settings.kafka.give_up_s
    device = settings.learning.device
    meeting = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    log.info("waiting for all ranks of the run", rank=rank.index, ranks=rank.count, meeting=meeting, most_s=timeout_s)
    if health:
        health.wait_for(f"waiting for all {rank.count} ranks of the run, which meet at {meeting}")
    cuda = join_group(rank.index, rank.count, rank.local, device, int(listener) if listener else None, timeout_s)
    parallel = Ranks(shards, rank.index, rank.count)
    check_alike(parallel, cuda)

    def shared(value: str) -> str:
        return str(parallel.objects([value] * len(parallel.local))[0])

    peers = connections(rank.index, rank.count, os.environ["MASTER_ADDR"], shared)
    if health:
        health.wait_for(None)
    watch = watching(health, lambda: parallel.waits, hang) if health else lambda: None
    return Gang(parallel, Heartbeats(rank.index, peers, end, watch=watch))


def watching(health: Health, waits: Callable[[], bool], hang: Callable[[str], None]) -> Callable[[], None]:
    """Return a function, called at each heartbeat, that calls `hang` with a reason when the main thread hangs.

    `waits` returns whether the main thread waits for other ranks.
    """
    hung = 0

    def watch() -> None:
        nonlocal hung
        if waits():
            health.beat()
        # A process that was frozen, for example by `docker pause`, first gets time for its next turn.
        why = health.why_not_live()
        hung = hung + 1 if why else 0
        if why and hung > SILENT_BEATS:
            hang(why)

    return watch
