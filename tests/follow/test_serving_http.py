"""The HTTP side of the server, over a socket, with releases that are in use without a Kafka."""

import base64
import io
import json
import re
import select
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from computed import PIXELS, Releases, computed
from nasty_images import png_that_claims
from PIL import Image
from talking import DEADLINE_S, LENGTH, Answer, ask, refusal, rest_of, talk

from stream_learner.config import ServeSettings
from stream_learner.follow.serving.app import Application
from stream_learner.follow.serving.server import _config, _listener, _Server
from stream_learner.local.broker import HOST

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
RUN = "digits"
MODEL = f"/v2/models/{RUN}"
MAX_IMAGES = 20
N_PIXELS = PIXELS.size
LIMITS = {"timeout_s": 1.0, "max_body_bytes": 100_000, "max_held_bytes": 150_000, "max_connections": 4}


@contextmanager
def serving(**settings: Any) -> Iterator[int]:
    """Serve in a thread. Yield the port."""
    application, configured = make(ServeSettings(port=0, max_images=MAX_IMAGES, **settings))
    server, listener = _Server(_config(application, configured), application), _listener(configured)
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(server.run, [listener])
        yield listener.getsockname()[1]
        server.should_exit = True
        running.result()


def make(settings: ServeSettings) -> tuple[Application, ServeSettings]:
    releases: Any = Releases(computed(5, 2))
    return Application(RUN, releases, settings), settings


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving() as port:
        yield port


def infer(port: int, document: dict[str, Any], *binaries: bytes) -> Answer:
    header = json.dumps(document).encode()
    lengths = {LENGTH.replace("-", "_"): str(len(header))} if binaries else {}
    return ask(port, f"{MODEL}/infer", header + b"".join(binaries), **lengths)


def png() -> bytes:
    written = io.BytesIO()
    Image.fromarray(PIXELS[0, :, :, 0]).save(written, "PNG")
    return written.getvalue()


def test_pages(port: int) -> None:
    version, labels = "5", ["cat", "7", "\u00e9"]
    found = ask(port, "/v2").json()
    assert found["name"] == "stream-learner"
    assert found["extensions"] == ["binary_tensor_data"]
    assert ask(port, "/v2/health/live").json() == {"live": True}
    assert ask(port, "/v2/health/ready").json() == {"ready": True}
    for path in (MODEL, f"{MODEL}/versions/{version}"):
        assert ask(port, path).json() == {
            "name": RUN,
            "versions": [version],
            "platform": "stream-learner",
            "inputs": [{"name": "images", "datatype": "UINT8", "shape": [-1, 8, 8, 1]}],
            "outputs": [
                {"name": "labels", "datatype": "BYTES", "shape": [-1]},
                {"name": "logits", "datatype": "FP32", "shape": [-1, len(labels)]},
                {"name": "probabilities", "datatype": "FP32", "shape": [-1, len(labels)]},
            ],
            "parameters": {"epoch": 1, "labels": labels},
        }
        assert ask(port, f"{path}/ready").json() == {"name": RUN, "ready": True}
        head = ask(port, path, method="HEAD")
        assert (head.status, head.body) == (200, b"")
    for path in ("/", "/v2/", "/v3", "/v2/models", f"{MODEL}/", f"{MODEL}/config", "/%00", "/v2/../v2"):
        assert "there is no page" in refusal(ask(port, path), 404)
    for path in ("/v2/models/other", "/v2/models/other/ready", "/v2/models/%2e%2e"):
        assert f"the model is {RUN!r}" in refusal(ask(port, path), 404)
    for other in ("99", "0", f"0{version}", "x", "9" * 30):
        assert "is not loaded" in refusal(ask(port, f"{MODEL}/versions/{other}"), 404)
        assert "is not loaded" in refusal(ask(port, f"{MODEL}/versions/{other}/infer", b"{}"), 404)
    assert "POST is not allowed" in refusal(ask(port, MODEL, b"{}"), 405)
    wrong = ask(port, f"{MODEL}/infer")
    assert "GET is not allowed" in refusal(wrong, 405)
    assert wrong.headers["allow"] == "POST"


def test_a_scrape_with_an_odd_header(port: int) -> None:
    answer = ask(port, "/metrics", Accept="application/openmetrics-text;version=x")
    assert (answer.status, answer.headers["content-type"].partition(";")[0]) == (200, "text/plain")


def test_the_documentation_lists_the_metrics(port: int) -> None:
    page, documented = ask(port, "/metrics").body.decode(), OPERATIONS.read_text()
    metrics = re.findall(r"# HELP (\w+) (.+)\n# TYPE \w+ (\w+)\n", page)
    assert metrics
    for name, meaning, kind in metrics:
        assert name.endswith("_created") or f"| `{name}` | {kind} | {meaning} |" in documented


