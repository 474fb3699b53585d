"""A follower in an environment that holds `locks/follow.txt` and the package, nothing else.

`make test` does not collect this file. `make conformance` runs it.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from feed import mixed
from harness import Run

from stream_learner.config import MIB
from stream_learner.local.broker import Broker

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("follow.py")
SETTINGS = {
    "release.formats": ["safetensors", "onnx"],
    "release.format_wait_s": 300.0,  # each release has a graph
    # Each candidate is released.
    "release.every_records": 200,
    "release.min_held_out": 1000,
}
ROUNDS = 3


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--require-hashes", "-r", ROOT / "locks" / "follow.txt"], check=True)
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", ROOT], check=True)
    return folder


def test_a_live_run_is_followed_without_torch(
    environment: Path, broker: Broker, tmp_path: Path, show: Callable[[str], None]
) -> None:
    run = Run(broker, tmp_path / "followed", overrides=dict(SETTINGS))
    command = [environment / "bin" / "python", PROGRAM, run.id, broker.bootstrap_servers, run.store]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=clean
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
