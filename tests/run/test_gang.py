"""The place of a process in its gang, and a gang whose ranks join as workers do."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import cast

import pytest
from command_line import MODULE
from joined_rank import RUN, sums

from stream_learner.config import load
from stream_learner.errors import ExitCode, RankLostError, UsageError
from stream_learner.learning import ranks
from stream_learner.learning.parallel import Parallel
from stream_learner.monitoring.health import Health, Phase
from stream_learner.run import heartbeats
from stream_learner.run.gang import Rank, check_ranks, is_started, join, watching
from stream_learner.run.heartbeats import BEAT, LEAVING, SILENT_BEATS, Heartbeats, connections

ADDRESS = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
DEADLINE_S = 60.0


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, Rank()),
        ({"RANK": "0", "WORLD_SIZE": "1"}, Rank()),
        (ADDRESS | {"RANK": "3", "WORLD_SIZE": "4"}, Rank(3, 4, 0)),
        (ADDRESS | {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, Rank(3, 4, 1)),
    ],
)
def test_the_environment_says_which_rank_a_process_is(environment: dict[str, str], rank: Rank):
    assert Rank.from_environment(environment) == rank


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "0"}, "of RANK and WORLD_SIZE in the environment, one is missing"),
        ({"RANK": "a", "WORLD_SIZE": "2"}, "is not a number"),
        (ADDRESS | {"RANK": "2", "WORLD_SIZE": "2"}, "RANK = 2 in the environment is not from 0 to WORLD_SIZE - 1 = 1"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "1"}, "MASTER_ADDR or MASTER_PORT is not"),
        (ADDRESS | {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "0"}, "MASTER_PORT = '0' .* from 1 to 65535"),
        (ADDRESS | {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "65536"}, "MASTER_PORT = '65536' .* from 1 to"),
        (ADDRESS | {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "http"}, "MASTER_PORT = 'http' .* from 1 to"),
    ],
)
def test_an_environment_of_no_rank_is_refused(environment: dict[str, str], message: str):
    with pytest.raises(UsageError, match=message):
        Rank.from_environment(environment)


def test_a_process_is_started_as_a_rank_once():
    assert is_started(1, {})
    assert not is_started(2, {})
    assert not is_started(2, {"RANK": "0", "WORLD_SIZE": "1"})
    two = ADDRESS | {"RANK": "1", "WORLD_SIZE": "2"}
    assert is_started(2, two)
    with pytest.raises(UsageError, match="--ranks is 4, but WORLD_SIZE in the environment is 2; leave out --ranks"):
        is_started(4, two)


def test_ranks_carry_equal_numbers_of_shards():
    check_ranks(2, 4)
    with pytest.raises(UsageError, match=r"3 ranks cannot share run\.shards = 4 equally"):
        check_ranks(3, 4)
    with pytest.raises(UsageError, match=r"8 ranks cannot share run\.shards = 4 equally"):
        check_ranks(8, 4)


SETTINGS = """
run.id = "r"
run.shards = 4
input.topics = ["images"]
checkpoint.store = "nope://bucket"
"""


@pytest.mark.parametrize(
    ("ranks", "lines"),
    [
        (3, ["3 ranks cannot share run.shards = 4 equally"]),
        # The launcher does not check the store, so each rank refuses it.
        (2, ["checkpoint.store = 'nope://bucket' is not a folder or a known URL"] * 2),
    ],
)
def test_the_launcher_runs_its_own_command_line(ranks: int, lines: list[str], tmp_path: Path):
    (tmp_path / "worker.toml").write_text(SETTINGS)
    command = [*MODULE, "run", "worker.toml", "--ranks", str(ranks), "--set", "monitoring.port=0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == ExitCode.USAGE
    said = done.stderr.splitlines()
    assert len(said) == len(lines)
    for line, expected in zip(said, lines, strict=True):
        assert expected in line


def test_a_rank_watches_itself_until_it_leaves(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(heartbeats, "SILENT_BEATS", 10**6)
    ours, theirs = socket.socketpair()
    watches, ends = list[None](), list[str]()

    def watched() -> bool:
        """Return whether the rank watched itself before the next beats, which come after those already sent."""
        before = len(watches)
        theirs.recv(2**20)
        assert set(theirs.recv(1) + theirs.recv(1)) == {*BEAT}
        return len(watches) > before

    with ours, theirs, ThreadPoolExecutor(1) as pool:
        theirs.settimeout(DEADLINE_S)
        beats = Heartbeats(0, {1: ours}, ends.append, 0.001, watch=lambda: watches.append(None))
        assert watched()
        leaving = pool.submit(beats.leave)
        deadline = time.monotonic() + DEADLINE_S
        while watched() and time.monotonic() < deadline:
            pass
        assert not watched()
        theirs.send(LEAVING)
        leaving.result(DEADLINE_S)
    assert not ends


class LastPeer:
    """Connection of rank 0 to a rank. Before it takes LEAVING, the other rank has taken it and ended."""

    def __init__(self, ours: socket.socket, other: socket.socket):
        self._ours = ours
        self._other = other
        self._said_leaving = False
        self.beaten = threading.Event()
        """Set once rank 0 has read that this rank leaves."""
        self.setblocking, self.fileno = ours.setblocking, ours.fileno

    def recv(self, size: int) -> bytes:
        data = self._ours.recv(size)
        self._said_leaving |= LEAVING in data
        return data

    def send(self, data: bytes) -> None:
        if self._said_leaving and data == BEAT:
            self.beaten.set()
        if data == LEAVING:
            self._other.close()
            for thread in threading.enumerate():
                if thread.name == "heartbeats":
                    thread.join(DEADLINE_S)


def test_a_rank_that_ends_while_others_are_told_to_leave_is_no_loss():
    (ours, theirs), (last, far_end) = socket.socketpair(), socket.socketpair()
    ends = list[str]()
    with ours, theirs, last, far_end:
        peer = LastPeer(last, theirs)
        beats = Heartbeats(0, {1: ours, 2: cast(socket.socket, peer)}, ends.append, 0.01)
        theirs.send(LEAVING)
        far_end.send(LEAVING)
        assert peer.beaten.wait(DEADLINE_S)
        beats.leave()
    assert not ends


@pytest.mark.parametrize(("host", "reaches"), [("rank-0", True), ("localhost", False), ("127.0.0.1", False)])
def test_rank_0_listens_where_its_name_leads_other_hosts(host: str, reaches: bool, monkeypatch: pytest.MonkeyPatch):
    def looked_up(name: str, port: int, **options: int):
        return lookup("127.0.1.1" if name == "rank-0" else "127.0.0.1", port, **options)

    def shared(value: str) -> str:
        said.put(value)
        return value

    lookup, said = socket.getaddrinfo, Queue[str]()
    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    with ThreadPoolExecutor(1) as pool:
        listening = pool.submit(connections, 0, 2, host, shared)
        told = said.get(timeout=DEADLINE_S)
        monkeypatch.undo()
        if not reaches:
            with pytest.raises(RankLostError, match=r"rank 0 of the run does not answer at 127\.0\.0\.2"):
                connections(1, 2, "127.0.0.2", lambda _: told)
        address = "127.0.0.2" if reaches else "127.0.0.1"
        for end in (connections(1, 2, address, lambda _: told)[0], listening.result(DEADLINE_S)[1]):
            end.close()


def test_a_rank_that_waits_for_others_says_so(monkeypatch: pytest.MonkeyPatch):
    health, said = Health(10.0), list[str | None]()

    def join_group(*_: object) -> bool:
        said.append(health.why_not_ready())
        raise RankLostError("nobody came")

    monkeypatch.setattr(ranks, "join_group", join_group)
    monkeypatch.setenv("MASTER_ADDR", "host0")
    monkeypatch.setenv("MASTER_PORT", "29500")
    settings = load(None, ["run.id=r", "run.shards=2", "input.topics=['t']"])
    with pytest.raises(RankLostError):
        join(Rank(0, 2), settings, lambda _: None, health)
    assert said == ["waiting for all 2 ranks of the run, which meet at host0:29500"]


def test_a_rank_that_was_frozen_has_time_for_its_next_turn_before_it_counts_as_hung():
    now, waits, hangs = [0.0], [False], list[str]()
    health = Health(10.0, clock=lambda: now[0])
    watch = watching(health, lambda: waits[0], hangs.append)
    health.enter(Phase.LEARNING)
    for end_of_freeze in (health.beat, lambda: waits.__setitem__(0, True)):
        now[0] += 1000
        for _ in range(SILENT_BEATS):
            watch()
        end_of_freeze()
        watch()
    assert not hangs
    waits[0] = False
    now[0] += 11
    for _ in range(SILENT_BEATS):
        watch()
    assert not hangs
    watch()
    assert hangs == ["the loop made no turn for 11 s (monitoring.live_timeout_s = 10)"]


def test_ranks_that_join_sum_alike_until_one_is_killed(tmp_path: Path):
    program = str(Path(__file__).with_name("joined_rank.py"))
    launcher = subprocess.Popen([sys.executable, program, "2", str(tmp_path)], stderr=subprocess.PIPE, text=True)
    with launcher:
        deadline = time.monotonic() + DEADLINE_S
        pids = [tmp_path / f"pid{rank}" for rank in (0, 1)]
        while not all(pid.exists() for pid in pids):
            assert launcher.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(int(pids[1].read_text()), signal.SIGKILL)
        said = launcher.communicate(timeout=DEADLINE_S)[1]
    assert launcher.returncode == ExitCode.RANK
    assert "rank 1 was ended by SIGKILL" in said
    expected = sums(Parallel(RUN["shards"]))
    assert (tmp_path / "sum0").read_bytes() == expected
    assert (tmp_path / "sum1").read_bytes() == expected
