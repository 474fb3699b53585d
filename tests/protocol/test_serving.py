"""The command `serve`: predictions over HTTP, on the real broker."""

import base64
import json
import re
import select
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import child
import grpc
import numpy as np
import pytest
from command_line import failure, stream_learner
from feed import digits, good, mixed
from harness import DEADLINE_S, Run, Worker, toml
from nasty_images import png_that_claims
from outputs import Log
from served_predictions import with_id
from test_follower import EVERY

from stream_learner import Release, read_release
from stream_learner.config import ServeSettings
from stream_learner.contract import tensors
from stream_learner.contract.manifest import decode_manifest
from stream_learner.contract.predictions import decode_prediction
from stream_learner.errors import ExitCode
from stream_learner.follow.releases import Objects
from stream_learner.follow.serving.messages import MESSAGES, SERVICE
from stream_learner.local.broker import HOST, Broker
from stream_learner.streams import topics

LENGTH = "Inference-Header-Content-Length"
OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
PIXELS = 64
MAX_IMAGES = 20
LOADS = 2
SWAPS = 5
LIMITS = {"timeout_s": 1.0, "max_body_bytes": 100_000, "max_held_bytes": 150_000, "max_connections": 4}


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def port(server: Worker, name: str = "port") -> int:
    server.until("address", lambda: '"event":"serving"' in server.text())
    lines = [json.loads(line) for line in server.text().splitlines()]
    return next(line[name] for line in lines if line["event"] == "serving")


def ask(server: Worker, path: str, body: bytes | None = None, method: str | None = None, **headers: str) -> Answer:
    connection = HTTPConnection(HOST, port(server), timeout=DEADLINE_S)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method or ("GET" if body is None else "POST"), path, body, named)
        response = connection.getresponse()
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
    finally:
        connection.close()


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


