"""The command `follow`: directories that other servers read, on the real broker."""

import json
import os
import random
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import onnxruntime
import pytest
from command_line import Done, failure, stream_learner
from feed import mixed
from harness import DEADLINE_S, POLL_S, NewRun, Run, Worker
from mlflow_server import Registry, serving, tags_of
from outputs import Log
from test_follower import EVERY, forge, learn
from test_pinned_releases import listed

from stream_learner.config import FollowSettings
from stream_learner.contract import tensors
from stream_learner.contract.manifest import digest
from stream_learner.errors import ExitCode
from stream_learner.follow.choosing import choose
from stream_learner.follow.delivery import deliver_all, open_target
from stream_learner.local.broker import HOST, Broker
from stream_learner.streams import topics
from stream_learner.streams.acks import read_acks

KILLS = 5
T = TypeVar("T")


@pytest.fixture(scope="module")
def graphed(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Log]:
    """Return a run whose release has a graph, and its output."""
    settings = {"release.formats": ["safetensors", "onnx"], "release.format_wait_s": 120.0}
    settings |= {name.replace("__", "."): value for name, value in EVERY.items()}
    run = Run(broker, tmp_path_factory.mktemp("graphed"), 1, settings)
    learn(run)
    return run, run.published()


def once(run: Run, folder: Path, *options: object, more: str = "") -> Done:
    """Follow once, with a file that has only the settings of a reader."""
    file = folder / "reader.toml"
    servers = run.broker.bootstrap_servers
    file.write_text(f'run.id = "{run.id}"\nkafka.bootstrap_servers = "{servers}"\nlog.level = "warning"\n{more}')
    return stream_learner("follow", file, "--to", "out", "--once", *options, folder=folder)


def until(condition: Callable[[], T], follow: Worker) -> T:
    return follow.until("release", condition)


@contextmanager
def following(run: Run, to: str) -> Iterator[None]:
    """Write the releases as the command does, on a thread."""
    given, stop = run.settings, threading.Event()
    settings = FollowSettings(run=given.run, kafka=given.kafka, checkpoint=given.checkpoint)
    with closing(open_target(to, settings)) as target, ThreadPoolExecutor(1) as thread:
        written = thread.submit(deliver_all, settings, target, None, None, stop)
        try:
            yield
        finally:
            stop.set()
            written.result(DEADLINE_S)


def read(folder: Path) -> dict[str, Any]:
    """Return the manifest of a release's folder without a graph, which must be whole."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    data = (folder / "release.safetensors").read_bytes()
    assert digest(data) == manifest["release"]["object"]["digest"]
    assert json.loads((folder / "labels.json").read_bytes()) == manifest["release"]["labels"]
    assert json.loads((folder / "preprocessing.json").read_bytes()) == manifest["release"]["preprocessing"]
    return manifest


def sequence_of(out: Path) -> int:
    """Return the sequence of the current release, 0 before the first."""
    return read(out / os.readlink(out / "current"))["release"]["sequence"] if (out / "current").is_symlink() else 0


def test_a_release_as_files(graphed: tuple[Run, Log], tmp_path: Path) -> None:
    run, log = graphed
    assert once(run, tmp_path) == (0, "", "")
    folder, described = tmp_path / "out" / "current", log.manifest["release"]
    assert read(folder)["release"] == described
    assert (folder / "manifest.json").read_bytes() in [record.value for record in log.history]
    assert (folder / "release.safetensors").read_bytes() == log.release()
    onnx.checker.check_model(folder / "model.onnx", full_check=True)
    evaluation = tensors.decode(log.objects[described["evaluation"]["key"]])
    expected = [int(index) for index in evaluation["predictions"]]
    assert predictions(folder / "model.onnx", evaluation["images"]) == expected
    before = folder.stat()
    assert once(run, tmp_path) == (0, "", "")
    assert folder.stat() == before

    assert once(run, tmp_path, "--layout", "triton") == (0, "", "")
    version = tmp_path / "out" / run.id / str(described["sequence"])
    assert (version / "model.onnx").read_bytes() == (folder / "model.onnx").read_bytes()
    assert (version / "labels.txt").read_text().split() == described["labels"]
    config = (version.parent / "config.pbtxt").read_text()
    assert f'name: "{run.id}"' in config
    assert f"versions: [ {version.name} ]" in config


def test_a_registry_that_answers_late(graphed: tuple[Run, Log], tmp_path: Path) -> None:
    run, log = graphed
    described = log.manifest["release"]
    with Registry() as closed:
        port = closed.server_port
    follow = run.call("follow", "--to", f"mlflow:http://user:sesame@{HOST}:{port}")
    until(lambda: "a release cannot be written yet" in follow.text(), follow)
    with serving(Registry(port)) as registry:
        until(lambda: registry.champion, follow)
        follow.stop()
        assert "sesame" not in follow.text()
        assert once(run, tmp_path, "--to", f"mlflow:{registry.url}") == (0, "", "")
    released = [tags_of(version) for version in registry.versions]
    kept = [earlier["sequence"] for earlier in log.manifest["earlier"]]
    assert [int(tags["stream_learner.sequence"]) for tags in released] == [*kept, described["sequence"]]
    assert registry.champion == str(len(released))
    assert released[-1]["stream_learner.digest"] == described["object"]["digest"]
    metrics = registry.run(registry.versions[-1])["metrics"]
    assert metrics["test_accuracy"] == described["test"]["accuracy"]
    assert metrics["validation_samples"] == described["validation"]["total"]


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(POLL_S)


def test_registry_and_directory_follow_pins_and_withdrawals(new_run: NewRun, tmp_path: Path) -> None:
    run, out = new_run(**EVERY), tmp_path / "out"
    first, second = learn(run), learn(run, 450, 1)
    with serving(Registry()) as registry:

        def champion() -> list[str]:
            """Return the sequence of the release that the alias names."""
            versions = [version for version in registry.versions if version["version"] == registry.champion]
            return [tags_of(version)["stream_learner.sequence"] for version in versions]

        def withdrawn() -> list[int]:
            tags = [tags_of(version) for version in registry.versions]
            return sorted(int(one["stream_learner.sequence"]) for one in tags if "stream_learner.withdrawn" in one)

        with following(run, f"mlflow:{registry.url}"), following(run, str(out)):
            choose(run.settings, "pin", first)
            eventually(lambda: champion() == [str(first)] and sequence_of(out) == first)
            choose(run.settings, "unpin")
            eventually(lambda: champion() == [str(second)] and sequence_of(out) == second)
            # A withdrawn release is marked, and what was in use before is current again.
            choose(run.settings, "withdraw", second)
            others = [sequence for sequence in listed(run) if sequence != second]
            eventually(lambda: champion() == [str(others[-1])] and sequence_of(out) == others[-1])
            eventually(lambda: withdrawn() == [second])
            for sequence in others:
                choose(run.settings, "withdraw", sequence)
            eventually(lambda: withdrawn() == [*others, second])
            assert registry.champion is None
            assert read(out / "current")
    sequences = [tags_of(version)["stream_learner.sequence"] for version in registry.versions]
    assert len({*sequences}) == len(sequences)


def predictions(model: Path, images_NHWC: np.ndarray) -> list[int]:
    """Compute a file that stands alone, as any ONNX Runtime does."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    logits, probabilities = map(np.asarray, session.run(["logits", "probabilities"], {"images": images_NHWC}))
    assert (probabilities.argmax(1) == logits.argmax(1)).all()
    return logits.argmax(1).tolist()


