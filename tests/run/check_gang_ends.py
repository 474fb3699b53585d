"""The ends of a gang: every rank and the launcher are killed or stopped, and nobody stays behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_rank import BEAT_S

from stream_learner.errors import ExitCode, RankLostError
from stream_learner.run.heartbeats import SILENT_BEATS
from stream_learner.run.launcher import verdict

RANKS = 3
DEADLINE_S = 60.0
POLL_S = 0.01


class SmallGang:
    """A launched gang of ranks that only send heartbeats."""

    def __init__(self, folder: Path, *deeds: str):
        self.folder = folder
        command = [sys.executable, str(Path(__file__).with_name("small_rank.py")), str(RANKS), str(folder), *deeds]
        self.launcher = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def joined(self) -> list[int]:
        """Return the process ids of all ranks, once each has joined."""
        files = [self.folder / f"pid{rank}" for rank in range(RANKS)]
        until(lambda: all(file.exists() for file in files))
        return [int(file.read_text()) for file in files]

    def code(self) -> int:
        return self.launcher.wait(DEADLINE_S)

    def left(self) -> list[int]:
        return [rank for rank in range(RANKS) if (self.folder / f"left{rank}").exists()]

    def reasons(self) -> str:
        return "\n".join(file.read_text() for file in self.folder.glob("reason*"))


@pytest.fixture
def gangs() -> Iterator[list[SmallGang]]:
    started: list[SmallGang] = []
    yield started
    for gang in started:
        gang.launcher.kill()
        gang.launcher.communicate()


@pytest.fixture
def launched(gangs: list[SmallGang], tmp_path: Path):
    def launch(*deeds: str) -> SmallGang:
        gangs.append(SmallGang(tmp_path, *deeds))
        return gangs[-1]

    return launch


def until(condition) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(POLL_S)


def all_gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids)


@pytest.mark.parametrize("lost", [0, 2])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_is_killed_or_stopped_ends_the_gang(launched, lost: int, how: signal.Signals):
    gang = launched()
    pids = gang.joined()
    os.kill(pids[lost], how)
    assert gang.code() == ExitCode.RANK
    assert all_gone(pids)
    assert gang.left() == []
    expected = "ended" if how == signal.SIGKILL else "has been silent"
    assert f"rank {lost} of the run {expected}" in gang.reasons()


@pytest.mark.parametrize("stopped", [False, True])
def test_no_rank_outlives_the_launcher(launched, stopped: bool):
    gang = launched()
    pids = gang.joined()
    if stopped:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
    gang.launcher.kill()
    gang.launcher.wait()
    until(lambda: all_gone(pids))


def test_the_exit_code_is_that_of_the_rank_that_failed_first(launched):
    gang = launched("1=fail:7")
    assert gang.code() == ExitCode.INPUT


def test_a_signal_reaches_all_ranks_once(launched):
    gang = launched()
    pids = gang.joined()
    gang.launcher.terminate()
    assert gang.code() == ExitCode.OK
    assert gang.left() == [0, 1, 2]
    assert all_gone(pids)


def test_a_rank_waits_for_the_others_to_leave_and_their_pauses_are_no_loss(launched):
    """Three pauses: one rank holds the global lock, the whole gang stops for long, and one rank leaves late."""
    gang = launched(f"1=hold:{(SILENT_BEATS - 3) * BEAT_S}")
    pids = gang.joined()
    until((gang.folder / "held").exists)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(2 * SILENT_BEATS * BEAT_S)  # a time during which nothing happens, so there is nothing to wait for
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    os.kill(pids[2], signal.SIGTERM)
    time.sleep(BEAT_S)
    assert gang.left() == []
    (gang.folder / "leave").touch()
    assert gang.code() == ExitCode.OK
    assert gang.left() == [0, 1, 2]


OTHERS = ExitCode.RANK


@pytest.mark.parametrize(
    ("codes", "stopping", "expected"),
    [
        ((0, 0, 0), False, ExitCode.OK),
        ((0, 0, 0), True, ExitCode.OK),
        ((OTHERS, 12, OTHERS), False, ExitCode.DIVERGED),
        ((OTHERS, 5, 3), False, ExitCode.STORE),
        ((OTHERS, OTHERS), False, ExitCode.RANK),
        ((OTHERS, OTHERS), True, ExitCode.RANK),
        ((77, OTHERS), False, ExitCode.INTERNAL),
        # A stop during the start, when each rank ends at once.
        ((OTHERS, 0, OTHERS), True, ExitCode.OK),
        ((-signal.SIGTERM, 0), True, ExitCode.INTERRUPTED),
        ((OTHERS, 0, OTHERS), False, ExitCode.RANK),
    ],
)
def test_verdict(codes: tuple[int, ...], stopping: bool, expected: ExitCode):
    assert verdict(dict(enumerate(codes)), stopping) == expected


def test_the_verdict_names_a_rank_that_a_signal_ended():
    with pytest.raises(RankLostError, match="rank 1 was ended by SIGKILL"):
        verdict({0: OTHERS, 1: -signal.SIGKILL}, stopping=False)
