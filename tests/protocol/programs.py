"""Programs of other makes, and a release that they must refuse."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

from confluent_kafka import Producer
from feed import client
from harness import DEADLINE_S, POLL_S, Run

# The brokers' archive of classes is of no use for another class path.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "JDK_JAVA_OPTIONS"}


class Program:
    """A running program, a context manager. Its output goes to a file."""

    def __init__(self, output: Path, *command: str | Path, **environment: str):
        self._output = output
        with output.open("wb") as file:
            self._process = subprocess.Popen(command, env=ENVIRONMENT | environment, stdout=file, stderr=file)

    @property
    def text(self) -> str:
        return self._output.read_text()

    def shows(self, pattern: str) -> re.Match[str]:
        """Return the first match in the output, once it is written."""
        deadline = time.monotonic() + DEADLINE_S
        while not (found := re.search(pattern, self.text)):
            assert self._process.poll() is None, self.text
            assert time.monotonic() < deadline, f"no {pattern} in {DEADLINE_S:g} s:\n{self.text}"
            time.sleep(POLL_S)
        return found

    @property
    def mapped(self) -> str:
        """Paths of the files that the process has mapped, such as shared libraries."""
        return Path(f"/proc/{self._process.pid}/maps").read_text()

    def interrupt(self) -> int:
        """Press Ctrl-C. Return the exit code."""
        self._process.send_signal(signal.SIGINT)
        return self._process.wait(DEADLINE_S)

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def forge_release(run: Run) -> None:
    """Write junk, then a manifest whose release has another digest than its chunks, to the checkpoints topic."""
    manifest = json.loads(run.read("checkpoints")[-1].value or b"")
    manifest["sequence"] += 1
    manifest["release"]["sequence"] = manifest["sequence"]
    manifest["release"]["object"]["digest"] = "sha256:" + "0" * 64
    producer = Producer(client(run.broker.bootstrap_servers))
    for value in (b"no manifest", b"[1]", b'{"release": {}}', None, json.dumps(manifest)):
        producer.produce(f"{run.id}.checkpoints", value, run.id.encode())
    producer.flush()
