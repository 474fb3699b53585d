"""A real Triton beside this project's server: the same requests, and releases that Triton loads as they are published.

`make test` does not collect this file. `make conformance` runs it.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from environments import CLEAN, EVERY, GRAPHS
from feed import digits, mixed
from harness import Run, Worker
from http_requests import ask
from outputs import Log
from real_triton import PROGRAMS, PYTHON, Triton

from stream_learner.contract import tensors
from stream_learner.local.broker import HOST, Broker

OK = (200, "OK")
WARM_UP, REQUESTS = 2_000, 20_000
# Cases in which the answers differ on purpose.
STRICTER = {
    "http: no images": "a request must have images",
    "http: value 256": "Triton keeps the lower byte",
    "http: empty body": "Triton takes a body without a JSON header as the bytes of the only input",
    "grpc: no images": "a request must have images",
    "grpc: value 256": "Triton keeps the lower byte",
    "grpc: more raw contents than inputs": "Triton ignores the rest",
}
"""Triton answers, and this server refuses."""
CLIENT_ERRORS = {
    "http: a list",
    "http: an id that is a number",
    "http: binary size of text",
    "http: broken JSON",
    "http: bytes that are not JSON",
    "http: negative binary size",
    "http: negative shape",
    "http: no datatype",
    "http: no inputs",
    "http: no shape",
    "http: output without a name",
    "http: shape of text",
    "http: text values",
    "http: too few values",
    "http: too many values",
    "http: value -1",
    "http: value 0.5",
}
"""Triton says 500, and this server 400, because the client is at fault."""
OTHERWISE = {
    "http: all outputs binary but one": "Triton ignores `binary_data_output` when outputs are named; its specification "
    "of the extension does not",
    "grpc: infer with a version that is no number": "INVALID_ARGUMENT in Triton, where versions are numbers; NOT_FOUND",
}
"""Both answer or both refuse, in different ways."""


class Delivered(NamedTuple):
    """A run that has ended, and the model repository with its last release."""

    run: Run
    log: Log
    repository: Path

    @property
    def model(self) -> Path:
        return self.repository / self.run.id

    @property
    def version(self) -> str:
        return str(self.log.manifest["release"]["sequence"])

    def evaluation(self) -> tuple[np.ndarray, list[int]]:
        """Return images, and the classes that the worker predicted for them."""
        evaluation = tensors.decode(self.log.objects[self.log.manifest["release"]["evaluation"]["key"]])
        return evaluation["images"], [int(index) for index in evaluation["predictions"]]


@pytest.fixture(scope="module")
def delivered(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Delivered:
    """Releases that a Triton loads one after the other, while it is also stopped and started again."""
    folder = tmp_path_factory.mktemp("delivered")
    run, repository = (
        Run(broker, folder / "run", overrides=EVERY | GRAPHS | {"model.name": "cnn"}),
        folder / "repository",
    )
    repository.mkdir()
    triton = Triton(repository, folder)
    url = f"http://{HOST}:{triton.http_port}"
    try:
        worker = run.start()
        worker.learning()  # it has made the store, which the command is given
        follow = run.call("follow", "--to", str(repository), "--layout", "triton", "--load", url, "--keep", "2")
        run.feed(mixed(250))
        run.learned(worker)
        follow.until("the first release", lambda: loaded(triton, run) != [])
        triton.stop()
        run.feed(mixed(250, 1))
        run.learned(worker)
        follow.until("the failure", lambda: "a release is not loaded; trying again" in follow.text())
        triton.start()
        log = run.finish(worker)
        last = str(log.manifest["release"]["sequence"])
        follow.until("the last release", lambda: loaded(triton, run) == [last])
        follow.stop()
    finally:
        triton.stop()
        run.close()
    return Delivered(run, log, repository)


def loaded(triton: Triton, run: Run) -> list[str]:
    """Return the versions that are ready."""
    request = ask(triton.http_port, f"/v2/models/{run.id}")
    return request.json()["versions"] if request.status == 200 else []


def test_a_release_in_triton(delivered: Delivered, tmp_path: Path) -> None:
    """Triton predicts what the worker has published. A release that it cannot load does not end the last one."""
    images, classes = delivered.evaluation()
    repository = tmp_path / "repository"
    shutil.copytree(delivered.repository, repository)
    model, name = repository / delivered.run.id, delivered.run.id
    triton = Triton(repository, tmp_path)
    try:
        assert triton.load(name) == (200, "")
        assert predicted(triton, name, images) == (delivered.version, classes)
        config = (model / "config.pbtxt").read_text()
        (model / "999").mkdir()
        (model / "999" / "model.onnx").write_bytes(b"no graph")
        shutil.copy(model / delivered.version / "labels.txt", model / "999")
        (model / "config.pbtxt").write_text(
            config.replace(f"[ {delivered.version} ]", "[ 999 ]").replace(f'"{delivered.version}/', '"999/')
        )
        status, why = triton.load(name)
        assert status == 400
        assert "version 999 is at UNAVAILABLE state" in why
        assert predicted(triton, name, images) == (delivered.version, classes)
        (model / "config.pbtxt").write_text(config.replace("max_batch_size", "max_batches"))
        status, why = triton.load(name)
        assert status == 500
        assert "failed to poll from model repository" in why
        assert predicted(triton, name, images) == (delivered.version, classes)
        (model / "config.pbtxt").write_text(config)
        assert triton.load(name) == (200, "")
        assert predicted(triton, name, images) == (delivered.version, classes)
    finally:
        triton.stop()


def test_a_release_in_kserve(delivered: Delivered, tmp_path: Path) -> None:
    """KServe's own code fetches the `storageUri`. A real Triton loads what it fetched, as the one of KServe does."""
    images, classes = delivered.evaluation()
    out, models = tmp_path / "out", tmp_path / "models"
    delivered.run.call("follow", "--to", str(out), "--layout", "kserve", "--once").ends(0)
    fetch = "import sys; from kserve_storage import Storage; Storage.download(*sys.argv[1:])"
    subprocess.run([PYTHON, "-c", fetch, f"file://{out}/current", models], check=True, env=CLEAN)
    triton = Triton(models, tmp_path, mode="none")
    try:
        assert predicted(triton, delivered.run.id, images) == (delivered.version, classes)
    finally:
        triton.stop()


