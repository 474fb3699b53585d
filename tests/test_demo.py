"""The demo as a newcomer runs it: processes, real Kafka, real images, to the end."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stream_learner.local.broker import Broker
from stream_learner.local.datasets import open_dataset

ROOT = Path(__file__).parent.parent
DEMO = [sys.executable, "-m", "stream_learner", "demo"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, subprocess.CompletedProcess]:
    """A folder in which the demo ran once, its summary, and the finished process."""
    folder = tmp_path_factory.mktemp("demo")
    done = subprocess.run([*DEMO, "--summary", "summary.json"], cwd=folder, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, json.loads((folder / "summary.json").read_text()), done


def test_it_learns_the_digits(demo):
    _, summary, done = demo
    assert summary["records_read"] == summary["learned"] + summary["validation"] + summary["test"] == 1797
    assert summary["rejected"] == 0
    assert summary["test_accuracy_before"] == 0
    assert summary["test_accuracy_after"] > 0.85
    assert "test accuracy" in done.stdout


def test_resume_goes_on_with_the_last_run(demo):
    folder, first, _ = demo
    done = subprocess.run(
        [*DEMO, "--resume", "--summary", "again.json"], cwd=folder, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    again = json.loads((folder / "again.json").read_text())
    assert again["run_id"] == first["run_id"]
    assert again["records_read"] == 1797
    assert again["test_accuracy_before"] == pytest.approx(first["test_accuracy_after"])
    assert again["test_accuracy_after"] > 0.85


def test_the_readmes_lines_classify_an_image(demo, tmp_path: Path):
    folder, _, _ = demo
    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    run = folder / ".stream-learner" / "demo" / "latest"
    (tmp_path / "worker.toml").write_text((run / "worker.toml").read_text())
    example = next(iter(open_dataset(None)))
    (tmp_path / "image.png").write_bytes(example.image)
    with Broker(run.resolve() / "kafka") as broker:
        done = subprocess.run(
            [sys.executable, "-c", snippet],
            cwd=tmp_path,
            env=os.environ | {"STREAM_LEARNER_KAFKA__BOOTSTRAP_SERVERS": broker.bootstrap_servers},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == example.label


def test_ctrl_c_stops_everything(tmp_path: Path):
    process = subprocess.Popen(DEMO, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "Kafka is at" in line:
            break
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=120)
    assert process.returncode == 130, rest
    assert "Traceback" not in rest
    alive = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True).stdout.split()
    assert alive == []
