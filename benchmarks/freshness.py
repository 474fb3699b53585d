"""Time from the commit of a release to the loaded, verified release in a follower.

`python -m benchmarks.freshness --releases 100`: a local broker, a worker that releases every candidate, and a
`Follower` in a process of its own. One run has a small network (mlp, 8 px, 50 KB), the other one of 6 MiB (mlp, 90 px).
The last line is JSON: p50 and p99 in seconds over all releases, and of each network.

The commit is the time at which another Kafka client shows the manifest to a `read_committed` consumer that waits for
it. The worker logs "checkpoint" later, after it has read the manifest back, so with its log the follower would look
faster. The follower's time is taken when its iteration returns the release. All clocks are this machine's.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import typer
from confluent_kafka import Consumer, TopicPartition

from benchmarks.start import COMMAND
from stream_learner import Follower
from stream_learner.local.broker import Broker

SETTINGS = """
run.id = "{name}"
input.topics = ["{name}.input"]
kafka.bootstrap_servers = "{servers}"
model = {{name = "mlp", height = {side}, width = {side}, channels = 3}}
checkpoint = {{store = "{folder}/objects", every_s = 3600.0}}
release = {{every_records = {every}, min_held_out = 1_000_000, format_wait_s = 300.0}}
monitoring.port = 0
log.format = "json"
"""
NETWORKS = {"small": 8, "6 MiB": 90}
"""Side of the images in pixels; a network's first layer holds 64 values for each value of an image."""
EVERY_RECORDS = 50
# A release every second: the worker publishes one after the other, and the follower never waits for a worker.
RATE = 50
# The first releases wait for the graph and grow with the labels.
WARM_UP = 3

Order = tuple[int, int]


def follow(run: str, servers: str, reports: Connection) -> None:
    """Report the order of each release in use, its time and its size, until the process ends."""
    with Follower(run, servers) as follower:
        for release in follower:
            reports.send((release.order, time.time(), len(release.data)))


def witness(topic: str, servers: str, seen: dict[Order, float], stop: threading.Event) -> None:
    """Note when each release became visible to a consumer that reads committed records."""
    config = {"bootstrap.servers": servers, "group.id": "witness", "enable.auto.commit": False}
    with closing(Consumer(config | {"isolation.level": "read_committed"})) as consumer:
        consumer.assign([TopicPartition(topic, 0, 0)])
        while not stop.is_set():
            message = consumer.poll(0.1)
            if message is None or message.error():
                continue
            at, manifest = time.time(), json.loads(message.value() or b"")
            if manifest["release"]:
                seen.setdefault((manifest["epoch"], manifest["release"]["sequence"]), at)


def measure(settings: Path, name: str, servers: str, releases: int, show: Callable[[str], None]) -> dict[str, object]:
    """Return delays in seconds of the releases that the follower had in use, after the first ones."""
    seen: dict[Order, float] = {}
    stop = threading.Event()
    watching = threading.Thread(target=witness, args=(f"{name}.checkpoints", servers, seen, stop))
    watching.start()
    reports, sending = multiprocessing.Pipe(duplex=False)
    follower = multiprocessing.get_context("spawn").Process(target=follow, args=(name, servers, sending), daemon=True)
    follower.start()
    sending.close()  # so that the end of the follower is an error here
    feed = [*COMMAND, "feed", str(settings), "--rate", str(RATE), "--epochs", "1000"]
    used: dict[Order, float] = {}
    size = 0
    with (
        subprocess.Popen([*COMMAND, "run", str(settings)], stderr=subprocess.DEVNULL) as worker,
        subprocess.Popen(feed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as feeder,
    ):
        while len(used) < releases + WARM_UP:
            order, at, size = reports.recv()
            used[order] = at
            if len(used) % 10 == 0:
                show(f"{name}: {len(used)} releases in use")
        feeder.terminate()
        worker.terminate()
    follower.terminate()
    stop.set()
    watching.join()
    first, last = sorted(used)[WARM_UP], max(used)
    committed = {order: at for order, at in seen.items() if first <= order <= last}
    delays = [used[order] - at for order, at in committed.items() if order in used]
    # A follower takes the newest release only. One that it passed over was not in use in time.
    return figures(delays) | {"skipped": len(committed) - len(delays), "bytes": size, "delays": delays}


def figures(delays: list[float]) -> dict[str, object]:
    """Return quantiles of delays in seconds."""
    p50, p99 = np.quantile(delays, [0.5, 0.99])
    return {"p50": round(p50, 3), "p99": round(p99, 3), "worst": round(max(delays), 3), "n": len(delays)}


def main(releases: Annotated[int, typer.Option(min=1, help="Releases of each network.")] = 100) -> None:
    """Measure both networks and print the delays."""

    def show(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    found: dict[str, dict[str, object]] = {}
    with TemporaryDirectory() as scratch, Broker(Path(scratch, "kafka")) as broker:
        for name, side in NETWORKS.items():
            run = name.replace(" ", "-")
            settings = Path(scratch, f"{run}.toml")
            servers = broker.bootstrap_servers
            settings.write_text(
                SETTINGS.format(name=run, servers=servers, folder=scratch, side=side, every=EVERY_RECORDS)
            )
            topics = [*COMMAND, "topics", str(settings), "--input-partitions", "1"]
            subprocess.run(topics, check=True, stdout=sys.stderr)
            found[name] = measure(settings, run, servers, releases, show)
            show(f"{name}: {found[name]['p50']} s, 99 of 100 in {found[name]['p99']} s")
    delays = [delay for of_network in found.values() for delay in of_network.pop("delays")]  # pyright: ignore
    print(json.dumps(figures(delays) | {"load": round(os.getloadavg()[0], 2)} | found))


if __name__ == "__main__":
    typer.run(main)
