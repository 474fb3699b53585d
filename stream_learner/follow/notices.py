"""Notices of releases to an HTTP server."""

import threading

import structlog

from stream_learner.contract.manifest import encode
from stream_learner.follow.posting import Server

log = structlog.get_logger()

TIMEOUT_S = 5.0
RETRY_S = 1.0


class Notices:
    """Posts JSON documents to a URL. A failure is logged and does not raise."""

    def __init__(self, url: str, stop: threading.Event):
        """Check the URL. Raises UsageError."""
        self._server = Server(url, "the URL to notify", TIMEOUT_S)
        self._stop = stop

    def post(self, document: dict[str, object]) -> None:
        """Post a document. Try a second time after a failure, then log a warning."""
        body = encode(document)
        why = self._server.post(body)
        if why and not self._stop.wait(RETRY_S):
            why = self._server.post(body)
        if why:
            log.warning("a server was not notified of a release", host=self._server.host, why=why)
