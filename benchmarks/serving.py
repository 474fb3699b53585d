"""Requests for each CPU second of `stream-learner serve`, and how long requests wait when a release arrives.

`python -m benchmarks.serving`: a local broker, a worker (cnn, 28 px grey) that releases every candidate, the server,
and a load generator in a process of its own, which asks for one image at a time in binary tensors over `CONNECTIONS`
connections. First the worker rests: requests for each CPU second of the server, and the time from a request to its
answer. Then `--requests` requests are answered while `--releases` releases arrive: failures, and the longest time
without an answer in the half second around the first answer of each release. The same time around moments without a
swap shows how much of it is other load on this machine. At last the worker rests again, and kept releases are pinned
one after the other, so that only the server's own work is beside the requests. The last line is JSON.
"""

import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, NamedTuple

import numpy as np
import typer
import uvloop

from benchmarks.commands import COMMAND
from stream_learner import Follower
from stream_learner.config import load_follower
from stream_learner.follow.choosing import choose
from stream_learner.follow.past import read_releases
from stream_learner.local.broker import Broker

SETTINGS = """
run.id = "serving"
input.topics = ["serving.input"]
kafka.bootstrap_servers = "{servers}"
model = {{name = "cnn", height = {side}, width = {side}, channels = 1}}
checkpoint = {{store = "{folder}/objects", every_s = 3600.0}}
release = {{every_records = {every}, min_held_out = 1_000_000, format_wait_s = 300.0}}
monitoring.port = 0
serve.port = 0
log.format = "json"
"""
SIDE_PX = 28
EVERY_RECORDS = 50
RATE = 100
CONNECTIONS = 16
WARM_UP = 2_000
# Seconds before and after the first answer of a release.
AROUND_S = 0.25
# Time for which a release stays pinned.
PINNED_S = 1.0


class Load(NamedTuple):
    """Answers in their order. `ends` are in seconds since the first request, `delays` in seconds."""

    ends: np.ndarray
    delays: np.ndarray
    versions: np.ndarray
    failures: int


class Client(asyncio.Protocol):
    """A connection that sends the next request when the last one is answered."""

    def __init__(self, request: bytes, answers: "Answers"):
        self._request = request
        self._answers = answers
        self._received = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, _, body = self._received.partition(b"\r\n\r\n")
        length = head.lower().partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0]
        if not length or len(body) < int(length):
            return
        version = body.partition(b'"model_version":"')[2].partition(b'"')[0]
        self._answers.add(self._sent_at, int(version) if head.startswith(b"HTTP/1.1 200 ") else 0)
        self._received = b""
        if self._answers.wanted():
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._answers.left()

    def _send(self) -> None:
        self._sent_at = time.perf_counter()
        self._transport.write(self._request)


class Answers:
    """Times, delays and versions of answers until there are `requests` of them, of `releases` releases."""

    def __init__(self, requests: int, releases: int):
        self._requests, self._releases = requests, releases
        self._seen: set[int] = set()
        self.rows: list[tuple[float, float, int]] = []
        self._open = CONNECTIONS
        self.done = asyncio.Event()

    def add(self, sent_at: float, version: int) -> None:
        now = time.perf_counter()
        self.rows.append((now, now - sent_at, version))
        self._seen.add(version)

    def wanted(self) -> bool:
        return len(self.rows) < self._requests or len(self._seen) < self._releases + 1

    def left(self) -> None:
        self._open -= 1
        if not self._open:
            self.done.set()


def request(side_px: int) -> bytes:
    """Return a request of one image, with binary tensors."""
    image = np.random.default_rng(0).integers(0, 256, (1, side_px, side_px, 1), np.uint8)
    given = {"name": "images", "datatype": "UINT8", "shape": image.shape}
    document = {
        "inputs": [given | {"parameters": {"binary_data_size": image.nbytes}}],
        "outputs": [{"name": "labels"}, {"name": "probabilities"}],
        "parameters": {"binary_data_output": True},
    }
    header = json.dumps(document).encode()
    head = (
        f"POST /v2/models/serving/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/octet-stream\r\n"
        f"Inference-Header-Content-Length: {len(header)}\r\nContent-Length: {len(header) + image.nbytes}\r\n\r\n"
    )
    return head.encode() + header + image.tobytes()


def generate(port: int, requests: int, releases: int) -> Load:
    """Ask until `requests` requests are answered, and `releases` releases have followed the first."""

    async def ask() -> list[tuple[float, float, int]]:
        answers, loop = Answers(requests, releases), asyncio.get_running_loop()
        for _ in range(CONNECTIONS):
            await loop.create_connection(lambda: Client(request(SIDE_PX), answers), "127.0.0.1", port)
        await answers.done.wait()
        return answers.rows

    rows = uvloop.run(ask())
    ends, delays, versions = (np.array(column) for column in zip(*rows, strict=True))
    return Load(ends - ends[0], delays, versions, int((versions == 0).sum()))


