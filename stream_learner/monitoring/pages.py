"""The pages of the monitoring port: `/metrics`, `/startupz`, `/livez` and `/readyz`."""

import gzip
import time
from collections.abc import Callable
from typing import NamedTuple

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from stream_learner.monitoring.health import Health

OPENMETRICS = "application/openmetrics-text"
TEXT = "text/plain; charset=utf-8"
RENDERING_SHARE = 0.05


class Answer(NamedTuple):
    """An HTTP response. `headers` holds its Content-Type and other headers, except Content-Length and Connection."""

    status: str
    headers: dict[str, str]
    body: bytes


class Pages:
    """The pages of one worker. Not thread-safe.

    Rendering `/metrics` takes at most a twentieth of one core, however often it is requested. The longer a page took to
    render, the longer it is served from the cache. `clock` and `cpu_clock` (of this thread) are in seconds.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        health: Health,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
    ):
        self._registry = registry
        self._health = {
            "/startupz": health.why_not_started,
            "/livez": health.why_not_live,
            "/readyz": health.why_not_ready,
        }
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._rendered: dict[tuple[bool, bool], tuple[Answer, float]] = {}  # answers, and until when they are served

    def answer(self, path: str, headers: dict[str, str]) -> Answer:
        """Answer a GET request. The names of `headers` are in lower case."""
        if path == "/metrics":
            return self._metrics(OPENMETRICS in headers.get("accept", ""), "gzip" in headers.get("accept-encoding", ""))
        if path not in self._health:
            return Answer(
                "404 Not Found", {"Content-Type": TEXT}, _line(f"known paths are /metrics, {', '.join(self._health)}")
            )
        problem = self._health[path]()
        status = "503 Service Unavailable" if problem else "200 OK"
        return Answer(status, {"Content-Type": TEXT, "Cache-Control": "no-store"}, _line(problem or "ok"))

    def _metrics(self, as_openmetrics: bool, compressed: bool) -> Answer:
        form = as_openmetrics, compressed
        if form in self._rendered and self._clock() < self._rendered[form][1]:
            return self._rendered[form][0]
        began = self._cpu_clock()
        # The formats are fixed, so that a client cannot choose how many pages are cached.
        render, content_type = (
            (openmetrics.generate_latest, openmetrics.CONTENT_TYPE_LATEST)
            if as_openmetrics
            else (generate_latest, CONTENT_TYPE_LATEST)
        )
        headers, body = {"Content-Type": content_type}, render(self._registry)
        if compressed:
            headers["Content-Encoding"], body = "gzip", gzip.compress(body)
        answer = Answer("200 OK", headers, body)
        self._rendered[form] = answer, self._clock() + (self._cpu_clock() - began) / RENDERING_SHARE
        return answer


def _line(text: str) -> bytes:
    return f"{text}\n".encode()
