"""Releases in real registries and servers: MLflow, MLServer, model-signing, the library of the Hugging Face Hub.

They are in an environment of their own (`locks/registries.txt`), and the command `follow` that signs is there, too.
`make test` does not collect this file. `make conformance` runs it.
"""

import json
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from environments import CLEAN, EVERY, GRAPHS, install
from feed import mixed
from harness import DEADLINE_S, POLL_S, Run
from outputs import Log

from stream_learner.contract import tensors
from stream_learner.errors import ExitCode
from stream_learner.follow.directories import LAYOUTS
from stream_learner.local.broker import HOST, Broker, free_port

KILLS = 8
CARD = """
import json, sys
from huggingface_hub import ModelCard
card = ModelCard.load(sys.argv[1])
results = [[r.dataset_name, r.metric_type, r.metric_value] for r in card.data.eval_results]
print(json.dumps([card.data.to_dict(), results, card.text]))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the programs."""
    return install(tmp_path_factory.mktemp("environment"), "registries.txt")


@pytest.fixture(scope="module")
def released(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Run, Log]]:
    """Return a run with a release that has a graph, and its output."""
    run = Run(broker, tmp_path_factory.mktemp("released"), overrides=EVERY | GRAPHS)
    run.feed(mixed(250, 0))
    yield run, run.finish(run.start())
    run.close()


