"""A small MLflow server in memory, which may lose an answer. `make conformance` has the real one."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from stream_learner.local.broker import HOST

CONDITION = re.compile(r"(?:tags\.`([^`]+)`|(name)) = '([^']*)'")


class RefusedError(Exception):
    pass


class Registry(ThreadingHTTPServer):
    """Experiments, runs, models and versions."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__((HOST, port), Handler)
        self.experiments: list[str] = []
        self.runs: list[dict[str, Any]] = []
        self.models: list[str] = []
        self.versions: list[dict[str, Any]] = []
        self.champion: str | None = None
        self.requests: list[str] = []
        self.credentials: set[str | None] = set()
        self.lost: int | None = None
        """Number of requests until one is carried out, but not answered."""
        self.status = 200

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}"

    def answer(self, method: str, endpoint: str, given: dict[str, Any]) -> object:
        match endpoint:
            case "experiments/get-by-name" if given["experiment_name"] not in self.experiments:
                raise RefusedError("RESOURCE_DOES_NOT_EXIST")
            case "experiments/get-by-name":
                return {"experiment": {"experiment_id": "1", "name": given["experiment_name"]}}
            case "experiments/create":
                return create(self.experiments, given["name"])
            case "runs/search":
                return {"runs": [{"info": run} for run in matching(self.runs, given["filter"])]}
            case "runs/create":
                self.runs.append(given | {"run_id": f"run{len(self.runs)}", "status": "RUNNING", "metrics": {}})
                return {"run": {"info": self.runs[-1]}}
            case "runs/log-batch":
                self.run(given)["metrics"] |= {metric["key"]: metric["value"] for metric in given["metrics"]}
            case "runs/update":
                self.run(given)["status"] = given["status"]
            case "registered-models/create":
                return create(self.models, given["name"])
            case "registered-models/alias" if method == "DELETE":
                self.champion = None
            case "registered-models/alias":
                self.champion = given["version"]
            case "model-versions/search":
                return {"model_versions": matching(self.versions, given["filter"])}
            case "model-versions/create":
                assert given["name"] in self.models
                assert not given["source"].startswith("file:")
                self.versions.append(given | {"version": str(len(self.versions) + 1)})
                return {"model_version": self.versions[-1]}
            case "model-versions/get":
                version = self.version(given)
                return {"model_version": version | {"aliases": ["champion"] * (given["version"] == self.champion)}}
            case "model-versions/update":
                self.version(given)["description"] = given["description"]
            case "model-versions/set-tag":
                self.version(given)["tags"].append({"key": given["key"], "value": given["value"]})
            case "model-versions/delete":
                self.versions = [one for one in self.versions if one["version"] != given["version"]]
            case _:
                raise AssertionError(endpoint)
        return {}

    def run(self, given: dict[str, Any]) -> dict[str, Any]:
        (found,) = (run for run in self.runs if run["run_id"] == given["run_id"])
        return found

    def version(self, given: dict[str, Any]) -> dict[str, Any]:
        (found,) = (one for one in self.versions if one["version"] == given["version"])
        return found


def create(names: list[str], name: str) -> object:
    if name in names:
        raise RefusedError("RESOURCE_ALREADY_EXISTS")
    names.append(name)
    return {}


def matching(entries: list[dict[str, Any]], wanted: str) -> list[dict[str, Any]]:
    conditions = CONDITION.findall(wanted)
    assert conditions
    return [
        entry
        for entry in entries
        if all((tags_of(entry).get(tag) if tag else entry[name]) == value for tag, name, value in conditions)
    ]


def tags_of(entry: dict[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in entry["tags"]}


class Handler(BaseHTTPRequestHandler):
    def handle_one(self) -> None:
        server, parts = self.server, urlsplit(self.path)
        assert isinstance(server, Registry)
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        given = json.loads(body) if body else {name: values[0] for name, values in parse_qs(parts.query).items()}
        server.credentials.add(self.headers["Authorization"])
        endpoint = parts.path.removeprefix("/api/2.0/mlflow/")
        server.requests.append(endpoint)
        status, answer = server.status, object()
        if status == 200:
            try:
                answer = server.answer(self.command, endpoint, given)
            except RefusedError as error:
                status, answer = 400, {"error_code": str(error), "message": "refused"}
        else:
            answer = {"error_code": "INVALID_PARAMETER_VALUE", "message": "a secret\x1b[2J"}
        if server.lost is not None:
            server.lost -= 1
            if server.lost < 0:
                return
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    do_GET = do_POST = do_PATCH = do_DELETE = handle_one

    def log_message(self, *args: object, **_: object) -> None:
        pass


@contextmanager
def serving(registry: Registry) -> Iterator[Registry]:
    with registry:
        thread = threading.Thread(target=registry.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield registry
        finally:
            registry.shutdown()
            thread.join()
