"""Times to the loaded, verified release in a follower: from the commit of a release, and from the input record.

`python -m benchmarks.freshness --releases 100`: a local broker, a worker that releases every candidate, and a
`Follower` in a process of its own. One run has a small network (mlp, 8 px, 70 KB), the other one of 6 MiB (mlp, 90 px).
The last line is JSON: p50 and p99 of the time from the commit in seconds, over all releases and of each network. For
each network, `produced_to_in_use` has the time from the production of each input record to the first release in use
that has learned the record: in seconds, and in cadences. The cadence is the mean time between the run's releases. On a
machine that does not keep up with `RATE`, records wait, and this time grows with each release.

The commit is the time at which another Kafka client shows the manifest to a `read_committed` consumer that waits for
it. The worker logs "checkpoint" later, after it has read the manifest back, so with its log the follower would look
faster. The follower's time is taken when its iteration returns the release. A record's time of production is its
timestamp in Kafka (CreateTime). All clocks are this machine's.
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
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, NamedTuple

import numpy as np
import typer
from confluent_kafka import TIMESTAMP_CREATE_TIME, Consumer, TopicPartition

from benchmarks.commands import COMMAND
from stream_learner import Follower
from stream_learner.contract.manifest import decode_manifest
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
# Records a second. There is a release every two to three seconds, so an idle machine keeps up.
RATE = 25
# Records for the first releases, which wait for the graph and grow with the labels. The others are fed after that.
FIRST_RECORDS = 150
LABELS = 10
WARM_UP = 3

Order = tuple[int, int]


class Used(NamedTuple):
    """A release in use in the follower, the time, and its size."""

    order: Order
    at: float
    size: int
    is_complete: bool
    """Whether the release has a graph and all labels."""


def follow(run: str, servers: str, reports: Connection) -> None:
    """Report each release in use, until the process ends."""
    with Follower(run, servers) as follower:
        for release in follower:
            at, is_complete = time.time(), release.graph is not None and len(release.labels) == LABELS
            reports.send(Used(release.order, at, len(release.data), is_complete))


class Committed(NamedTuple):
    """A release: the time at which a consumer saw it, and the position in the input topic that it has learned up to."""

    at: float
    position: int


def reader(servers: str, topic: str, offset: int) -> Consumer:
    """Return a consumer of the committed records of a topic with one partition, from an offset on."""
    config = {"bootstrap.servers": servers, "group.id": "witness", "enable.auto.commit": False}
    consumer = Consumer(config | {"isolation.level": "read_committed"})
    consumer.assign([TopicPartition(topic, 0, offset)])
    return consumer


def witness(run: str, servers: str, committed: dict[Order, Committed], stop: threading.Event) -> None:
    """Note each release when it becomes visible to a consumer."""
    with closing(reader(servers, f"{run}.checkpoints", 0)) as consumer:
        while not stop.is_set():
            message = consumer.poll(0.1)
            if message is None or message.error():
                continue
            at, manifest = time.time(), decode_manifest(message.value() or b"")
            if manifest.released:
                committed[manifest.order] = Committed(at, manifest.learned_positions[f"{run}.input"][0])


def produced(run: str, servers: str, start: int, end: int) -> dict[int, float]:
    """Return the time of production of each input record from offset `start` up to `end`."""
    times: dict[int, float] = {}
    with closing(reader(servers, f"{run}.input", start)) as consumer:
        while len(times) < end - start:
            message = consumer.poll(10.0)
            assert message is not None, "the input records are gone"
            kind, milliseconds = message.timestamp()
            assert kind == TIMESTAMP_CREATE_TIME
            times[message.offset() or 0] = milliseconds / 1000
    return times


def measure(settings: Path, name: str, servers: str, releases: int, show: Callable[[str], None]) -> dict[str, object]:
    """Return figures of the releases that the follower had in use, after the first ones, and of their input records."""
    committed: dict[Order, Committed] = {}
    stop = threading.Event()
    watching = threading.Thread(target=witness, args=(name, servers, committed, stop))
    watching.start()
    reports, sending = multiprocessing.Pipe(duplex=False)
    follower = multiprocessing.get_context("spawn").Process(target=follow, args=(name, servers, sending), daemon=True)
    follower.start()
    sending.close()  # so that the end of the follower is an error here
    feed = [*COMMAND, "feed", str(settings), "--epochs", "1000"]
    subprocess.run([*feed, "--limit", str(FIRST_RECORDS)], check=True, stdout=subprocess.DEVNULL)
    used: dict[Order, Used] = {}
    with subprocess.Popen([*COMMAND, "run", str(settings)], stderr=subprocess.DEVNULL) as worker:
        while not reports.recv().is_complete:
            pass
        feed += ["--rate", str(RATE)]
        with subprocess.Popen(feed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as feeder:
            while len(used) < releases + WARM_UP:
                release: Used = reports.recv()
                used[release.order] = release
                if len(used) % 10 == 0:
                    show(f"{name}: {len(used)} releases in use")
            feeder.terminate()
        worker.terminate()
    follower.terminate()
    stop.set()
    watching.join()
    orders = sorted(used)[WARM_UP:]
    # A follower takes the newest release only. One that it passed over was not in use in time.
    times = [one.at for order, one in sorted(committed.items()) if orders[0] <= order <= orders[-1]]
    cadence_s = (times[-1] - times[0]) / (len(times) - 1)
    made_at = produced(name, servers, committed[orders[0]].position, committed[orders[-1]].position)
    waits = [
        used[order].at - made_at[offset]
        for earlier, order in pairwise(orders)
        for offset in range(committed[earlier].position, committed[order].position)
    ]
    delays = [used[order].at - committed[order].at for order in orders]
    return figures(delays) | {
        "skipped": len(times) - len(delays),
        "bytes": used[orders[-1]].size,
        "cadence_s": round(cadence_s, 3),
        "produced_to_in_use": figures(waits) | {"in_cadences": figures([wait / cadence_s for wait in waits])},
        "delays": delays,
    }


def figures(delays: list[float]) -> dict[str, object]:
    """Return quantiles of delays."""
    p50, p99 = np.quantile(delays, [0.5, 0.99])
    return {"p50": round(p50, 3), "p99": round(p99, 3), "worst": round(max(delays), 3), "n": len(delays)}


def main(releases: Annotated[int, typer.Option(min=2, help="Releases of each network.")] = 100) -> None:
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
