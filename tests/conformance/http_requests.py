"""Plain requests over HTTP."""

import json
from http.client import HTTPConnection
from typing import Any, NamedTuple

from harness import DEADLINE_S

from stream_learner.local.broker import HOST


class Answer(NamedTuple):
    status: int
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def ask(port: int, path: str, body: bytes | None = None) -> Answer:
    connection = HTTPConnection(HOST, port, timeout=DEADLINE_S)
    try:
        connection.request("GET" if body is None else "POST", path, body)
        response = connection.getresponse()
        return Answer(response.status, response.read())
    finally:
        connection.close()
