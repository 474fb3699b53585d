"""Runs the application in a server until it is asked to stop."""

import asyncio
import os
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from functools import partial

import structlog
import uvicorn

from stream_learner.config import FollowSettings, ServeSettings
from stream_learner.errors import UsageError
from stream_learner.follow.delivery import follower_arguments
from stream_learner.follow.follower import Follower
from stream_learner.follow.serving.app import Application
from stream_learner.follow.serving.connections import Connection
from stream_learner.follow.serving.publishing import Publisher

log = structlog.get_logger()

KEEP_ALIVE_S = 75
BACKLOG = 1024
SWITCH_S = 0.0005
"""Seconds after which the event loop may take Python's global lock from the thread that reads a new release."""


def serve(settings: FollowSettings, stop: threading.Event, on_start: Callable[[], None]) -> None:
    """Serve the releases of a run over HTTP, and gRPC if it has a port, until `stop` is set. Answer what has begun.

    `on_start` is called once the address is in use and Kafka has answered.

    Raises UsageError when the address cannot be used, TopicsError, KafkaUnavailableError.
    """
    sys.setswitchinterval(SWITCH_S)
    share = settings.serve.publish_share
    with (
        _listener(settings.serve) as listener,
        Follower(**follower_arguments(settings), acknowledge_as=settings.follow.name) as follower,
        Publisher(settings) if share else nullcontext() as publisher,
    ):
        threading.Thread(target=_log_releases, args=(follower,), name="log of releases", daemon=True).start()
        on_start()
        application = Application(settings.run.id, follower, settings.serve, publisher)
        server = _Server(_config(application, settings.serve), application)
        # On the main thread, uvicorn and uvloop would handle the signals.
        with ThreadPoolExecutor(1, "http") as thread:
            running = thread.submit(server.run, [listener])
            running.add_done_callback(lambda _: stop.set())
            stop.wait()
            server.should_exit = True
            running.result()
    log.info("stopped")


def _log_releases(follower: Follower) -> None:
    """Log each release that is put in use, until the follower is closed."""
    for release in follower:
        epoch, sequence = release.order
        log.info("release in use", epoch=epoch, sequence=sequence)


class _Server(uvicorn.Server):
    """A server that has a gRPC server beside it if the settings have a port for one."""

    def __init__(self, config: uvicorn.Config, application: Application):
        super().__init__(config)
        self._application = application
        self._grpc = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        settings, ports = self._application.settings, {}
        if settings.grpc_port is not None:
            os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its log lines do not have the format of this program's
            from stream_learner.follow.serving.grpc import GrpcServer

            self._grpc = GrpcServer(self._application, settings.grpc_port)
            await self._grpc.start()
            ports = {"grpc_port": self._grpc.port}
        await super().startup(sockets)
        for listener in sockets or ():
            host, port = listener.getsockname()[:2]
            log.info("serving", host=host, port=port, **ports, model=self._application.model)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Closing a listener resets the connections that wait for `accept`, so accept them first.
        waiting = [connection for listener in sockets or () for connection in _accepted(listener)]
        for server in self.servers:
            server.close()
        for connection in waiting:
            await asyncio.get_running_loop().connect_accepted_socket(self._connection, connection)
        stops = [super().shutdown(sockets)]
        if self._grpc:
            stops.append(self._grpc.stop())
        await asyncio.gather(*stops)

    def _connection(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(self.config, self.server_state, {})  # pyright: ignore


def _config(application: Application, settings: ServeSettings) -> uvicorn.Config:
    return uvicorn.Config(
        application,  # pyright: ignore[reportArgumentType]
        loop="uvloop",
        http=partial(Connection, timeout_s=settings.timeout_s),  # pyright: ignore[reportArgumentType]
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="error",  # clients could flood the log with warnings
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=settings.max_connections,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(settings.timeout_s) + 1,
        backlog=BACKLOG,
    )


def _accepted(listener: socket.socket) -> list[socket.socket]:
    """Accept the connections that wait."""
    accepted = []
    with suppress(OSError):  # none waits any more
        for _ in range(BACKLOG):
            accepted.append(listener.accept()[0])
    return accepted


def _listener(settings: ServeSettings) -> socket.socket:
    host, port = settings.host, settings.port
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        why = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        raise UsageError(f"cannot listen on {host}:{port} ({why}); change serve.host or serve.port") from None