@pytest.mark.parametrize("layout", ["mlserver", "kserve", "huggingface"])
def test_layouts(graphed: tuple[Run, Log], tmp_path: Path, layout: str) -> None:
    run, log = graphed
    described = log.manifest["release"]
    assert once(run, tmp_path, "--layout", layout) == (0, "", "")
    (model,) = tmp_path.glob("out/**/model.onnx")
    evaluation = tensors.decode(log.objects[described["evaluation"]["key"]])
    assert predictions(model, evaluation["images"]) == [int(index) for index in evaluation["predictions"]]
    assert len([*tmp_path.glob("out/**/manifest.json")]) == 1


def test_what_ends_it(new_run: NewRun, tmp_path: Path) -> None:
    run = new_run(**EVERY)
    assert "has not released a model yet" in failure(once(run, tmp_path), ExitCode.STATE)
    learn(run)
    said = failure(once(run, tmp_path, "--layout", "triton"), ExitCode.STATE)
    assert "has no ONNX graph (see release.formats of the worker), which the layout triton needs" in said
    failure(once(run, tmp_path, "--sign-key", tmp_path / "missing.pem"), ExitCode.USAGE)
    said = failure(once(run, tmp_path, "--to", "mlflow:http://127.0.0.1", "--keep", 2), ExitCode.USAGE)
    assert "leave them out for MLflow" in said
    said = failure(once(run, tmp_path, "--to", "mlflow:ftp://secret"), ExitCode.USAGE)
    assert "the URL of MLflow must begin with http://" in said
    said = failure(once(run, tmp_path, more='topics.prefix = "other"'), ExitCode.TOPICS)
    assert "has no topic other.checkpoints" in said
    for url in ("ftp://127.0.0.1/secret", "secret", "http://[secret", "http:///secret"):
        said = failure(once(run, tmp_path, "--notify", url), ExitCode.USAGE)
        assert "the URL to notify" in said
        assert "secret" not in said
    assert "kafcka; did you mean kafka?" in failure(once(run, tmp_path, more="kafcka.a = 1"), ExitCode.USAGE)
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").touch()
    assert "out cannot be written: File exists" in failure(once(run, tmp_path), ExitCode.STORE)
    forge(run, run.published().manifest, 2, chunks=[])
    (tmp_path / "out").unlink()
    assert "pass the worker's checkpoint.store" in failure(once(run, tmp_path), ExitCode.STATE)
    said = failure(once(run, tmp_path, more='checkpoint.store = "nowhere"'), ExitCode.STORE)
    assert "nowhere is missing" in said


