"""Requests to a server, also by clients that behave badly."""

import json
import socket
from http.client import HTTPConnection
from typing import Any, NamedTuple

from harness import DEADLINE_S

from stream_learner.local.broker import HOST

LENGTH = "Inference-Header-Content-Length"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def ask(port: int, path: str, body: bytes | None = None, method: str | None = None, **headers: str) -> Answer:
    connection = HTTPConnection(HOST, port, timeout=DEADLINE_S)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method or ("GET" if body is None else "POST"), path, body, named)
        response = connection.getresponse()
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
    finally:
        connection.close()


def refusal(answer: Answer, status: int) -> str:
    """Return the reason in an answer with this status."""
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/json"
    (reason,) = answer.json().values()
    return reason


def talk(port: int, *parts: bytes) -> socket.socket:
    connection = socket.create_connection((HOST, port), DEADLINE_S)
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
