"""Ask a server of releases about one image, by the Open Inference Protocol."""

import base64
import shlex
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from http import HTTPStatus
from urllib.error import HTTPError
from urllib.request import urlopen

import msgspec

from stream_learner.config import SplitSettings
from stream_learner.contract.vocabulary import Split
from stream_learner.errors import DataError, ExitCode
from stream_learner.formats.splits import assign
from stream_learner.local.datasets import Example
from stream_learner.local.processes import Child, ChildError

DEADLINE_S = 60.0
TIMEOUT_S = 10.0
POLL_S = 0.1
MAX_ANSWER_BYTES = 1024 * 1024
REQUEST = '{"inputs": [{"name": "images", "datatype": "BYTES", "shape": [1], "data": ["%s"]}]}'


class Asked(msgspec.Struct, frozen=True):
    """The label of an image, and the answer of the server: label, its probability (0..1), sequence of the release."""

    label: str
    predicted: str
    probability: float
    release: int


class _Output(msgspec.Struct):
    name: str
    data: list[str | float]


class _Answer(msgspec.Struct):
    model_version: str
    outputs: list[_Output]


def held_out(dataset: Iterable[Example], splits: SplitSettings) -> Iterator[Example]:
    """Yield the examples that a worker with these settings does not learn."""
    for example in dataset:
        identity = example.id.encode(errors="surrogateescape")
        if example.split or assign(identity, splits.validation, splits.test) is not Split.TRAIN:
            yield example


def ask(server: Child, url: str, model: str, examples: Iterator[Example]) -> tuple[Example, Asked]:
    """Ask about the first of the examples that the server can decode. `url` is the server's.

    Raises ChildError when the server ends, or is not ready within DEADLINE_S, and DataError when it can decode none of
    the examples.
    """
    _await_ready(server, f"{url}/v2/health/ready")
    for example in examples:
        try:
            return example, _asked(f"{url}/v2/models/{model}/infer", example)
        except HTTPError as error:
            if error.code != HTTPStatus.BAD_REQUEST:  # the status for a damaged image
                raise
    raise DataError("none of the images that were held out can be decoded; use more images")


def _await_ready(server: Child, url: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        if (code := server.ended()) is not None:
            raise server.failure("server", code)
        with suppress(OSError), urlopen(url, timeout=TIMEOUT_S):
            return
        time.sleep(POLL_S)
    raise ChildError(f"the server has no release in use after {DEADLINE_S:.0f} s; see its log", ExitCode.INTERNAL)


def _asked(url: str, example: Example) -> Asked:
    body = REQUEST % base64.b64encode(example.image).decode()
    with urlopen(url, body.encode(), timeout=TIMEOUT_S) as response:
        answer = msgspec.json.decode(response.read(MAX_ANSWER_BYTES), type=_Answer)
    outputs = {output.name: output.data for output in answer.outputs}
    probability = max(map(float, outputs["probabilities"]))
    return Asked(example.label, str(outputs["labels"][0]), probability, int(answer.model_version))


def command(url: str, model: str, image: str) -> str:
    """Return the command of a shell that asks about an image."""
    encoded = f'"$(base64 -w0 {shlex.quote(image)})"'
    return f"printf {shlex.quote(REQUEST)} {encoded} | curl -d @- {url}/v2/models/{model}/infer"