def predicted(triton: Triton, model: str, images: np.ndarray) -> tuple[str, list[int]]:
    """Return the version that answered, and the classes it predicted."""
    given = {"name": "images", "datatype": "UINT8", "shape": images.shape, "data": images.ravel().tolist()}
    document = {"inputs": [given], "outputs": [{"name": "logits"}]}
    answer = ask(triton.http_port, f"/v2/models/{model}/infer", json.dumps(document).encode())
    assert answer.status == 200, answer
    (logits,) = answer.json()["outputs"]
    return answer.json()["model_version"], np.reshape(logits["data"], logits["shape"]).argmax(1).tolist()


@pytest.fixture(scope="module")
def answers(delivered: Delivered, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    """The answers of both servers to the same requests."""
    folder = tmp_path_factory.mktemp("answers")
    image = folder / "image.png"
    image.write_bytes(digits()[0][0])
    ours = serve(delivered.run)
    ours_answers = requests(*ports(ours), delivered.run.id, delivered.run.id, image)
    ours.stop()
    repository = folder / "repository"
    classes = len(delivered.log.manifest["release"]["labels"])
    for name, kind, dims in (("pixels", "TYPE_UINT8", "-1, 8, 8, 1"), ("encoded", "TYPE_STRING", "-1")):
        shutil.copytree(delivered.model / delivered.version, repository / name / "1")
        (repository / name / "config.pbtxt").write_text(
            f'backend: "reference" max_batch_size: 0 input [ {{ name: "images" data_type: {kind} dims: [ {dims} ] }} ] '
            'output [ { name: "labels" data_type: TYPE_STRING dims: [ -1 ] }, '
            f'{{ name: "logits" data_type: TYPE_FP32 dims: [ -1, {classes} ] }}, '
            f'{{ name: "probabilities" data_type: TYPE_FP32 dims: [ -1, {classes} ] }} ]'
        )
    triton = Triton(repository, folder)
    try:
        for name in ("pixels", "encoded"):
            assert triton.load(name) == (200, "")
        tritons_answers = requests(triton.http_port, triton.grpc_port, "pixels", "encoded", image)
    finally:
        triton.stop()
    return {case: (ours_answers[case], tritons_answers[case]) for case in tritons_answers}


def serve(run: Run) -> Worker:
    server = run.call("serve", "--set", "serve.port = 0", "--set", "serve.grpc_port = 0")
    server.until("release", lambda: ask(ports(server)[0], "/v2/health/ready").status == 200)
    return server


def ports(server: Worker) -> tuple[int, int]:
    server.until("address", lambda: '"event":"serving"' in server.text())
    lines = [json.loads(line) for line in server.text().splitlines()]
    (line,) = [line for line in lines if line["event"] == "serving"]
    return line["port"], line["grpc_port"]


def requests(*arguments: object) -> dict[str, Any]:
    command = [PYTHON, PROGRAMS / "same_requests.py", *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def test_the_same_answers(answers: dict[str, tuple[Any, Any]], show: Callable[[str], None]) -> None:
    stricter, client_errors, equal = set(), set(), 0
    for case, (ours, tritons) in answers.items():
        if ours["status"] not in OK and case.startswith("http"):
            assert ours["reason"], (case, ours)
        if ours["status"] == 400 and tritons["status"] == 500:
            client_errors.add(case)
        elif ours["status"] not in OK and tritons["status"] in OK:
            stricter.add(case)
            assert ours["status"] in (400, "INVALID_ARGUMENT"), (case, ours)
        else:
            alike = described(ours) == described(tritons)
            assert alike != (case in OTHERWISE), (case, ours, tritons)
            for name, (_, values) in outputs(ours).items():
                same(values, outputs(tritons)[name][1])
            equal += alike
    assert stricter == STRICTER.keys()
    assert client_errors == CLIENT_ERRORS
    show(f"{equal} of {len(answers)} requests have the same answer, in {len(stricter)} this server is stricter")


def test_tritonclient(answers: dict[str, tuple[Any, Any]]) -> None:
    for transport in ("HTTP", "gRPC"):
        ours, tritons = answers[f"tritonclient over {transport}"]
        for name, values in ours["values"].items():
            same(values, tritons["values"][name])
        assert sorted(ours["metadata"]) == sorted(tritons["metadata"])
        assert len(ours["metadata"]) == 4


def test_requests_for_each_cpu_second(delivered: Delivered, tmp_path: Path, show: Callable[[str], None]) -> None:
    """One image for each request, in binary tensors. The model is the one that Triton loaded, with dynamic batching.

    The stand-in for Triton's ONNX backend is in Python, so the third figure leaves out the processes that compute.
    """
    rates = []
    server = serve(delivered.run)
    rates.append(rate([server.pid], ports(server)[0], delivered.run.id))
    server.stop()
    triton = Triton(delivered.repository, tmp_path)
    try:
        assert triton.load(delivered.run.id) == (200, "")
        pid = triton.process.pid
        rates.append(rate([pid, *children(pid)], triton.http_port, delivered.run.id))
        rates.append(rate([pid], triton.http_port, delivered.run.id))
    finally:
        triton.stop()
    ours, tritons, without_computing = rates
    assert ours > tritons
    show(
        f"requests for each CPU second: {ours:.0f}, Triton with a Python backend {tritons:.0f}, of which Triton's own "
        f"process, which does not compute, {without_computing:.0f}"
    )


def rate(processes: list[int], port: int, model: str) -> float:
    """Return requests for each CPU second of the processes."""
    program, path = Path(__file__).with_name("load.py"), f"/v2/models/{model}/infer"
    used = []
    for requests in (WARM_UP, REQUESTS):
        before = sum(map(cpu_s, processes))
        command = [sys.executable, program, str(port), path, "8", str(requests)]
        assert subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout == "0\n"
        used.append(sum(map(cpu_s, processes)) - before)
    return REQUESTS / used[-1]


def cpu_s(pid: int) -> float:
    """Return the CPU time that a process has used, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def outputs(answer: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what describes each output, and its values."""
    return {
        name: ((datatype, shape, binary), values) for name, datatype, shape, values, binary in answer.get("outputs", [])
    }


def described(answer: dict[str, Any]) -> dict[str, Any]:
    """Return everything of an answer that must be equal: not the values, and the names of fields that have a value."""
    shown = {name: value for name, (value, _) in outputs(answer).items()}
    return {name: answer.get(name) for name in ("status", "id", "fields")} | {"outputs": shown}


def same(ours: list[Any], tritons: list[Any]) -> None:
    if isinstance(np.ravel(ours)[0], str):
        assert ours == tritons
    else:
        np.testing.assert_allclose(np.ravel(ours), np.ravel(tritons), atol=1e-4)