class Receiver(ThreadingHTTPServer):
    """A server that refuses the first two documents."""

    def __init__(self) -> None:
        super().__init__((HOST, 0), Handler)
        self.received: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.refusals = 2
        self.credentials: str | None = None


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body, server = self.rfile.read(int(self.headers["Content-Length"])), self.server
        assert isinstance(server, Receiver)
        server.credentials = self.headers["Authorization"]
        if server.refusals:
            server.refusals -= 1
            self.send_error(503)
            return
        server.received.append(json.loads(body))
        server.paths.append(self.path)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *args: object, **_: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_server_is_notified(new_run: NewRun, tmp_path: Path, receiver: Receiver) -> None:
    run, out = new_run(**EVERY), tmp_path / "out"
    url = f"http://user:sesame@{HOST}:{receiver.server_port}/releases?token=sesame"
    learn(run)
    follow = run.call("follow", "--to", str(out), "--notify", url, "--set", "follow.name=files")
    until(lambda: "a server was not notified" in follow.text(), follow)
    assert receiver.received == []
    sequence = learn(run, 450, 1)
    until(lambda: [document["sequence"] for document in receiver.received][-1:] == [sequence], follow)
    folder = out / os.readlink(out / "current")
    described = read(folder)["release"]
    assert receiver.received[-1] == {
        "run": run.id,
        "epoch": 1,
        "sequence": sequence,
        "path": str(folder),
        "digest": described["object"]["digest"],
    }
    assert receiver.credentials == "Basic dXNlcjpzZXNhbWU="
    assert "sesame" not in follow.text()
    until(lambda: [ack.sequence for ack in read_acks(run.settings)] == [sequence], follow)
    follow.stop()
    assert read_acks(run.settings) == []
    assert not list(out.glob(".*"))


def test_a_server_loads_releases(graphed: tuple[Run, Log], tmp_path: Path, receiver: Receiver) -> None:
    run, log = graphed
    url, path = f"http://{HOST}:{receiver.server_port}/", f"/v2/repository/models/{run.id}/load"
    triton = ("--layout", "triton", "--load", url)
    assert "did not load the release: it answered with status 503" in failure(
        once(run, tmp_path, *triton), ExitCode.DEPENDENCY
    )
    follow = run.call("follow", "--to", str(tmp_path / "live"), *triton)
    until(lambda: "release loaded" in follow.text(), follow)
    assert "a release is not loaded; trying again" in follow.text()
    follow.stop()
    assert once(run, tmp_path, *triton) == (0, "", "")
    assert receiver.paths == [path, path]
    assert receiver.received == [{}, {}]
    for out in ("out", "live"):
        assert (
            f"versions: [ {log.manifest['release']['sequence']} ]"
            in (tmp_path / out / run.id / "config.pbtxt").read_text()
        )
    assert "--load needs --layout triton or mlserver" in failure(once(run, tmp_path, "--load", url), ExitCode.USAGE)
    said = failure(once(run, tmp_path, "--layout", "triton", "--load", "ftp://secret"), ExitCode.USAGE)
    assert "the URL to load from must begin with http:// or https://" in said
    assert "secret" not in said


def test_a_reader_while_the_command_is_killed(new_run: NewRun, tmp_path: Path) -> None:
    run, out, chance = new_run(**EVERY), tmp_path / "out", random.Random(0)
    worker = run.start()
    worker.learning()  # it has made the store, which the command is given
    command = ["follow", "--to", str(out), "--keep", "3"]
    follow = run.call(*command)
    reached = 0
    for seed in range(KILLS):
        run.feed(mixed(450, seed))
        moment = time.monotonic() + chance.uniform(0.2, 0.8)
        while time.monotonic() < moment:
            reached = max(reached, sequence_of(out))
        follow.kill()
        reached = max(reached, sequence_of(out))
        follow = run.call(*command)
    log = run.finish(worker)
    last = log.manifest["release"]["sequence"]
    until(lambda: sequence_of(out) == last, follow)
    follow.stop()
    folders = [folder for folder in out.iterdir() if re.fullmatch(r"0001-\d{8}", folder.name)]
    assert 1 <= len(folders) <= 3
    assert {folder.name for folder in out.iterdir()} == {"current", *(folder.name for folder in folders)}
    for folder in folders:
        read(folder)


def test_the_topics_fail_for_a_while(new_run: NewRun, tmp_path: Path) -> None:
    """A run whose topics are made again, and whose worker starts over."""
    run, out = new_run(**EVERY), tmp_path / "out"
    learn(run)
    learn(run, 450, 1)
    follow = run.call("follow", "--to", str(out))
    until(lambda: sequence_of(out), follow)
    before = read(out / "current")
    for name in ("checkpoints", "history", "weights", "metrics", "dead-letters"):
        run.delete_topic(f"{run.prefix}.{name}")
    topics.create(run.settings)
    for written in (run.store / run.id).rglob("*"):
        if written.is_file():
            written.unlink()
    learn(run, 250, 2, "--fresh")
    released = run.published().manifest["release"]
    assert released != before["release"]
    until(lambda: read(out / os.readlink(out / "current"))["release"] == released, follow)
    follow.stop()
