"""Servers of a run, as processes of their own, on the real broker."""

import json
from typing import Any, NamedTuple

import child
import numpy as np
import talking
from harness import Run, Worker, toml
from outputs import Log
from talking import LENGTH, Answer

from stream_learner import Release
from stream_learner.contract import tensors
from stream_learner.contract.manifest import decode_manifest
from stream_learner.follow.releases import Objects

MAX_IMAGES = 20


def port(server: Worker, name: str = "port") -> int:
    server.until("address", lambda: '"event":"serving"' in server.text())
    lines = [json.loads(line) for line in server.text().splitlines()]
    return next(line[name] for line in lines if line["event"] == "serving")


def ask(server: Worker, path: str, body: bytes | None = None, method: str | None = None, **headers: str) -> Answer:
    return talking.ask(port(server), path, body, method, **headers)


def metric(server: Worker, name: str) -> float:
    page = ask(server, "/metrics").body.decode()
    return float(page.partition(f"\nstream_learner_serving_{name} ")[2].partition("\n")[0])


def serve(run: Run, **settings: Any) -> Worker:
    """Start a server, whose settings file has only what a server needs."""
    file = run.folder / f"server-{len(run.workers)}.toml"
    settings = {"port": 0, "max_images": MAX_IMAGES} | settings
    kafka = {"bootstrap_servers": settings.pop("servers", run.broker.bootstrap_servers)}
    kafka |= {name: settings.pop(name) for name in ("request_timeout_s",) if name in settings}
    document = {"run": {"id": run.id}, "kafka": kafka, "log": {"format": "json"}, "serve": settings}
    file.write_text("".join(f"{name} = {toml(section)}\n" for name, section in document.items()))
    return run._child(child.command, ["serve", str(file)])


class Served(NamedTuple):
    """A run, its output, and a server that has its release in use."""

    run: Run
    log: Log
    server: Worker

    @property
    def model(self) -> str:
        return f"/v2/models/{self.run.id}"

    def infer(self, document: dict[str, Any], *binaries: bytes) -> Answer:
        header = json.dumps(document).encode()
        lengths = {LENGTH.replace("-", "_"): str(len(header))} if binaries else {}
        return ask(self.server, f"{self.model}/infer", header + b"".join(binaries), **lengths)

    def evaluation(self) -> tuple[np.ndarray, list[str]]:
        """Return images, and the labels that the worker predicted for them."""
        described = self.log.manifest["release"]
        evaluation = tensors.decode(self.log.objects[described["evaluation"]["key"]])
        labels = [described["labels"][index] for index in evaluation["predictions"]]
        return evaluation["images"][:MAX_IMAGES], labels[:MAX_IMAGES]


def releases(log: Log) -> dict[int, Release]:
    """Return all releases of a run by their sequences."""
    found = {}
    for value in (read.value or b"" for read in log.history):
        manifest = decode_manifest(value)
        described = manifest.release
        if described and described.onnx:
            published = described.object, described.canary.object, described.onnx.published.object
            parameters, canary, graph = (log.objects[one.key] for one in published)
            found[described.sequence] = Release(manifest, described, Objects(parameters, canary, graph))
    return found
