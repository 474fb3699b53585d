"""Gangs of four ranks that join as workers do: each rank is killed or stopped, with the product's times."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from joined_rank import RUN, sums

from stream_learner.errors import ExitCode
from stream_learner.learning.parallel import Parallel
from stream_learner.local.broker import free_port

RANKS = 4
DEADLINE_S = 120.0
PROGRAM = str(Path(__file__).with_name("joined_rank.py"))


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, PROGRAM, str(RANKS), str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as launcher:
        yield launcher
        launcher.kill()


def joined(launcher: subprocess.Popen[Any], folder: Path, ranks: int = RANKS) -> list[int]:
    """Return the process ids of the ranks, once all have joined and summed."""
    deadline = time.monotonic() + DEADLINE_S
    while len(files := sorted(folder.glob("pid*"))) < ranks:
        assert launcher.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    expected = sums(Parallel(RUN["shards"]))
    assert all((folder / f"sum{rank}").read_bytes() == expected for rank in range(ranks))
    return [int(file.read_text()) for file in files]


def gone(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return not status.exists() or "State:\tZ" in status.read_text()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("lost", range(RANKS))
def test_each_rank_that_is_killed_or_stopped_ends_the_gang(
    launcher: subprocess.Popen[str], tmp_path: Path, lost: int, how: signal.Signals
):
    pids = joined(launcher, tmp_path)
    os.kill(pids[lost], how)
    start = time.monotonic()
    while not all(gone(pid) for rank, pid in enumerate(pids) if rank != lost):
        time.sleep(0.01)
    noticed = time.monotonic()
    said = launcher.communicate(timeout=DEADLINE_S)[1]
    assert launcher.returncode == ExitCode.RANK, said
    print(
        f"rank {lost}, {how.name}: noticed after {noticed - start:.2f} s, ended after {time.monotonic() - start:.2f} s"
    )


@pytest.mark.parametrize("hung", [0, 2])
def test_a_rank_whose_main_thread_hangs_ends_the_gang(tmp_path: Path, hung: int):
    command = [sys.executable, PROGRAM, str(RANKS), str(tmp_path), "cpu", str(hung)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=DEADLINE_S)
    assert done.returncode == ExitCode.WATCHDOG, done.stdout
    (why,) = [line for line in done.stdout.splitlines() if "the loop made no turn for" in line]
    assert "so this rank ends. Start all ranks again" in why
    assert "time.sleep(1)" in done.stdout


def test_no_rank_outlives_a_killed_launcher(launcher: subprocess.Popen[str], tmp_path: Path):
    pids = joined(launcher, tmp_path)
    os.kill(pids[1], signal.SIGSTOP)
    launcher.kill()
    while not all(map(gone, pids)):
        time.sleep(0.01)


def test_a_gang_leaves_in_order(launcher: subprocess.Popen[str], tmp_path: Path):
    joined(launcher, tmp_path)
    (tmp_path / "leave").touch()
    assert launcher.wait(DEADLINE_S) == ExitCode.OK


@pytest.mark.parametrize("hosts", [1, 2])
def test_torchrun_starts_a_gang(tmp_path: Path, hosts: int):
    place = ["--nnodes", str(hosts), "--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(2 // hosts), *place]
    agents = [
        subprocess.Popen(
            [*torchrun, "--node-rank", str(host), PROGRAM, "2", str(tmp_path)],
            env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},
        )
        for host in range(hosts)
    ]
    try:
        joined(agents[0], tmp_path, 2)
        (tmp_path / "leave").touch()
        assert [agent.wait(DEADLINE_S) for agent in agents] == [ExitCode.OK] * hosts
    finally:
        for agent in agents:
            agent.terminate()  # torchrun then ends its ranks
            agent.wait()


def test_torchrun_without_a_port_is_refused(tmp_path: Path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    command = [*torchrun, "--master-port", "0", PROGRAM, "2", str(tmp_path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=DEADLINE_S)
    assert done.returncode
    assert "MASTER_PORT = '0' in the environment is not a port from 1 to 65535" in done.stdout