@contextmanager
def server(program: Path, *arguments: str, folder: Path, ready: Callable[[], bool]) -> Iterator[None]:
    with (folder / f"{program.name}.log").open("ab") as log:
        process = subprocess.Popen(
            [program, *arguments],
            cwd=folder,
            env=CLEAN | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=log,
            stderr=log,
            process_group=0,
        )
    try:
        deadline = time.monotonic() + 2 * DEADLINE_S
        while not ready():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(POLL_S)
        yield
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def ask(port: int, method: str, target: str, document: object = None) -> tuple[int, Any]:
    """Return status and JSON document of an answer, status 0 without an answer."""
    connection = HTTPConnection(HOST, port, timeout=DEADLINE_S)
    try:
        body = None if document is None else json.dumps(document)
        connection.request(method, target, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
    except OSError:
        return 0, None
    finally:
        connection.close()
    return answer.status, json.loads(content) if content.startswith(b"{") else None


def test_signed_folders(environment: Path, released: tuple[Run, Log], tmp_path: Path) -> None:
    run, log = released
    described = log.manifest["release"]
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    settings = tmp_path / "reader.toml"
    settings.write_text(f'run.id = "{run.id}"\nkafka.bootstrap_servers = "{run.broker.bootstrap_servers}"\n')

    def verified(folder: Path) -> int:
        command = [environment / "model_signing", "verify", "key", folder, "--signature", folder / "model.sig"]
        return subprocess.run([*command, "--public_key", public], capture_output=True, env=CLEAN).returncode

    for layout in LAYOUTS:
        out = tmp_path / layout
        command = [environment / "stream-learner", "follow", settings, "--to", out, "--layout", layout, "--once"]
        subprocess.run([*command, "--sign-key", private], check=True, env=CLEAN, cwd=tmp_path)
        (signature,) = out.rglob("model.sig")
        folder = signature.parent
        assert verified(folder) == 0
        (model,) = folder.rglob("model.onnx")
        model.write_bytes(model.read_bytes()[:-1] + b"?")
        assert verified(folder) == 1
    card = [environment / "python", "-c", CARD, tmp_path / "huggingface" / "current" / "README.md"]
    done = subprocess.run(card, check=True, capture_output=True, text=True, env=CLEAN)
    header, results, text = json.loads(done.stdout)
    assert header["pipeline_tag"] == "image-classification"
    test = described["test"]
    assert results == [
        [f"Test samples of {run.input}", "accuracy", test["accuracy"]],
        [f"Test samples of {run.input}", "recall", test["mean_recall"]],
    ]
    assert f"| weight | {log.manifest['weights']['combined']['count']} |" in text


def test_mlserver(environment: Path, released: tuple[Run, Log], tmp_path: Path) -> None:
    run, log = released
    http, grpc = free_port(), free_port()
    (tmp_path / "settings.json").write_text(
        # With parallel workers, MLServer 1.7.1 ends at once on a recent uvloop.
        json.dumps(
            {"host": HOST, "http_port": http, "grpc_port": grpc, "metrics_endpoint": None, "parallel_workers": 0}
        )
    )

    def ready() -> bool:
        return ask(http, "GET", "/v2/health/ready")[0] == 200

    def predicted(log: Log) -> tuple[str, list[int]]:
        """Return the version that answered, and its predictions of the evaluation images."""
        images = tensors.decode(log.objects[log.manifest["release"]["evaluation"]["key"]])["images"]
        tensor = {"name": "images", "datatype": "UINT8", "shape": images.shape, "data": images.ravel().tolist()}
        status, answer = ask(http, "POST", f"/v2/models/{run.id}/infer", {"inputs": [tensor]})
        assert status == 200, answer
        logits = answer["outputs"][0]
        classes = logits["shape"][1]
        rows = [logits["data"][start : start + classes] for start in range(0, len(logits["data"]), classes)]
        return answer["model_version"], [row.index(max(row)) for row in rows]

    def expected(log: Log) -> tuple[str, list[int]]:
        release = log.manifest["release"]
        predictions = tensors.decode(log.objects[release["evaluation"]["key"]])["predictions"]
        return str(release["sequence"]), predictions.tolist()

    follow = run.call("follow", "--to", str(tmp_path), "--layout", "mlserver", "--load", f"http://{HOST}:{http}")
    follow.until("release", lambda: (tmp_path / run.id / "model-settings.json").exists())
    with server(environment / "mlserver", "start", ".", folder=tmp_path, ready=ready):
        follow.until("loaded release", lambda: "release loaded" in follow.text())
        assert predicted(log) == expected(log)
        bad = {"name": "images", "datatype": "UINT8", "shape": [1, 3], "data": [1, 2, 3]}
        assert ask(http, "POST", f"/v2/models/{run.id}/infer", {"inputs": [bad]})[0] == 400
        run.feed(mixed(250, 1))
        later = run.finish(run.start())
        assert expected(later)[0] != expected(log)[0]
        follow.until("later release", lambda: follow.text().count("release loaded") >= 2)
        assert predicted(later) == expected(later)
        follow.stop()


def test_mlflow(environment: Path, broker: Broker, tmp_path: Path, show: Callable[[str], None]) -> None:
    """The follower is killed again and again, and MLflow is away for a while. Then releases are withdrawn."""
    run = Run(broker, tmp_path / "registered", overrides=dict(EVERY))
    port, chance = free_port(), random.Random(0)
    arguments = ["server", "--host", HOST, "--port", str(port), "--backend-store-uri", "sqlite:///mlflow.db"]
    command = ["follow", "--to", f"mlflow:http://{HOST}:{port}"]

    def serving() -> Any:
        ready = lambda: ask(port, "GET", "/health")[0] == 200  # noqa: E731
        return server(environment / "mlflow", *arguments, folder=tmp_path, ready=ready)

    def api(target: str) -> Any:
        return ask(port, "GET", f"/api/2.0/mlflow/{target}")[1] or {}

    def versions() -> dict[int, list[Any]]:
        """Return the versions of each release."""
        found: dict[int, list[Any]] = {}
        for version in api(f"model-versions/search?filter={quote(f'name = {run.id!r}')}").get("model_versions", []):
            tags = {tag["key"]: tag["value"] for tag in version["tags"]}
            found.setdefault(int(tags["stream_learner.sequence"]), []).append(version | {"tags": tags})
        return found

    def champion() -> int:
        """Return the release that the alias names, 0 before the first."""
        version = api(f"registered-models/alias?name={run.id}&alias=champion").get("model_version")
        return int({t["key"]: t["value"] for t in version["tags"]}["stream_learner.sequence"]) if version else 0

    def withdrawn() -> set[int]:
        """Return the releases whose only version is marked."""
        marked = [version for (version,) in versions().values() if "stream_learner.withdrawn" in version["tags"]]
        assert all(version["tags"]["stream_learner.withdrawn"] == "true" for version in marked)
        assert all(version["description"].startswith("Withdrawn") for version in marked)
        return {int(version["tags"]["stream_learner.sequence"]) for version in marked}

    def last() -> int:
        return run.published().manifest["release"]["sequence"]

    worker = run.start()
    with serving():
        follow = run.call(*command)
        for seed in range(KILLS):
            run.feed(mixed(250, seed))
            run.learned(worker)
            time.sleep(chance.uniform(0, 1.0))
            follow.kill()
            follow = run.call(*command)
        follow.until("champion", lambda: champion() == last())
        assert versions()
        assert all(len(same) == 1 for same in versions().values())
    run.feed(mixed(250, KILLS))
    follow.until("wait", lambda: "cannot be written yet" in follow.text())
    log = run.finish(worker)
    with serving():
        follow.until("champion", lambda: champion() == last())
        found = versions()
        described = log.manifest["release"]
        kept = {earlier["sequence"] for earlier in log.manifest["earlier"]}
        assert found.keys() >= kept | {described["sequence"]}
        assert all(len(same) == 1 for same in found.values())
        (version,) = found[described["sequence"]]
        assert version["tags"]["stream_learner.digest"] == described["object"]["digest"]
        metrics = api(f"runs/get?run_id={version['run_id']}")["run"]["data"]["metrics"]
        figures = {metric["key"]: metric["value"] for metric in metrics}
        assert figures["test_accuracy"] == pytest.approx(described["test"]["accuracy"])
        # The release in use and an older one are withdrawn, and the follower is killed meanwhile.
        older, *_, second = sorted(kept)
        run.call(f"release withdraw {older}").ends(0)
        follow.until("first mark", lambda: withdrawn() == {older})
        assert champion() == described["sequence"]
        run.call(f"release withdraw {described['sequence']}").ends(0)
        time.sleep(chance.uniform(0, 0.5))
        follow.kill()
        follow = run.call(*command)
        follow.until("second mark", lambda: withdrawn() == {older, described["sequence"]})
        follow.until("champion", lambda: champion() == second and "release written" in follow.text())
        follow.stop()
        # All that are kept are withdrawn while nobody follows.
        for sequence in kept - {older}:
            run.call(f"release withdraw {sequence}").ends(0)
        assert "were withdrawn" in run.call(*command, "--once").ends(ExitCode.STATE)
        assert withdrawn() == kept | {described["sequence"]}
        assert champion() == 0
        assert {sequence: len(same) for sequence, same in versions().items()} == dict.fromkeys(found, 1)
        show(
            f"MLflow: {len(found)} releases, a version each, after {KILLS} kills and an outage; {len(figures)} figures"
        )
    run.close()
