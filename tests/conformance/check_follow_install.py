"""A follower in an environment that holds `locks/follow.txt` and the package, nothing else.

`make test` does not collect this file. `make conformance` runs it.
"""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from environments import CLEAN, EVERY, GRAPHS, install
from feed import mixed
from harness import Run

from stream_learner.config import MIB
from stream_learner.local.broker import Broker

PROGRAM = Path(__file__).with_name("follow.py")
ROUNDS = 3


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("environment")
    install(folder, "follow.txt")
    return folder


def test_a_live_run_is_followed_without_torch(
    environment: Path, broker: Broker, tmp_path: Path, show: Callable[[str], None]
) -> None:
    run = Run(broker, tmp_path / "followed", overrides=EVERY | GRAPHS)
    command = [environment / "bin" / "python", PROGRAM, run.id, broker.bootstrap_servers, run.store]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=CLEAN
    ) as program:
        assert program.stdin
        assert program.stdout
        try:
            worker = run.start()
            used = []
            for seed in range(ROUNDS):
                run.feed(mixed(250, seed))
                run.learned(worker)
                used.append(json.loads(program.stdout.readline()))
            last = run.finish(worker).manifest["release"]
            while used[-1]["sequence"] < last["sequence"]:
                used.append(json.loads(program.stdout.readline()))
            program.stdin.close()
            cost = json.loads(program.stdout.readline())
        finally:
            program.kill()
            run.close()
    assert cost["too_much"] == []
    assert cost["package"].startswith(str(environment))
    assert len(used) >= ROUNDS
    assert used[-1] == {"sequence": last["sequence"], "images": last["test"]["total"], "equal": last["test"]["total"]}
    assert all(release.get("equal") == release.get("images") for release in used)
    size_mib = sum(path.lstat().st_size for path in environment.rglob("*")) // MIB
    show(
        f"a follower without PyTorch: {len(used)} releases in use, {last['test']['total']} predictions equal in the "
        f"last one, import {cost['import_s']} s, memory {cost['memory_mib']} MiB (peak {cost['peak_mib']} MiB), "
        f"environment {size_mib} MiB"
    )
