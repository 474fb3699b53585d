"""Notices of releases to an HTTP server."""

import base64
import http.client
import threading
from urllib.parse import unquote, urlsplit

import structlog

from stream_learner.contract.manifest import encode
from stream_learner.errors import UsageError

log = structlog.get_logger()

TIMEOUT_S = 5.0
RETRY_S = 1.0


class Notices:
    """Posts JSON documents to a URL. A failure is logged and does not raise."""

    def __init__(self, url: str, stop: threading.Event):
        """Check the URL. Raises UsageError, whose message does not repeat the URL, because it may hold a secret."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise UsageError("the URL to notify is not valid") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError("the URL to notify must begin with http:// or https:// and name a host")
        self._connection = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port = parts.hostname, port
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._headers = {"Content-Type": "application/json"}
        if parts.username is not None:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["Authorization"] = "Basic " + base64.b64encode(user.encode()).decode()
        self._stop = stop

    def post(self, document: dict[str, object]) -> None:
        """Post a document. Try a second time after a failure, then log a warning."""
        body = encode(document)
        why = self._post(body)
        if why and not self._stop.wait(RETRY_S):
            why = self._post(body)
        if why:
            log.warning("a server was not notified of a release", host=self._host, why=why)

    def _post(self, body: bytes) -> str | None:
        """Return why the server did not accept the document, None when it did."""
        connection = self._connection(self._host, self._port, timeout=TIMEOUT_S)
        try:
            connection.request("POST", self._target, body, self._headers)
            status = connection.getresponse().status
        # A URL may hold characters that HTTP does not allow. The error's own message would repeat the URL.
        except (http.client.InvalidURL, UnicodeError):
            return "the URL holds characters that HTTP does not allow"
        except (OSError, http.client.HTTPException) as error:
            return f"{type(error).__name__}: {error}"
        finally:
            connection.close()
        return None if 200 <= status < 300 else f"it answered with status {status}"
