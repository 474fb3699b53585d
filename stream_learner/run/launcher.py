"""Start the ranks of a run on this machine as child processes, which live and end together."""

import ctypes
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping

import structlog

from stream_learner.config import Settings
from stream_learner.errors import ExitCode, RankLostError
from stream_learner.monitoring import logs
from stream_learner.run.gang import LISTENER, check_ranks
from stream_learner.run.signals import obeyed

log = structlog.get_logger()

LOOPBACK = "127.0.0.1"
# After a rank ended, the others notice that it is gone. A rank that is stopped itself does not.
END_S = 5.0
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def start_again(ranks: int, settings: Settings) -> ExitCode:
    """Run this program's command line as several ranks. See `launch`. Raises UsageError, RankLostError."""
    check_ranks(ranks, settings.run.shards)
    logs.configure(settings.log.level, settings.log.format)
    return launch(ranks, [sys.executable, *sys.orig_argv[1:]])


def launch(ranks: int, command: list[str]) -> ExitCode:
    """Run a command as ranks 0 to `ranks` - 1, pass signals on to them, and return the exit code of the gang.

    A rank that fails or stops ends the others, see `run/heartbeats.py`. The exit code is that of the rank that failed
    first. If this process dies, the kernel kills the ranks. Raises RankLostError if a signal ended a rank.
    """
    events: queue.SimpleQueue[signal.Signals | tuple[int, int]] = queue.SimpleQueue()
    for number in obeyed():
        signal.signal(number, lambda number, _: events.put(signal.Signals(number)))
    gang = _started(ranks, command)
    for rank, process in enumerate(gang):
        threading.Thread(target=lambda r, p: events.put((r, p.wait())), args=(rank, process), daemon=True).start()
    codes: dict[int, int] = {}  # by rank, in the order of their ends
    stopping = False
    while len(codes) < ranks:
        try:
            event = events.get(timeout=END_S if any(codes.values()) else None)
        except queue.Empty:
            for rank in sorted(set(range(ranks)) - codes.keys()):
                log.warning("this rank did not end with the others, so it is killed", rank=rank)
                gang[rank].kill()
            break
        if isinstance(event, signal.Signals):
            stopping = True
            for process in gang:
                process.send_signal(event)
        else:
            codes[event[0]] = event[1]
    return verdict(codes, stopping)


def verdict(codes: Mapping[int, int], stopping: bool) -> ExitCode:
    """Return the exit code of a gang from the codes of its ranks, in the order of their ends.

    Codes are negative for signals. `stopping` says whether the gang was asked to stop. Raises RankLostError if the
    first rank that failed was ended by a signal.
    """
    for rank, code in codes.items():
        if code in (ExitCode.OK, ExitCode.RANK):
            continue
        if code >= 0:
            return ExitCode(code) if code in list(ExitCode) else ExitCode.INTERNAL
        if stopping and -code in obeyed():  # the signal came before the rank handled it
            return ExitCode.INTERRUPTED
        raise RankLostError(
            f"rank {rank} was ended by {signal.Signals(-code).name}, so the other ranks ended too. A restart continues "
            "from the last save"
        )
    # A stop during the start ends each rank at once, in any order.
    stopped = ExitCode.RANK not in codes.values() or (stopping and ExitCode.OK in codes.values())
    return ExitCode.OK if stopped else ExitCode.RANK


def _started(ranks: int, command: list[str]) -> list[subprocess.Popen[bytes]]:
    libc, launcher = ctypes.CDLL(None), os.getpid()

    def end_with_launcher() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != launcher:  # it died before the request
            os._exit(ExitCode.RANK)

    with socket.create_server((LOOPBACK, 0), backlog=ranks) as listener:
        threads = max(1, len(os.sched_getaffinity(0)) // ranks)
        defaults = {"OMP_NUM_THREADS": str(threads), "GLOO_SOCKET_IFNAME": "lo"}
        address = {"MASTER_ADDR": LOOPBACK, "MASTER_PORT": str(listener.getsockname()[1])}
        sizes = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
        inherited = {LISTENER: str(listener.fileno())}
        return [
            subprocess.Popen(
                command,
                env=defaults
                | os.environ
                | address
                | sizes
                | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                | (inherited if rank == 0 else {}),
                pass_fds=[listener.fileno()] if rank == 0 else [],
                # Signals of the terminal reach only this process, which passes them on once.
                start_new_session=True,
                # Safe, because this process has no other threads yet.
                preexec_fn=end_with_launcher,
            )
            for rank in range(ranks)
        ]