@pytest.fixture(scope="module")
def served(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    settings: dict[str, Any] = {name.replace("__", "."): value for name, value in EVERY.items()}
    settings |= {"release.formats": ["safetensors", "onnx"], "release.format_wait_s": 120.0, "release.keep": 50}
    run = Run(broker, tmp_path_factory.mktemp("served"), 1, settings)
    server = serve(run)
    assert ask(server, "/v2/health/live").status == 200
    for path in ("/v2/health/ready", f"/v2/models/{run.id}", f"/v2/models/{run.id}/ready"):
        assert "has not released a model yet" in refusal(ask(server, path), 503)
    assert "has not released a model yet" in refusal(ask(server, f"/v2/models/{run.id}/infer", b"{}"), 503)
    assert "stream_learner_serving_release NaN" in ask(server, "/metrics").body.decode()
    run.feed(mixed(250))
    log = run.finish(run.start())
    server.until("release", lambda: ask(server, "/v2/health/ready").status == 200)
    yield Served(run, log, server)
    run.close()


def refusal(answer: Answer, status: int) -> str:
    """Return the reason in an answer with this status."""
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/json"
    (reason,) = answer.json().values()
    return reason


def test_pages(served: Served) -> None:
    run, log, server = served
    release = log.manifest["release"]
    version, classes = str(release["sequence"]), len(release["labels"])
    found = ask(server, "/v2").json()
    assert found["name"] == "stream-learner"
    assert found["extensions"] == ["binary_tensor_data"]
    assert ask(server, "/v2/health/live").json() == {"live": True}
    assert ask(server, "/v2/health/ready").json() == {"ready": True}
    for path in (served.model, f"{served.model}/versions/{version}"):
        assert ask(server, path).json() == {
            "name": run.id,
            "versions": [version],
            "platform": "stream-learner",
            "inputs": [{"name": "images", "datatype": "UINT8", "shape": [-1, 8, 8, 1]}],
            "outputs": [
                {"name": "labels", "datatype": "BYTES", "shape": [-1]},
                {"name": "logits", "datatype": "FP32", "shape": [-1, classes]},
                {"name": "probabilities", "datatype": "FP32", "shape": [-1, classes]},
            ],
            "parameters": {"epoch": 1, "labels": release["labels"]},
        }
        assert ask(server, f"{path}/ready").json() == {"name": run.id, "ready": True}
        head = ask(server, path, method="HEAD")
        assert (head.status, head.body) == (200, b"")
    for path in ("/", "/v2/", "/v3", "/v2/models", f"{served.model}/", f"{served.model}/config", "/%00", "/v2/../v2"):
        assert "there is no page" in refusal(ask(server, path), 404)
    for path in ("/v2/models/other", "/v2/models/other/ready", "/v2/models/%2e%2e"):
        assert f"the model is {run.id!r}" in refusal(ask(server, path), 404)
    for other in ("99", "0", f"0{version}", "x", "9" * 30):
        assert "is not loaded" in refusal(ask(server, f"{served.model}/versions/{other}"), 404)
        assert "is not loaded" in refusal(ask(server, f"{served.model}/versions/{other}/infer", b"{}"), 404)
    assert "POST is not allowed" in refusal(ask(server, served.model, b"{}"), 405)
    wrong = ask(server, f"{served.model}/infer")
    assert "GET is not allowed" in refusal(wrong, 405)
    assert wrong.headers["allow"] == "POST"


def test_a_scrape_with_an_odd_header(served: Served) -> None:
    answer = ask(served.server, "/metrics", Accept="application/openmetrics-text;version=x")
    assert (answer.status, answer.headers["content-type"].partition(";")[0]) == (200, "text/plain")


def test_the_documentation_lists_the_metrics(served: Served) -> None:
    page, documented = ask(served.server, "/metrics").body.decode(), OPERATIONS.read_text()
    metrics = re.findall(r"# HELP (\w+) (.+)\n# TYPE \w+ (\w+)\n", page)
    assert metrics
    for name, meaning, kind in metrics:
        assert name.endswith("_created") or f"| `{name}` | {kind} | {meaning} |" in documented


def test_predictions(served: Served) -> None:
    """Each form of a request gives the predictions that the worker has published."""
    images, labels = served.evaluation()
    release = read_release(served.run.id, served.run.broker.bootstrap_servers)
    expected = release.predict(images)
    assert expected.labels == labels
    shape = list(images.shape)
    described = {"name": "images", "datatype": "UINT8", "shape": shape}
    binary = described | {"parameters": {"binary_data_size": images.nbytes}}
    plain = {"id": "an id", "inputs": [described | {"data": images.ravel().tolist()}]}
    answers = [
        served.infer(plain),
        served.infer(plain | {"inputs": [described | {"data": images.tolist()}]}),
        served.infer({"inputs": [binary]}, images.tobytes()),
        ask(served.server, f"{served.model}/versions/{release.described.sequence}/infer", json.dumps(plain).encode()),
    ]
    for answer in answers:
        assert answer.status == 200
        assert LENGTH.lower() not in answer.headers
        found = answer.json()
        assert found["model_name"] == served.run.id
        assert found["model_version"] == str(release.described.sequence)
        assert found["parameters"] == {"epoch": 1}
        outputs = {output["name"]: output for output in found["outputs"]}
        assert outputs["labels"] == {"name": "labels", "datatype": "BYTES", "shape": shape[:1], "data": labels}
        assert outputs["probabilities"]["shape"] == list(expected.probabilities.shape)
        probabilities = np.reshape(outputs["probabilities"]["data"], expected.probabilities.shape)
        np.testing.assert_allclose(probabilities, expected.probabilities, atol=1e-5)
        np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    assert answers[0].json()["id"] == "an id"
    assert "id" not in answers[2].json()


def test_binary_answers(served: Served) -> None:
    images, labels = served.evaluation()
    given = {"name": "images", "datatype": "UINT8", "shape": list(images.shape)}
    given["parameters"] = {"binary_data_size": images.nbytes}
    asked = [{"name": "probabilities"}, {"name": "labels", "parameters": {"binary_data": True}}]
    answer = served.infer({"inputs": [given], "outputs": asked}, images.tobytes())
    header = json.loads(answer.body[: int(answer.headers[LENGTH.lower()])])
    assert answer.headers["content-type"] == "application/octet-stream"
    assert [output["name"] for output in header["outputs"]] == ["probabilities", "labels"]
    raw = answer.body[int(answer.headers[LENGTH.lower()]) :]
    assert header["outputs"][1]["parameters"] == {"binary_data_size": len(raw)}
    assert raw == b"".join(struct.pack("<I", len(label)) + label.encode() for label in labels)
    asked = [{"name": "logits"}, {"name": "labels", "parameters": {"binary_data": False}}]
    document = {"inputs": [given], "outputs": asked, "parameters": {"binary_data_output": True}}
    answer = served.infer(document, images.tobytes())
    header = json.loads(answer.body[: int(answer.headers[LENGTH.lower()])])
    logits, texts = header["outputs"]
    assert texts["data"] == labels
    raw = answer.body[int(answer.headers[LENGTH.lower()]) :]
    found = np.frombuffer(raw, "<f4").reshape(logits["shape"]).argmax(1)
    assert [served.log.manifest["release"]["labels"][index] for index in found] == labels


def test_encoded_images(served: Served) -> None:
    encoded = [image for image, _ in digits()[:MAX_IMAGES]]
    release = read_release(served.run.id, served.run.broker.bootstrap_servers)
    labels = release.predict(encoded).labels
    given: dict[str, Any] = {"name": "images", "datatype": "BYTES", "shape": [len(encoded)]}
    raw = b"".join(struct.pack("<I", len(image)) + image for image in encoded)
    binary = given | {"parameters": {"binary_data_size": len(raw)}}
    texts = given | {"data": [base64.b64encode(image).decode() for image in encoded]}
    for answer in (served.infer({"inputs": [texts]}), served.infer({"inputs": [binary]}, raw)):
        assert answer.status == 200
        assert answer.json()["outputs"][0]["data"] == labels


def test_images_that_decode_slowly_delay_no_other_request(served: Served) -> None:
    image = png_that_claims(1024, 1024, bytes(1024 * (1 + 3 * 1024)))
    raw = (struct.pack("<I", len(image)) + image) * MAX_IMAGES
    given: dict[str, Any] = {"name": "images", "datatype": "BYTES", "shape": [MAX_IMAGES]}
    header = json.dumps({"inputs": [given | {"parameters": {"binary_data_size": len(raw)}}]}).encode()
    lines = f"Connection: close\r\n{LENGTH}: {len(header)}\r\nContent-Length: {len(header) + len(raw)}\r\n\r\n"
    post = f"POST {served.model}/infer HTTP/1.1\r\nHost: x\r\n{lines}".encode()
    slow = talk(served.server, post, header, raw)
    quick = {"name": "images", "datatype": "UINT8", "shape": [1, 8, 8, 1], "data": [0] * PIXELS}
    assert served.infer({"inputs": [quick]}).status == 200
    assert not select.select([slow], [], [], 0)[0]
    assert rest_of(slow).startswith(b"HTTP/1.1 200 ")


def test_refusals(served: Served) -> None:
    """Every request that cannot be answered gets a reason."""
    image, text = bytes(PIXELS), base64.b64encode(digits()[0][0]).decode()

    def pixels(**changes: Any) -> dict[str, Any]:
        return {"name": "images", "datatype": "UINT8", "shape": [1, 8, 8, 1], "data": [*image]} | changes

    def encoded(*data: Any, **changes: Any) -> dict[str, Any]:
        return {"name": "images", "datatype": "BYTES", "shape": [len(data)], "data": data} | changes

    def raw(size: object, **changes: Any) -> dict[str, Any]:
        return {
            "name": "images",
            "datatype": "UINT8",
            "shape": [1, 8, 8, 1],
            "parameters": {"binary_data_size": size},
        } | changes

    wrong = png_that_claims(60_000, 60_000, b"")
    refused: dict[str, tuple[dict[str, Any], bytes]] = {
        "not ['images', 'images']": ({"inputs": [pixels(), pixels()]}, b""),
        "not ['image']": ({"inputs": [pixels(name="image")]}, b""),
        "the inputs must be 'images' and, if wanted, 'ids', not []": ({"inputs": []}, b""),
        "ids must be BYTES [1]": ({"inputs": [pixels(), encoded("a", "b", name="ids")]}, b""),
        "ids has 2 elements, not 1": ({"inputs": [pixels(), encoded("a", "b", name="ids", shape=[1])]}, b""),
        "longer than 256 bytes": ({"inputs": [encoded("\u00e9" * 129, name="ids"), pixels()]}, b""),
        "an id is longer": ({"inputs": [pixels()], "id": "\u00e9" * 129}, b""),
        "not UTF-8": ({"inputs": [pixels(), raw(5, name="ids", datatype="BYTES", shape=[1])]}, b"\1\0\0\0\xff"),
        "not 'FP32'": ({"inputs": [pixels(datatype="FP32")]}, b""),
        "Expected `int` >= 0": ({"inputs": [pixels(shape=[-1, 8, 8, 1])]}, b""),
        "with N from 1 to 20, not [21,": ({"inputs": [pixels(shape=[21, 8, 8, 1])]}, b""),
        "with N from 1 to 20, not [0,": ({"inputs": [pixels(shape=[0, 8, 8, 1], data=[])]}, b""),
        "must be [N, 8, 8, 1]": ({"inputs": [pixels(shape=[1, 64])]}, b""),
        "must be [N, 8, 8, 1] with N from 1 to 20, not []": ({"inputs": [pixels(shape=[])]}, b""),
        "not [1000000000000, 8": ({"inputs": [pixels(shape=[10**12, 8, 8, 1])]}, b""),
        "`int` <= 1099511627776": ({"inputs": [pixels(shape=[10**15, 8, 8, 1])]}, b""),
        "length <= 8": ({"inputs": [pixels(shape=[1] * 9)]}, b""),
        "has 63 values, not 64": ({"inputs": [pixels(data=[0] * 63)]}, b""),
        "from 0 to 255": ({"inputs": [pixels(data=[256] * 64)]}, b""),
        "must be from 0 to 255": ({"inputs": [pixels(data=[-1] * 64)]}, b""),
        "must be a list of int, flat or nested": ({"inputs": [pixels(data=[0.5] * 64)]}, b""),
        "list of int": ({"inputs": [pixels(data=[[0] * 64])]}, b""),
        "flat or nested as its shape": ({"inputs": [pixels(data=[[]] * 100_000)]}, b""),
        "nested as its shape": ({"inputs": [pixels(data=["[" * 73])]}, b""),
        "a list of int": ({"inputs": [pixels(data=["0"] * 64)]}, b""),
        "neither data nor binary_data_size": ({"inputs": [raw(None)]}, b""),
        "binary_data_size of 'images' is 64, but 63 bytes": ({"inputs": [raw(64)]}, image[1:]),
        "1 bytes follow the JSON and the binary tensors": ({"inputs": [raw(64)]}, image + b"x"),
        "has 63 values": ({"inputs": [raw(63)]}, image[1:]),
        "is 1099511627776, but 64 bytes": ({"inputs": [raw(2**40)]}, image),
        "Expected `int` <= 1099511627776": ({"inputs": [raw(2**62)]}, image),
        "64 bytes follow": ({"inputs": [pixels()]}, image),
        "no output 'classes'": ({"inputs": [pixels()], "outputs": [{"name": "classes"}]}, b""),
        "Expected `bool`": ({"inputs": [pixels()], "parameters": {"binary_data_output": 1}}, b""),
        "Object missing required field `inputs`": ({"input": []}, b""),
        "length <= 256": ({"inputs": [pixels()], "id": "x" * 257}, b""),
        "an image cannot be decoded: not a JPEG or PNG": (
            {"inputs": [encoded(base64.b64encode(b"no image").decode())]},
            b"",
        ),
        "pixels": ({"inputs": [encoded(text, base64.b64encode(wrong).decode())]}, b""),
        "must be base64": ({"inputs": [encoded("\u00e9")]}, b""),
        "as BYTES must be base64": ({"inputs": [encoded("a")]}, b""),
        "list of str": ({"inputs": [encoded(1)]}, b""),
        "must be [N] with N from 1 to 20, not [1, 1]": ({"inputs": [encoded(text, shape=[1, 1])]}, b""),
        "has 1 elements, not 2": ({"inputs": [encoded(text, shape=[2])]}, b""),
        "fewer bytes than its 1 elements need": ({"inputs": [raw(7, datatype="BYTES", shape=[1])]}, b"\4\0\0\0abc"),
        "fewer bytes than its 2 elements": ({"inputs": [raw(7, datatype="BYTES", shape=[2])]}, b"\3\0\0\0abc"),
        "fewer bytes": ({"inputs": [raw(4, datatype="BYTES", shape=[1])]}, b"\xff\xff\xff\xff"),
        "2 bytes follow the 1 elements": ({"inputs": [raw(9, datatype="BYTES", shape=[1])]}, b"\3\0\0\0abcde"),
    }
    for reason, (document, binary) in refused.items():
        assert reason in refusal(served.infer(document, *([binary] if binary else [])), 400)
    good = json.dumps({"inputs": [pixels()]}).encode()
    for body, length, reason in [
        (b"", None, "the request is not valid"),
        (b"{", None, "the request is not valid"),
        (b"\xff", None, "the request is not valid"),
        (b"[" * 90_000, None, "Expected `object`, got `array`"),
        (b'{"inputs": [], "more": ' + b"[" * 90_000, None, "nested too deeply"),
        (good, str(len(good) + 1), "must be a number up to the length"),
        (good, "-1", "must be a number up to the length"),
        (good, "9" * 30, "must be a number up to the length"),
        (good, "\u0663", "must be a number up to the length"),
        (good, "0", "the request is not valid"),
    ]:
        headers = {} if length is None else {LENGTH.replace("-", "_"): length.encode("utf-8").decode("latin-1")}
        assert reason in refusal(ask(served.server, f"{served.model}/infer", body, **headers), 400)
    assert ask(served.server, f"{served.model}/infer", good).status == 200
    page = ask(served.server, "/metrics").body.decode()
    assert 'stream_learner_serving_requests_total{status="400"}' in page
    assert f"stream_learner_serving_release {served.log.manifest['release']['sequence']}.0" in page
    assert "an unexpected" not in served.server.text()
    assert "release in use" in served.server.text()


def talk(server: Worker, *parts: bytes) -> socket.socket:
    connection = socket.create_connection((HOST, port(server)), DEADLINE_S)
    for part in parts:
        connection.sendall(part)
    return connection


def rest_of(connection: socket.socket) -> bytes:
    """Read until the server closes the connection."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    connection.close()
    return b"".join(parts)


def test_limits(served: Served) -> None:
    server = serve(served.run, **LIMITS)
    server.until("release", lambda: ask(server, "/v2/health/ready").status == 200)
    infer = f"{served.model}/infer"
    assert "longer than 100000 bytes" in refusal(ask(server, infer, bytes(100_001)), 413)
    post = f"POST {infer} HTTP/1.1\r\nHost: x\r\n".encode()
    for headers in (b"Content-Length: 1000\r\n", b"Transfer-Encoding: chunked\r\n"):
        answer = rest_of(talk(server, post, headers, b"\r\n", b"3\r\nabc\r\n"))
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"no answer within 1 s" in answer
    held = talk(server, post, b"Content-Length: 90000\r\n\r\n", bytes(80_000))
    other = talk(server, post, b"Content-Length: 90000\r\n\r\n", bytes(80_000))
    answers = [rest_of(connection) for connection in (held, other)]
    assert any(b"too much memory" in answer for answer in answers)
    assert rest_of(talk(server, post, b"X: ", b"x" * 100_000)) == b""
    chunked = b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"
    for start in (b"0\r\nX: ", b"1;extension="):
        assert rest_of(talk(server, post, chunked, start, b"x" * 400_000)) == b""
    assert rest_of(talk(server)) == b""
    assert rest_of(talk(server, post)) == b""
    assert b"400 Bad Request" in rest_of(talk(server, b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n"))
    get = b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n"
    kept = talk(server, get)
    assert kept.recv(4096).startswith(b"HTTP/1.1 200 ")
    idle = [talk(server) for _ in range(3)]
    assert ask(server, "/v2").status == 503
    assert ask(server, "/v2/health/live").status == 200
    kept.sendall(get)
    assert kept.recv(4096).startswith(b"HTTP/1.1 200 ")
    kept.close()
    for connection in idle:
        assert rest_of(connection) == b""
    server.until("room", lambda: ask(server, "/v2").status == 200)
    unread = [never_read(server, last) for last in (b"", b"", b"Connection: close\r\n", b"Connection: close\r\n")]
    assert ask(server, "/v2").status == 503
    server.until("room", lambda: ask(server, "/v2").status == 200)
    for connection in unread:
        connection.close()
    assert "Exception" not in server.text()
    server.stop()


def never_read(server: Worker, last: bytes) -> socket.socket:
    """Send requests without reading the responses, which are larger than the buffers of the two kernels."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((HOST, port(server)))
    page = b"GET /metrics HTTP/1.1\r\nHost: x\r\n"
    connection.sendall((page + b"\r\n") * 1000 + page + last + b"\r\n")
    return connection


def test_a_stop_answers_requests_that_have_begun(served: Served) -> None:
    """Requests on their way to a connection without a request are answered too."""
    server = serve(served.run)
    server.until("release", lambda: ask(server, "/v2/health/ready").status == 200)
    idle = talk(server)
    infer = f"{served.model}/infer"
    body = json.dumps({"inputs": [{"name": "images", "datatype": "UINT8", "shape": [1, 8, 8, 1], "data": [0] * 64}]})
    head = f"POST {infer} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    begun = talk(server, head.encode(), body[:100].encode())
    in_headers = talk(server, head[:10].encode())
    with ThreadPoolExecutor(LOADS) as threads:
        answered = threading.Barrier(LOADS + 1)
        busy = [threads.submit(ask_until_refused, port(server), infer, body, answered) for _ in range(LOADS)]
        answered.wait(DEADLINE_S)
        server.signal(signal.SIGTERM)
        assert all(one.result() > 1 for one in busy)
    begun.sendall(body[100:].encode())
    in_headers.sendall((head[10:] + body).encode())
    for connection in (begun, in_headers):
        answer = rest_of(connection)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b'"model_version"' in answer
        assert b"connection: close" in answer
    assert rest_of(idle) == b""
    assert '"event":"stopped"' in server.ends(0)


def ask_until_refused(port: int, page: str, body: str, answered: threading.Barrier) -> int:
    """Ask over a connection that is kept, then over further ones until one is refused. Return the number of answers."""
    answers = 0
    while True:
        connection = HTTPConnection(HOST, port, timeout=DEADLINE_S)
        try:
            connection.connect()
        except ConnectionRefusedError:
            return answers
        closed = False
        while not closed:
            connection.request("POST", page, body)
            response = connection.getresponse()
            response.read()
            assert response.status == 200
            closed = response.will_close
            answers += 1
            if answers == 1:
                answered.wait(DEADLINE_S)
        connection.close()


def test_a_stop_while_kafka_does_not_answer(served: Served) -> None:
    with socket.create_server((HOST, 0)) as silent:
        address = f"{HOST}:{silent.getsockname()[1]}"
        server = serve(served.run, servers=address)
        with silent.accept()[0]:
            server.stop()


def test_grpc(served: Served) -> None:
    """The same server answers over gRPC. `tests/follow/test_serving_grpc.py` has the details."""
    server = serve(served.run, grpc_port=0)
    server.until("release", lambda: ask(server, "/v2/health/ready").status == 200)
    address = f"{HOST}:{port(server, 'grpc_port')}"
    images, labels = served.evaluation()
    given = {"name": "images", "datatype": "UINT8", "shape": images.shape}
    request = MESSAGES["ModelInferRequest"](
        model_name=served.run.id, inputs=[given], raw_input_contents=[images.tobytes()]
    )
    with grpc.insecure_channel(address) as channel:
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        answer = MESSAGES["ModelInferResponse"].FromString(infer(request.SerializeToString()))
        assert answer.raw_output_contents[0] == b"".join(
            struct.pack("<I", len(label)) + label.encode() for label in labels
        )
        page = ask(server, "/metrics").body.decode()
        assert 'stream_learner_serving_requests_total{status="200"} 1.0' in page
        assert f"stream_learner_serving_images_total {len(labels)}.0" in page
        file = served.run.folder / "grpc.toml"
        servers = served.run.broker.bootstrap_servers
        file.write_text(
            f'run.id = "{served.run.id}"\nkafka.bootstrap_servers = "{servers}"\n'
            f"serve.port = 0\nserve.grpc_port = {address.split(':')[1]}\n"
        )
        said = failure(stream_learner("serve", file, folder=served.run.folder), ExitCode.USAGE)
        assert f"cannot listen on {address}; change serve.host or serve.grpc_port" in said
        server.signal(signal.SIGTERM)
        assert '"event":"stopped"' in server.ends(0)


def test_what_prevents_a_start(served: Served) -> None:
    run = served.run
    run_id, servers = f'run.id = "{run.id}"\n', f'kafka.bootstrap_servers = "{run.broker.bootstrap_servers}"\n'
    file = run.folder / "server.toml"
    file.write_text(run_id + servers + f"serve.port = {port(served.server)}\n")
    said = failure(stream_learner("serve", file, folder=run.folder), ExitCode.USAGE)
    assert f"cannot listen on 127.0.0.1:{port(served.server)} (Address already in use)" in said
    file.write_text(run_id + servers + 'serve.host = "192.0.2.1"\nserve.port = 0\n')
    said = failure(stream_learner("serve", file, folder=run.folder), ExitCode.USAGE)
    assert "cannot listen on 192.0.2.1:0" in said
    file.write_text(run_id + servers + 'serve.port = 0\ntopics.prefix = "other"\n')
    said = failure(stream_learner("serve", file, folder=run.folder), ExitCode.TOPICS)
    assert "has no topic other.checkpoints" in said
    assert ServeSettings().host == "127.0.0.1"


def test_exactly_the_share_is_published(served: Served) -> None:
    images, labels = served.evaluation()
    server = serve(served.run, publish_share=0.3)
    server.until("release", lambda: ask(server, "/v2/health/ready").status == 200)

    def predict(start: int, end: int, *more: tuple[dict[str, Any], bytes], **fields: Any) -> None:
        given = {"name": "images", "datatype": "UINT8", "shape": [end - start, 8, 8, 1]}
        inputs = [given | {"parameters": {"binary_data_size": PIXELS * (end - start)}}, *(one for one, _ in more)]
        header = json.dumps({"inputs": inputs} | fields).encode()
        body = b"".join([header, images[start:end].tobytes(), *(binary for _, binary in more)])
        answer = ask(server, f"{served.model}/infer", body, **{LENGTH.replace("-", "_"): str(len(header))})
        assert answer.status == 200
        assert answer.json()["outputs"][0]["data"] == labels[start:end]

    given: dict[str, Any] = {"name": "ids", "datatype": "BYTES"}
    for index in range(5):
        predict(index, index + 1, id=f"r\u00e9quest {index}")
    texts = [f"text {index}" for index in range(5, 12)]
    predict(5, 12, (given | {"shape": [7], "data": texts}, b""))
    raw = b"".join(struct.pack("<I", 1) + bytes([65 + index]) for index in range(4))
    predict(12, 16, (given | {"shape": [4], "parameters": {"binary_data_size": len(raw)}}, raw))
    predict(16, 19, id="of several images")
    predict(19, 20)
    refusal(ask(server, f"{served.model}/infer", b"{}"), 400)
    server.stop()
    ids = [*(f"r\u00e9quest {index}" for index in range(5)), *texts, "A", "B", "C", "D", *[None] * 4]
    chosen = [index for index in range(20) if (index + 1) * 3 // 10 > index * 3 // 10]
    assert len(chosen) == 6
    found = [decode_prediction(read.key, read.value) for read in served.run.read("predictions")]
    release = served.log.manifest["release"]["sequence"]
    assert [(one.id, one.label, one.epoch, one.release, one.run_id) for one in found] == [
        (ids[index], labels[index], 1, release, served.run.id) for index in chosen
    ]
    expected = read_release(served.run.id, served.run.broker.bootstrap_servers).predict(images).probabilities
    for index, one in zip(chosen, found, strict=True):
        assert abs(one.probability - expected[index].max()) < 1e-5


def metric(server: Worker, name: str) -> float:
    page = ask(server, "/metrics").body.decode()
    return float(page.partition(f"\nstream_learner_serving_{name} ")[2].partition("\n")[0])


def test_predictions_that_are_not_published_are_counted(served: Served) -> None:
    run = served.run
    server = serve(run, publish_share=1, request_timeout_s=1.0)
    server.until("release", lambda: ask(server, "/v2/health/ready").status == 200)
    body = json.dumps({"inputs": [{"name": "images", "datatype": "UINT8", "shape": [1, 8, 8, 1], "data": [0] * 64}]})

    def predict() -> bool:
        return ask(server, f"{served.model}/infer", body.encode()).status == 200

    assert predict()
    server.until("record", lambda: metric(server, "predictions_published_total") == 1)
    run.delete_topic(f"{run.prefix}.predictions")
    assert predict()
    server.until("loss", lambda: metric(server, "predictions_unpublished_total") == 1)
    assert "predictions are not published" in server.text()
    topics.create(run.settings)
    server.until("record", lambda: predict() and metric(server, "predictions_published_total") > 1)
    asked = metric(server, "images_total")
    server.until("end", lambda: sum(metric(server, f"predictions_{x}published_total") for x in ("", "un")) == asked)
    server.stop()
    served.run.delete_topic(f"{run.prefix}.predictions")
    file = run.folder / "unpublished.toml"
    text = f'run.id = "{run.id}"\nkafka.bootstrap_servers = "{run.broker.bootstrap_servers}"\n'
    file.write_text(f"{text}serve.port = 0\nserve.publish_share = 0.1\n")
    said = failure(stream_learner("serve", file, folder=run.folder), ExitCode.TOPICS)
    assert f"topic {run.prefix}.predictions is missing" in said
    topics.create(run.settings)


def test_releases_are_swapped_under_load(served: Served) -> None:
    """No request fails while releases arrive, and each answer is that of the release that it names."""
    run, server = served.run, served.server
    images = served.evaluation()[0][:3]
    given = {"name": "images", "datatype": "UINT8", "shape": list(images.shape), "data": images.ravel().tolist()}
    body = json.dumps({"inputs": [given], "outputs": [{"name": "probabilities"}]})
    done = threading.Event()
    answers: list[tuple[int, list[float]]] = []
    failures: list[object] = []

    def load() -> None:
        connection = HTTPConnection(HOST, port(server), timeout=DEADLINE_S)
        while not done.wait(0.002):
            connection.request("POST", f"{served.model}/infer", body)
            response = connection.getresponse()
            document = json.loads(response.read())
            if response.status == 200:
                answers.append((int(document["model_version"]), document["outputs"][0]["data"]))
            else:
                failures.append(document)
        connection.close()

    threads = [threading.Thread(target=load) for _ in range(LOADS)]
    for thread in threads:
        thread.start()
    worker = run.start()
    for seed in range(SWAPS):
        before = metric(server, "release")
        run.feed(mixed(220, seed))
        server.until("swap", lambda before=before: metric(server, "release") > before)
    log = run.finish(worker)
    last = log.manifest["release"]["sequence"]
    server.until("last release", lambda: metric(server, "release") == last)
    done.set()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert not failures
    seen = {version for version, _ in answers}
    assert len(seen) > SWAPS
    expected = {sequence: release.predict(images).probabilities for sequence, release in releases(log).items()}
    for version, found in answers:
        np.testing.assert_allclose(np.reshape(found, (3, -1)), expected[version], atol=1e-6)
    ordered = [expected[version] for version in sorted(seen)]
    assert all(np.abs(one - other).max() > 1e-4 for one, other in pairwise(ordered))
    assert np.allclose([np.sum(found) for _, found in answers], 3, atol=1e-5)
    versions = [version for version, _ in answers[:: len(answers) // 100]]
    assert versions == sorted(versions)


def test_published_predictions_are_scored_when_their_labels_arrive(served: Served) -> None:
    """The last test of this run, which evaluates predictions from here on."""
    run = served.run
    images, _ = served.evaluation()
    run.overrides["served.evaluate"] = True
    worker, server = run.start(), serve(run, publish_share=1)
    server.until("release", lambda: ask(server, "/v2/health/ready").status == 200)
    ids = [f"served {index}" for index in range(len(images))]
    inputs = [
        {"name": "images", "datatype": "UINT8", "shape": [*images.shape], "data": images.ravel().tolist()},
        {"name": "ids", "datatype": "BYTES", "shape": [len(ids)], "data": ids},
    ]
    answer = ask(server, f"{served.model}/infer", json.dumps({"inputs": inputs}).encode()).json()
    labels, release = answer["outputs"][0]["data"], int(answer["model_version"])
    server.until("records", lambda: metric(server, "predictions_published_total") == len(ids))
    drafts = [with_id(draft, id_) for draft, id_ in zip(good(len(ids)), ids, strict=True)]
    run.feed(drafts)
    right = sum(dict(d.headers)["label"].decode() == label for d, label in zip(drafts, labels, strict=True))
    outcome = '{outcome="scored"}'
    worker.until("scores", lambda: worker.metric("served_predictions_total").get(outcome) == len(ids))
    run.learned(worker)
    worker.stop()
    server.stop()
    run.predictions = len(run.read("predictions"))
    scored = [one for window in run.check().windows for one in (window["served"] or {"releases": []})["releases"]]
    assert {(one["epoch"], one["release"]) for one in scored} == {(1, release)}
    assert sum(one["accuracy"]["correct"] for one in scored) == right
    assert sum(one["accuracy"]["total"] for one in scored) == len(ids)


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
