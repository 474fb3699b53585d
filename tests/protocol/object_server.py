"""Object server for tests: the part of S3 that the worker uses, with failures on demand."""

import hashlib
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import Enum
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

TIMEOUT_MS = 500


class Fault(Enum):
    """The fate of every request."""

    REFUSED = "answered with 503, nothing done"
    FORGOTTEN = "answered with 503 although it was done"
    CUT = "the connection is closed in the middle of it"
    SLOW = "done and answered when the fault is over"


class CreateOnly(Enum):
    """How the server answers a put that must not replace an object (`If-None-Match: *`)."""

    KEPT = "refused with 412 when there is one"
    IGNORED = "done, as any other"
    NOT_IMPLEMENTED = "always answered with 501"
    NOT_MODIFIED = "always answered with 304"


class Right(Enum):
    """Kinds of requests that may be forbidden, which are answered with 403."""

    GET = "GET"
    PUT = "PUT"
    LIST = "LIST"
    DELETE = "DELETE"


class Stored(NamedTuple):
    data: bytes
    written: datetime


class ObjectServer(ThreadingHTTPServer):
    """Objects in memory, by `bucket/key`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.objects: dict[str, Stored] = {}
        self.fault: Fault | None = None
        self.create_only = CreateOnly.KEPT
        self.forbidden: Right | None = None
        self.over = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """How a client finds it, and gives up a request after `TIMEOUT_MS`."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.server_port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "nowhere",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_TIMEOUT": f"{TIMEOUT_MS}ms",
        }

    @contextmanager
    def failing(self, fault: Fault) -> Iterator[None]:
        self.over.clear()
        self.fault = fault
        yield
        self.fault = None
        self.over.set()

    def close(self) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has hung up is no news."""


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ObjectServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def answer(self) -> None:
        fault, size = self.server.fault, int(self.headers["Content-Length"] or 0)
        if fault is Fault.CUT:
            self.rfile.read(size // 2)
            self.close_connection = True
            return
        body = self.rfile.read(size)
        if fault is Fault.SLOW:
            self.server.over.wait()
        status, content = (HTTPStatus.SERVICE_UNAVAILABLE, b"") if fault is Fault.REFUSED else self._done(body)
        if fault is Fault.FORGOTTEN and status is HTTPStatus.OK:
            status = HTTPStatus.SERVICE_UNAVAILABLE
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.md5(content).hexdigest()}"')
        self.send_header("Last-Modified", self.date_time_string())
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = answer

    def _done(self, body: bytes) -> tuple[HTTPStatus, bytes]:
        url, objects = urlsplit(self.path), self.server.objects
        name, query = unquote(url.path).removeprefix("/"), parse_qs(url.query, keep_blank_values=True)
        if self.server.forbidden is self._right(query):
            return HTTPStatus.FORBIDDEN, b""
        create_only = self.headers["If-None-Match"] == "*" and self.server.create_only
        match self.command:
            case "PUT" if create_only is CreateOnly.NOT_IMPLEMENTED:
                return HTTPStatus.NOT_IMPLEMENTED, b""
            case "PUT" if create_only is CreateOnly.NOT_MODIFIED:
                return HTTPStatus.NOT_MODIFIED, b""
            case "PUT" if create_only is CreateOnly.KEPT and name in objects:
                return HTTPStatus.PRECONDITION_FAILED, b""
            case "PUT":
                objects[name] = Stored(body, datetime.now(UTC))
                return HTTPStatus.OK, b""
            case "POST" if "delete" in query:
                return HTTPStatus.OK, self._deleted(name, body)
            case "GET" if "list-type" in query:
                return HTTPStatus.OK, self._listed(name, query.get("prefix", [""])[0])
            case "GET" if name in objects:
                return HTTPStatus.OK, objects[name].data
        return HTTPStatus.NOT_FOUND, b""

    def _right(self, query: dict[str, list[str]]) -> Right:
        match self.command:
            case "POST":
                return Right.DELETE
            case "GET" if "list-type" in query:
                return Right.LIST
        return Right(self.command)

    def _deleted(self, bucket: str, request: bytes) -> bytes:
        result = ET.Element("DeleteResult")
        for key in ET.fromstring(request).iterfind("{*}Object/{*}Key"):
            self.server.objects.pop(f"{bucket}/{key.text}", None)
            ET.SubElement(ET.SubElement(result, "Deleted"), "Key").text = key.text
        return ET.tostring(result)

    def _listed(self, bucket: str, prefix: str) -> bytes:
        result = ET.Element("ListBucketResult")
        for name, stored in sorted(self.server.objects.items()):
            if name.startswith(f"{bucket}/{prefix}"):
                contents = ET.SubElement(result, "Contents")
                ET.SubElement(contents, "Key").text = name.removeprefix(f"{bucket}/")
                ET.SubElement(contents, "LastModified").text = stored.written.isoformat()
                ET.SubElement(contents, "Size").text = str(len(stored.data))
        return ET.tostring(result)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """The tests' output is no place for an access log."""