def swaps(load: Load) -> list[float]:
    """Return the time of the first answer of each release that replaced another one."""
    moments: list[float] = []
    for moment in load.ends[1:][np.diff(load.versions) != 0].tolist():
        if not moments or moment > moments[-1] + AROUND_S:  # answers of two releases may alternate for a moment
            moments.append(moment)
    return moments


def figures(load: Load) -> dict[str, object]:
    """Return the figures of a load during which releases were swapped."""
    moments = swaps(load)
    return {
        "requests": len(load.ends),
        "swaps": len(moments),
        "failures": load.failures,
        "delay": milliseconds(load.delays),
        "pause": milliseconds(pauses(load, moments)),
        "pause_without_swap": milliseconds(pauses(load, [(a + b) / 2 for a, b in pairwise(moments)])),
    }


def pauses(load: Load, moments: list[float]) -> list[float]:
    """Return the longest time without an answer around each moment, in seconds."""
    gaps, at = np.diff(load.ends), load.ends[1:]
    near = [gaps[(at > moment - AROUND_S) & (at < moment + AROUND_S)] for moment in moments]
    return [float(one.max()) for one in near if one.size]


def cpu_s(pid: int) -> float:
    """Return the CPU time that a process has used, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def milliseconds(values: list[float] | np.ndarray) -> dict[str, float]:
    """Return quantiles of seconds, in milliseconds."""
    p50, p99 = np.quantile(values, [0.5, 0.99])
    return {"p50_ms": round(p50 * 1000, 3), "p99_ms": round(p99 * 1000, 3), "worst_ms": round(max(values) * 1000, 3)}


@contextmanager
def learning(settings: Path) -> Iterator[None]:
    """Run a worker and a feeder."""
    feed = [*COMMAND, "feed", str(settings), "--rate", str(RATE), "--epochs", "1000"]
    with (
        subprocess.Popen([*COMMAND, "run", str(settings)], stderr=subprocess.DEVNULL) as worker,
        subprocess.Popen(feed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as feeder,
    ):
        try:
            yield
        finally:
            feeder.terminate()
            worker.terminate()


def pin(settings: Path, times: int) -> None:
    """Pin one kept release after the other. The server reads and verifies each again, because it keeps only two."""
    follower = load_follower(settings)
    kept = [release.sequence for release in read_releases(follower)]
    for sequence in islice(cycle(kept), times):
        choose(follower, "pin", sequence)
        time.sleep(PINNED_S)


@contextmanager
def serving(settings: Path, log: Path) -> Iterator[tuple[int, int]]:
    """Run the server. Once it has a release in use, yield its process id and its port."""
    with log.open("wb") as file, subprocess.Popen([*COMMAND, "serve", str(settings)], stderr=file) as server:
        try:
            while '"release in use"' not in (text := log.read_text()) or '"serving"' not in text:
                assert server.poll() is None, text
                time.sleep(0.05)
            found = next(line for line in text.splitlines() if '"serving"' in line)
            yield server.pid, json.loads(found)["port"]
        finally:
            server.terminate()


def main(
    requests: Annotated[int, typer.Option(min=1000, help="Requests of each of the two parts.")] = 100_000,
    releases: Annotated[int, typer.Option(help="Releases that arrive in the second part, and pins in the third.")] = 50,
) -> None:
    """Measure the server and print the figures."""

    def show(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    with TemporaryDirectory() as scratch, Broker(Path(scratch, "kafka")) as broker:
        settings, servers = Path(scratch, "serving.toml"), broker.bootstrap_servers
        settings.write_text(SETTINGS.format(servers=servers, folder=scratch, side=SIDE_PX, every=EVERY_RECORDS))
        topics = [*COMMAND, "topics", str(settings), "--input-partitions", "1"]
        subprocess.run(topics, check=True, stdout=sys.stderr)
        with learning(settings), Follower("serving", servers, compute=False) as follower:
            for release in follower:
                if release.graph is not None and len(release.labels) == 10:
                    break
        spawn = multiprocessing.get_context("spawn")
        with serving(settings, Path(scratch, "server.log")) as (pid, port), spawn.Pool(1) as generator:
            generator.apply(generate, (port, WARM_UP, 0))
            began = cpu_s(pid)
            steady: Load = generator.apply(generate, (port, requests, 0))
            rate = requests / (cpu_s(pid) - began)
            show(f"{rate:.0f} requests a CPU second, {requests / steady.ends[-1]:.0f} a second")
            found = {
                "requests_per_cpu_s": round(rate),
                "requests_per_s": round(requests / steady.ends[-1]),
                "failures": steady.failures,
                "delay": milliseconds(steady.delays),
            }
            if releases:
                with learning(settings):
                    swapped: Load = generator.apply(generate, (port, requests, releases))
                found["releases"] = figures(swapped)
                pinned = generator.apply_async(
                    generate, (port, int(releases * PINNED_S * requests / steady.ends[-1]), 0)
                )
                pin(settings, releases)
                found["pins"] = figures(pinned.get())
    print(json.dumps(found | {"load": round(os.getloadavg()[0], 2)}))


if __name__ == "__main__":
    typer.run(main)
