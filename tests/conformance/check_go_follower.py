"""The Go example, built with its real library, follows a live run.

`make test` does not collect this file. `make conformance` runs it: the first build takes about a minute.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from environments import EVERY
from feed import mixed
from harness import Run
from programs import Program, forge_release

from stream_learner.local.broker import Broker

EXAMPLE = Path(__file__).parents[2] / "examples" / "go"


@pytest.fixture(scope="module")
def follower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example as a program."""
    go = shutil.which("go", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert go, "this check needs Go: `make conformance` gets it"
    built = tmp_path_factory.mktemp("go") / "follower"
    subprocess.run([go, "vet", "."], cwd=EXAMPLE, check=True)
    subprocess.run([go, "build", "-buildvcs=false", "-o", built, "."], cwd=EXAMPLE, check=True)
    return built


def test_a_program_in_go_prints_verified_releases(follower: Path, broker: Broker, tmp_path: Path) -> None:
    run = Run(broker, tmp_path / "followed-by-go", overrides=dict(EVERY))
    try:
        with Program(tmp_path / "follower.txt", follower, run.id, broker.bootstrap_servers) as program:
            run.feed(mixed(250))
            worker = run.start()
            program.shows("release")
            run.feed(mixed(250, 1))
            program.shows("release .*\nrelease")
            worker.stop()
            manifest = run.read("checkpoints")[-1]
            assert manifest.value
            last = re.search(rb'"release":\{"sequence":(\d+),.*?"size":(\d+)', manifest.value)
            assert last
            program.shows(
                rf"release {int(last[1])}: 10 classes, test accuracy [\d.]+%, {int(last[2])} bytes, verified\n"
            )
            forge_release(run)
            program.shows(r"release \d+: 10 classes, test accuracy [\d.]+%, refused: its weights have another digest")
            assert program.text.count("is not a manifest") == 3
            assert program.interrupt() == 0
    finally:
        run.close()
