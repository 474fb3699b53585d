"""The example programs, unchanged, with one live run. `Producer.java` feeds its worker, and the others follow it."""

import http.client
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

import feed
import pytest
from harness import DEADLINE_S, POLL_S, Run
from programs import ENVIRONMENT, Program, forge_release

from stream_learner.local import jars
from stream_learner.local.broker import Broker

EXAMPLES = Path(__file__).parents[2] / "examples"
IMAGES = 400


class Live:
    """A run whose worker has released twice while the examples followed it."""

    def __init__(self, run: Run, folder: Path, stack: ExitStack):
        self.run, self.servers = run, run.broker.bootstrap_servers
        self.java = ["java", "-XX:TieredStopAtLevel=1", "-cp", jars.class_path()]

        def start(name: str, *command: str, **environment: str) -> Program:
            words = *command, str(EXAMPLES / name), run.id, self.servers
            return stack.enter_context(Program(folder / f"{Path(name).stem}.txt", *words, **environment))

        self.follower = start("java/Follower.java", *self.java)
        self.notify = start("notify.py", sys.executable)
        self.serve = start("serve.py", sys.executable, PORT="0")
        self.url = self.serve.shows(r"http://\S+")[0]
        self.before = self.ask(feed.digits()[0][0])
        run.start()
        self.produced = self.produce(folder / "images", feed.digits()[:IMAGES])
        self.answers = [self.until_new({})]
        run.feed(feed.good(IMAGES))
        self.answers.append(self.until_new(self.answers[0]))
        for printing in (self.notify, self.follower):
            printing.shows(r"(?:release .*\n){2}")

    def produce(self, folder: Path, images: feed.Images) -> str:
        """Let `Producer.java` send images. Return its output."""
        for i, (image, label) in enumerate(images):
            (folder / label.decode()).mkdir(parents=True, exist_ok=True)
            (folder / label.decode() / f"{i}.png").write_bytes(image)
        command = [*self.java, str(EXAMPLES / "java" / "Producer.java"), self.run.input, str(folder), self.servers]
        return subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, text=True).stdout

    def until_new(self, earlier: dict) -> dict:
        """Ask until another release answers than in an earlier answer."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            status, answer = self.ask(feed.digits()[0][0])
            if status == 200 and answer["release"] != earlier.get("release"):
                return answer
            time.sleep(POLL_S)
        raise AssertionError(self.serve.text)

    def ask(self, image: bytes) -> tuple[int, dict]:
        try:
            with urlopen(self.url, image, timeout=DEADLINE_S) as answer:
                return answer.status, json.load(answer)
        except HTTPError as error:
            with error:
                return error.code, json.load(error)


@pytest.fixture(scope="module")
def live(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    assert shutil.which("javac"), "this test needs a Java compiler: install a JDK (default-jdk-headless)"
    folder = tmp_path_factory.mktemp("examples")
    settings = {
        "release.every_records": IMAGES,
        "release.max_drop": 1.0,
        "learning.learning_rate": 0.01,
        "split.validation": 0.1,
        "split.test": 0.1,
    }
    run = Run(broker, folder / folder.name, overrides=settings)
    with ExitStack() as stack:
        stack.callback(run.close)
        yield Live(run, folder, stack)


def test_images_of_the_java_producer_are_learned(live: Live):
    assert live.produced == f"sent {IMAGES} images to {live.run.input}\n"
    windows = [json.loads(record.value or b"") for record in live.run.read("metrics")]
    assert sum(window["records"] for window in windows) == 2 * IMAGES
    assert not any(window["rejected"] for window in windows)


def test_every_follower_prints_both_releases(live: Live):
    printed = re.findall(
        r"release (\d+) of [\dT:.-]+Z: 10 classes, test accuracy ([\d.]+%) of \d+ images, (\d+) bytes\n",
        live.notify.text,
    )
    assert len(printed) == 2
    lines = [
        f"release {s}: 10 classes, test accuracy {accuracy}, {size} bytes, verified" for s, accuracy, size in printed
    ]
    assert live.follower.text.splitlines() == lines
    assert [str(answer["release"]) for answer in live.answers] == [sequence for sequence, _, _ in printed]


def test_notify_needs_neither_pytorch_nor_onnx_runtime(live: Live):
    assert "numpy" in live.notify.mapped
    assert not re.search("torch|onnxruntime", live.notify.mapped)


def test_serve_answers_images_and_refuses_everything_else(live: Live):
    status, answer = live.before
    assert (status, *answer) == (503, "error")
    right = 0
    for image, label in feed.digits()[-20:]:
        status, answer = live.ask(image)
        assert (status, sorted(answer)) == (200, ["label", "probability", "release"])
        assert 0.1 <= answer["probability"] <= 1
        right += answer["label"] == label.decode()
    assert right > 10
    assert live.ask(b"no image")[0] == 400
    assert live.ask(b"")[0] == 400


@pytest.mark.parametrize("length", [None, "-1", "x", "8388609", "9" * 5000])
def test_serve_reads_no_body_that_is_too_large(live: Live, length: str | None):
    connection = http.client.HTTPConnection(urlsplit(live.url).netloc, timeout=DEADLINE_S)
    connection.putrequest("POST", "/")
    if length is not None:
        connection.putheader("Content-Length", length)
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


def test_a_release_with_another_digest_is_not_used(live: Live):
    forge_release(live.run)
    live.follower.shows(r"\nrelease \d+: 10 classes, test accuracy [\d.]+%, refused: its weights have another digest")
    live.notify.shows("is not a manifest of the run .* does not belong to state.safetensors")
    assert live.ask(feed.digits()[0][0]) == (200, live.answers[-1])
    assert len(re.findall("^release", live.notify.text, re.MULTILINE)) == 2


def test_ctrl_c_ends_the_python_programs(live: Live):
    assert (live.notify.interrupt(), live.serve.interrupt()) == (0, 0)
    assert "Traceback" not in live.notify.text + live.serve.text


def test_a_program_learns_without_kafka(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, EXAMPLES / "learn_without_kafka.py"], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    accuracies = [float(found) for found in re.findall(r"([\d.]+)%", done.stdout)]
    assert len(accuracies) == 10
    assert min(accuracies) > 75
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
