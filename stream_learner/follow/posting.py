"""Requests to an HTTP server that a person names by a URL. Documents are JSON."""

import base64
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import unquote, urlsplit

from stream_learner.errors import UsageError

MAX_ANSWER_BYTES = 16 * 1024 * 1024
MAX_REASON_CHARACTERS = 4096


class RequestError(Exception):
    """Error for a server that gives no answer. The message does not repeat the URL."""


class Server:
    """A server, and a path on it. A user and a password in the URL are sent as the basic authentication."""

    def __init__(self, url: str, name: str, timeout_s: float, authorization: str | None = None):
        """Check the URL. `name` names it in messages. `authorization` is sent if the URL has no user.

        A request fails after `timeout_s` seconds, also if the server sends its answer byte by byte.

        Raises UsageError, whose message does not repeat the URL, because it may hold a secret.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise UsageError(f"{name} is not valid") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{name} must begin with http:// or https:// and name a host")
        self.host = parts.hostname
        self._connection = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._port = port
        self._path, self._query = parts.path, f"?{parts.query}" if parts.query else ""
        self._timeout_s = timeout_s
        self._headers = {"Content-Type": "application/json"}
        if parts.username is not None:
            authorization = basic(unquote(parts.username), unquote(parts.password or ""))
        if authorization:
            self._headers["Authorization"] = authorization

    def post(self, body: bytes, below: str = "") -> str | None:
        """Post a document to the URL, or to the path `below` the URL's.

        Return why the server did not accept the document, None when it did.
        """
        try:
            status, answer = self.request("POST", body, below)
        except RequestError as error:
            return str(error)
        return None if 200 <= status < 300 else f"it answered with status {status}" + _reason(answer)

    def request(self, method: str, body: bytes = b"", below: str = "") -> tuple[int, bytes]:
        """Return status and body of the answer. Raises RequestError."""
        connection = self._connection(self.host, self._port, timeout=self._timeout_s)
        target = (self._path.rstrip("/") + below if below else self._path or "/") + self._query
        try:
            connection.connect()
            with _ended_after(self._timeout_s, connection.sock):
                connection.request(method, target, body, self._headers)
                answer = connection.getresponse()
                return answer.status, answer.read(MAX_ANSWER_BYTES)
        # A URL may hold characters that HTTP does not allow. The error's own message would repeat the URL.
        except (http.client.InvalidURL, UnicodeError):
            raise RequestError("the URL holds characters that HTTP does not allow") from None
        except (OSError, http.client.HTTPException) as error:
            raise RequestError(f"{type(error).__name__}: {error}") from None
        finally:
            connection.close()


@contextmanager
def _ended_after(timeout_s: float, connection: socket.socket) -> Iterator[None]:
    """End a connection and raise TimeoutError after the time-out. A socket's own time-out restarts with each byte."""
    is_over = threading.Event()

    def end() -> None:
        is_over.set()
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(timeout_s, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if is_over.is_set():
            raise TimeoutError("timed out")


def basic(user: str, password: str) -> str:
    """Return the value of the header `Authorization` for a user."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _reason(answer: bytes) -> str:
    """Return the reason in a JSON document with the key `error`, as servers of models answer, or else nothing."""
    with suppress(ValueError, KeyError, TypeError, RecursionError):
        return f": {json.loads(answer)['error']}"[:MAX_REASON_CHARACTERS]
    return ""
