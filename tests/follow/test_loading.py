"""A model server that is asked to load a release."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import structlog

from stream_learner.errors import DependencyError
from stream_learner.follow.loading import Loads
from stream_learner.follow.posting import Server
from stream_learner.local.broker import HOST


class Models(ThreadingHTTPServer):
    """A server that answers with these statuses and bodies, in turn."""

    def __init__(self) -> None:
        super().__init__((HOST, 0), Handler)
        self.answers: list[tuple[int, bytes]] = []
        self.asked = 0


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Models)
        server.asked += 1
        self.rfile.read(int(self.headers["Content-Length"]))
        status, body = server.answers.pop(0)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object, **_: object) -> None:
        pass


@pytest.fixture
def models() -> Iterator[Models]:
    with Models() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def loads(models: Models, monkeypatch: pytest.MonkeyPatch) -> Loads:
    monkeypatch.setattr("stream_learner.follow.loading.RETRY_S", 0.01)
    return Loads(f"http://{HOST}:{models.server_port}", "digits", threading.Event())


def test_tries_again_until_the_release_is_loaded(models: Models, loads: Loads) -> None:
    refusal = 400, b'{"error": "load failed for model: no memory"}'
    models.answers = [refusal, refusal, (500, b"[" * 3000), (503, b'{"error": 5}'), (302, b""), (200, b"")]
    with structlog.testing.capture_logs() as logs:
        assert loads.until_loaded(lambda: False)
    assert [line.get("why") for line in logs] == [
        "it answered with status 400: load failed for model: no memory",
        "it answered with status 500",
        "it answered with status 503: 5",
        "it answered with status 302",
        None,
    ]
    assert models.asked == 6


def test_a_newer_release_supersedes_one_that_is_not_loaded(models: Models, loads: Loads) -> None:
    models.answers = [(500, b"")] * 2
    superseded = iter([False, True])
    assert not loads.until_loaded(lambda: next(superseded))
    assert models.answers == []


@pytest.mark.parametrize("start", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"])
def test_an_answer_without_an_end(start: bytes) -> None:
    """A server that sends byte by byte holds nobody up for longer than the time-out."""
    with socket.create_server((HOST, 0)) as listener:
        server = Server(f"http://user:secret@{HOST}:{listener.getsockname()[1]}/path", "the URL", 0.5)

        def trickle() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                connection.sendall(start)
                while True:
                    connection.sendall(b" ")
                    time.sleep(0.05)

        thread = threading.Thread(target=trickle)
        thread.start()
        assert server.post(b"{}") == "TimeoutError: timed out"
        thread.join()


def test_once(models: Models, loads: Loads) -> None:
    models.answers = [(400, b'{"error": "bad"}'), (200, b"")]
    with pytest.raises(DependencyError, match=r"127.0.0.1 did not load the release: it answered with status 400: bad"):
        loads.once()
    loads.once()
    models.shutdown()
    models.server_close()
    with pytest.raises(DependencyError, match="ConnectionRefusedError"):
        loads.once()
