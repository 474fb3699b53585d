"""Posts JSON documents to an HTTP server that a person names by a URL."""

import base64
import http.client
import json
from contextlib import suppress
from urllib.parse import unquote, urlsplit

from stream_learner.errors import UsageError

MAX_ANSWER_BYTES = 4096


class Server:
    """A server, and a path on it. A user and a password in the URL are sent as the basic authentication."""

    def __init__(self, url: str, name: str, timeout_s: float):
        """Check the URL. `name` names it in messages.

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
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["Authorization"] = "Basic " + base64.b64encode(user.encode()).decode()

    def post(self, body: bytes, below: str = "") -> str | None:
        """Post a document to the URL, or to the path `below` the URL's.

        Return why the server did not accept the document, None when it did.
        """
        connection = self._connection(self.host, self._port, timeout=self._timeout_s)
        target = (self._path.rstrip("/") + below if below else self._path or "/") + self._query
        try:
            connection.request("POST", target, body, self._headers)
            response = connection.getresponse()
            answer = response.read(MAX_ANSWER_BYTES)
        # A URL may hold characters that HTTP does not allow. The error's own message would repeat the URL.
        except (http.client.InvalidURL, UnicodeError):
            return "the URL holds characters that HTTP does not allow"
        except (OSError, http.client.HTTPException) as error:
            return f"{type(error).__name__}: {error}"
        finally:
            connection.close()
        if 200 <= response.status < 300:
            return None
        return f"it answered with status {response.status}" + _reason(answer)


def _reason(answer: bytes) -> str:
    """Return the reason in a JSON document with the key `error`, as servers of models answer, or else nothing."""
    with suppress(ValueError, KeyError, TypeError, RecursionError):
        return f": {json.loads(answer)['error']}"
    return ""
