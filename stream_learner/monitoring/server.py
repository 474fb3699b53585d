"""`/metrics`, `/startupz`, `/livez` and `/readyz` on one port."""

import socket
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import structlog
from prometheus_client import CollectorRegistry, make_wsgi_app

from stream_learner.errors import UsageError
from stream_learner.monitoring.health import Health

log = structlog.get_logger()

Application = Callable[[dict[str, Any], Callable], Iterable[bytes]]


class Server:
    """Answers on daemon threads until closed; `port` is the one it got."""

    def __init__(self, http: WSGIServer):
        self.port = http.server_port
        self._http = http
        self._thread = Thread(target=http.serve_forever, args=(0.1,), name="monitoring", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


def serve(host: str, port: int, registry: CollectorRegistry, health: Health) -> Server:
    """Starts the pages; port 0 picks a free one. Raises UsageError when the address cannot be had."""
    try:
        http = _HTTPServer(host, port)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}:{port} ({error.strerror}); change monitoring.host or monitoring.port"
        ) from None
    http.set_app(_application(registry, health))
    log.info("monitoring", host=host, port=http.server_port)
    return Server(http)


def _application(registry: CollectorRegistry, health: Health) -> Application:
    metrics = make_wsgi_app(registry)
    pages = {"/startupz": health.why_not_started, "/livez": health.why_not_live, "/readyz": health.why_not_ready}

    def application(environ: dict[str, Any], start_response: Callable) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            return metrics(environ, start_response)
        if path in pages:
            problem = pages[path]()
            status, text = ("503 Service Unavailable", problem) if problem else ("200 OK", "ok")
        else:
            status, text = "404 Not Found", f"here are /metrics, {', '.join(pages)}"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store")])
        return [f"{text}\n".encode()]

    return application


class _Handler(WSGIRequestHandler):
    timeout = 10  # seconds of silence; a client that never finishes its request must not hold a thread for ever

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's signature)
        """Probes and scrapes come every few seconds: nothing is written about them."""


class _HTTPServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    allow_reuse_port = False  # newer Pythons default to sharing the port: a second worker would go unnoticed

    def __init__(self, host: str, port: int):
        # The standard server is for IPv4 alone.
        self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        super().__init__((host, port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 (the base class's signature)
        # Clients hang up and time out; the default prints a traceback.
        log.debug("request failed", client=client_address[0], exc_info=True)
