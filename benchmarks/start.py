"""Time of a worker from the start of its process to the first learned record, and the share of each part.

`python -m benchmarks.start --rounds 5`: a local broker, scikit-learn's digits and a small network. Each round restarts
the same run. Prints JSON: seconds since the start of the process, as median and range over the rounds.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from stream_learner.local.broker import Broker

SETTINGS = """
run.id = "start"
input.topics = ["start.input"]
kafka.bootstrap_servers = "{servers}"
model = {{name = "mlp", height = 8, width = 8, channels = 1}}
checkpoint = {{store = "{folder}/objects", every_s = 0.5}}
monitoring.port = 0
log.format = "json"
"""
COMMAND = [sys.executable, "-m", "stream_learner"]
# Log events of the worker, and the step that each one completes.
EVENTS = {
    "monitoring": "settings checked, monitoring port open",
    "learning": "torch imported, elected, run taken over, input opened",
    "checkpoint": "first records learned and saved",
    "stopped": "stopped",
}


def measure(settings: Path) -> dict[str, float]:
    """Measure seconds from the start of a process to each event and from "stopped" to the exit, and CPU seconds."""
    feed = [*COMMAND, "feed", str(settings), "--limit", "100"]
    subprocess.run(feed, check=True, stdout=subprocess.DEVNULL)
    before, began = os.times(), time.time()
    found: dict[str, float] = {}
    stopping = False
    # An installed program has bytecode files. A checkout with PYTHONDONTWRITEBYTECODE would compile at every start.
    bytecode = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(settings.parent / "bytecode")}
    command = [*COMMAND, "run", str(settings)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | bytecode) as worker:
        assert worker.stderr
        for line in worker.stderr:
            entry = json.loads(line)
            if meaning := EVENTS.get(entry["event"]):
                found.setdefault(meaning, datetime.fromisoformat(entry["timestamp"]).timestamp() - began)
            if entry["event"] == "checkpoint" and not stopping:
                worker.terminate()
                stopping = True  # a second signal would end it at once
    found["exit"] = time.time() - began
    after = os.times()
    found["CPU"] = after.children_user + after.children_system - before.children_user - before.children_system
    found["from `stopped` to the exit"] = found["exit"] - found["stopped"]
    return found


def main(rounds: Annotated[int, typer.Option(min=1, help="Restarts to measure.")] = 5) -> None:
    """Measure starts and print them."""
    with TemporaryDirectory() as scratch, Broker(Path(scratch, "kafka")) as broker:
        settings = Path(scratch, "worker.toml")
        settings.write_text(SETTINGS.format(servers=broker.bootstrap_servers, folder=scratch))
        subprocess.run([*COMMAND, "topics", str(settings), "--input-partitions", "4"], check=True, stdout=sys.stderr)
        measure(settings)  # the run's first start, which also warms the disk's cache
        times = [measure(settings) for _ in range(rounds)]
    summary = {
        name: {"median_s": statistics.median(ts), "least_s": min(ts), "most_s": max(ts)}
        for name in times[0]
        if (ts := [round(measured[name], 2) for measured in times])
    }
    print(json.dumps({"load": os.getloadavg()[0], "rounds": rounds} | summary, indent=2))


if __name__ == "__main__":
    typer.run(main)
