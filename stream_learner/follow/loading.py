"""Asks a model server to load a release that was written to its model repository.

The request is the one of Triton's repository API in explicit mode, which MLServer has too:
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_repository.md
"""

import threading
from collections.abc import Callable

import structlog

from stream_learner.errors import DependencyError
from stream_learner.follow.posting import Server

log = structlog.get_logger()

TIMEOUT_S = 300.0
"""A server answers when the model is loaded."""
RETRY_S = 2.0


class Loads:
    """Makes a server load a model again, which is in use until the new version is loaded."""

    def __init__(self, url: str, model: str, stop: threading.Event):
        """Check the URL. Raises UsageError."""
        self._server = Server(url, "the URL to load from", TIMEOUT_S)
        self._below = f"/v2/repository/models/{model}/load"
        self._stop = stop

    def once(self) -> None:
        """Load the model. Raises DependencyError."""
        why = self._server.post(b"{}", self._below)
        if why:
            raise DependencyError(f"{self._server.host} did not load the release: {why}")

    def until_loaded(self, superseded: Callable[[], bool]) -> bool:
        """Load the model. Try again after a failure, until a newer release has `superseded` this one.

        Return whether the model was loaded.
        """
        said = None
        while why := self._server.post(b"{}", self._below):
            if why != said:
                log.warning("a release is not loaded; trying again", host=self._server.host, why=why)
                said = why
            if self._stop.wait(RETRY_S) or superseded():
                return False
        log.info("release loaded", host=self._server.host)
        return True