def test_images_that_decode_slowly_delay_no_other_request(port: int) -> None:
    image = png_that_claims(1024, 1024, bytes(1024 * (1 + 3 * 1024)))
    raw = (struct.pack("<I", len(image)) + image) * MAX_IMAGES
    given: dict[str, Any] = {"name": "images", "datatype": "BYTES", "shape": [MAX_IMAGES]}
    header = json.dumps({"inputs": [given | {"parameters": {"binary_data_size": len(raw)}}]}).encode()
    lines = f"Connection: close\r\n{LENGTH}: {len(header)}\r\nContent-Length: {len(header) + len(raw)}\r\n\r\n"
    post = f"POST {MODEL}/infer HTTP/1.1\r\nHost: x\r\n{lines}".encode()
    slow = talk(port, post, header, raw)
    quick = {"name": "images", "datatype": "UINT8", "shape": [1, 8, 8, 1], "data": [0] * N_PIXELS}
    assert infer(port, {"inputs": [quick]}).status == 200
    assert not select.select([slow], [], [], 0)[0]
    assert rest_of(slow).startswith(b"HTTP/1.1 200 ")


def test_refusals(port: int) -> None:
    """Every request that cannot be answered gets a reason."""
    image, text = bytes(N_PIXELS), base64.b64encode(png()).decode()

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
        assert reason in refusal(infer(port, document, *([binary] if binary else [])), 400)
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
        assert reason in refusal(ask(port, f"{MODEL}/infer", body, **headers), 400)
    assert ask(port, f"{MODEL}/infer", good).status == 200
    page = ask(port, "/metrics").body.decode()
    assert 'stream_learner_serving_requests_total{status="400"}' in page
    assert "stream_learner_serving_release 5.0" in page


def test_limits(caplog: pytest.LogCaptureFixture) -> None:
    with serving(**LIMITS) as port:
        check_limits(port)
    assert "Exception" not in caplog.text


def check_limits(port: int) -> None:
    infer = f"{MODEL}/infer"
    assert "longer than 100000 bytes" in refusal(ask(port, infer, bytes(100_001)), 413)
    post = f"POST {infer} HTTP/1.1\r\nHost: x\r\n".encode()
    for headers in (b"Content-Length: 1000\r\n", b"Transfer-Encoding: chunked\r\n"):
        answer = rest_of(talk(port, post, headers, b"\r\n", b"3\r\nabc\r\n"))
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"no answer within 1 s" in answer
    held = talk(port, post, b"Content-Length: 90000\r\n\r\n", bytes(80_000))
    other = talk(port, post, b"Content-Length: 90000\r\n\r\n", bytes(80_000))
    answers = [rest_of(connection) for connection in (held, other)]
    assert any(b"too much memory" in answer for answer in answers)
    assert rest_of(talk(port, post, b"X: ", b"x" * 100_000)) == b""
    chunked = b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"
    for start in (b"0\r\nX: ", b"1;extension="):
        assert rest_of(talk(port, post, chunked, start, b"x" * 400_000)) == b""
    assert rest_of(talk(port)) == b""
    assert rest_of(talk(port, post)) == b""
    after_an_answer = talk(port, b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert after_an_answer.recv(4096).startswith(b"HTTP/1.1 200 ")
    after_an_answer.sendall(b"\r\n")
    assert rest_of(after_an_answer) == b""
    assert b"400 Bad Request" in rest_of(talk(port, b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n"))
    get = b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n"
    kept = talk(port, get)
    assert kept.recv(4096).startswith(b"HTTP/1.1 200 ")
    idle = [talk(port) for _ in range(3)]
    assert ask(port, "/v2").status == 503
    assert ask(port, "/v2/health/live").status == 200
    kept.sendall(get)
    assert kept.recv(4096).startswith(b"HTTP/1.1 200 ")
    kept.close()
    for connection in idle:
        assert rest_of(connection) == b""
    until_there_is_room(port)
    unread = [never_read(port, last) for last in (b"", b"", b"Connection: close\r\n", b"Connection: close\r\n")]
    assert ask(port, "/v2").status == 503
    until_there_is_room(port)
    for connection in unread:
        connection.close()


def until_there_is_room(port: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while ask(port, "/v2").status != 200:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def never_read(port: int, last: bytes) -> socket.socket:
    """Send requests without reading the responses, which are larger than the buffers of the two kernels."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((HOST, port))
    page = b"GET /metrics HTTP/1.1\r\nHost: x\r\n"
    connection.sendall((page + b"\r\n") * 1000 + page + last + b"\r\n")
    return connection


class Stopped(_Server):
    """A server that stops as soon as clients have connected."""

    async def main_loop(self) -> None:
        port = self.servers[0].sockets[0].getsockname()[1]
        self.waiting = [talk(port, b"GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") for _ in range(3)]


def test_connections_that_wait_at_a_stop_are_served() -> None:
    application, settings = make(ServeSettings(port=0))
    server = Stopped(_config(application, settings), application)
    server.run([_listener(settings)])
    for connection in server.waiting:
        assert rest_of(connection).startswith(b"HTTP/1.1 200 ")


def test_a_stop_does_not_wait_for_a_connection_whose_last_body_came_in_chunks() -> None:
    with serving(timeout_s=DEADLINE_S) as port:
        chunked = b"Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
        kept = talk(port, f"POST {MODEL}/infer HTTP/1.1\r\nHost: x\r\n".encode(), chunked)
        assert kept.recv(4096).startswith(b"HTTP/1.1 100 ")
        kept.sendall(b"0\r\n\r\n")
        assert kept.recv(4096).startswith(b"HTTP/1.1 400 ")
        began = time.monotonic()
    assert time.monotonic() - began < DEADLINE_S / 2
    assert rest_of(kept) == b""
