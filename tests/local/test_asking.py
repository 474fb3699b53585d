"""The demo's question to a server of releases."""

import json
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import islice
from pathlib import Path

import pytest

from stream_learner.config import SplitSettings
from stream_learner.contract.vocabulary import Split
from stream_learner.errors import DataError
from stream_learner.formats.splits import assign
from stream_learner.local import asking
from stream_learner.local.asking import Asked, ask, command, held_out
from stream_learner.local.datasets import Example, open_dataset
from stream_learner.local.processes import Child, ChildError

ANSWER = {
    "model_version": "7",
    "outputs": [{"name": "labels", "data": ["cat"]}, {"name": "probabilities", "data": [0.25, 0.75]}],
}
DAMAGED, GOOD = Example(b"damaged", "dog", "0"), Example(b"good", "cat", "1")


class Answers(BaseHTTPRequestHandler):
    """Is ready at the third time of asking, and refuses damaged images."""

    asked = 0

    def do_GET(self) -> None:
        Answers.asked += 1
        self.send_response(200 if Answers.asked > 2 else 503)
        self.end_headers()

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        damaged = request["inputs"][0]["data"] == ["ZGFtYWdlZA=="]
        self.send_response(400 if damaged else 200)
        self.end_headers()
        self.wfile.write(json.dumps(ANSWER).encode())


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_damaged_image_is_passed_over(url: str, tmp_path: Path):
    server = Child([], tmp_path / "log")
    assert ask(server, url, "model", iter([DAMAGED, GOOD])) == (GOOD, Asked("cat", "cat", 0.75, 7))
    with pytest.raises(DataError, match="none of the images"):
        ask(server, url, "model", iter([DAMAGED]))


def test_a_server_that_ends_or_is_never_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    closed = "http://127.0.0.1:1"
    with Child(["no-such-command"], tmp_path / "log") as child, pytest.raises(ChildError, match="no-such-command"):
        ask(child, closed, "model", iter([GOOD]))
    monkeypatch.setattr(asking, "DEADLINE_S", 0.2)
    with pytest.raises(ChildError, match="no release in use"):
        ask(Child([], tmp_path / "log"), closed, "model", iter([GOOD]))


def test_only_examples_that_are_not_learned_are_asked_about():
    splits = SplitSettings(validation=0.1, test=0.2)
    chosen = [example.id.encode() for example in held_out(open_dataset(None), splits)]
    assert 450 < len(chosen) < 620
    assert all(assign(identity, 0.1, 0.2) != Split.TRAIN for identity in chosen)
    own = [example._replace(split=Split.TEST) for example in islice(open_dataset(None), 3)]
    assert [*held_out(own, SplitSettings(validation=0.0, test=0.0))] == own


def test_the_shown_command_sends_the_image(tmp_path: Path):
    image = tmp_path / "it's an image"
    image.write_bytes(bytes(200_000))  # more than one argument of a program may have
    shell = command("http://127.0.0.1:8080", "cats", str(image))
    assert shell.endswith(" | curl -d @- http://127.0.0.1:8080/v2/models/cats/infer")
    body = subprocess.run(shell.partition(" | curl")[0], shell=True, check=True, capture_output=True).stdout
    (given,) = json.loads(body)["inputs"]
    assert len(given["data"][0]) == 266_668
