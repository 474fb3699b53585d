"""CPU time that a worker uses while no records arrive, by the number of partitions that it reads.

`python -m benchmarks.idle --partitions 1 --partitions 600`: a local broker and a small network. Prints JSON: percent of
one core, as median and range over the rounds. The process is measured from outside, so all of its threads count.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from benchmarks.observation import observe
from benchmarks.start import COMMAND
from stream_learner.local.broker import Broker

SETTINGS = """
run.id = "idle-{partitions}"
input.topics = ["idle-{partitions}.input"]
kafka.bootstrap_servers = "{servers}"
model = {{name = "mlp", height = 8, width = 8, channels = 1}}
checkpoint.store = "{folder}/objects"
monitoring.port = 0
log.format = "json"
"""
# Wait after the first records, until the work of the start is done.
SETTLE_S = 20.0


def measure(settings: Path, rounds: int, seconds: float) -> list[float]:
    """Return the CPU use of an idle worker in each round, in percent of a core."""
    with subprocess.Popen([*COMMAND, "run", str(settings)], stderr=subprocess.PIPE, text=True) as worker:
        assert worker.stderr
        for line in worker.stderr:
            if json.loads(line)["event"] == "learning":
                break
        time.sleep(SETTLE_S)
        shares = []
        for _ in range(rounds):
            first = observe(worker.pid, 0)
            time.sleep(seconds)
            last = observe(worker.pid, 0)
            shares.append(100 * (last.cpu_s - first.cpu_s) / (last.at_s - first.at_s))
        worker.terminate()
        worker.stderr.read()
    return shares


def main(
    partitions: Annotated[list[int] | None, typer.Option(help="Partitions of the input topic (1, 600).")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    seconds: Annotated[float, typer.Option(min=1, help="How long a round lasts.")] = 30.0,
) -> None:
    """Measure idle workers and print them."""
    found: dict[str, dict[str, float]] = {}
    with TemporaryDirectory() as scratch, Broker(Path(scratch, "kafka")) as broker:
        for count in partitions or (1, 600):
            settings = Path(scratch, f"{count}.toml")
            settings.write_text(SETTINGS.format(servers=broker.bootstrap_servers, folder=scratch, partitions=count))
            topics = [*COMMAND, "topics", str(settings), "--input-partitions", str(count)]
            subprocess.run(topics, check=True, stdout=sys.stderr)
            subprocess.run([*COMMAND, "feed", str(settings), "--limit", "100"], check=True, stdout=subprocess.DEVNULL)
            shares = [round(share, 2) for share in measure(settings, rounds, seconds)]
            found[f"{count} partitions"] = {
                "median_percent": statistics.median(shares),
                "least_percent": min(shares),
                "most_percent": max(shares),
            }
    print(json.dumps({"load": os.getloadavg()[0], "rounds": rounds} | found, indent=2))


if __name__ == "__main__":
    typer.run(main)
