"""Runs the application in a server until it is asked to stop."""

import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import structlog
import uvicorn

from stream_learner.config import FollowSettings, ServeSettings
from stream_learner.errors import UsageError
from stream_learner.follow.delivery import follower_arguments
from stream_learner.follow.follower import Follower
from stream_learner.follow.serving.app import Application
from stream_learner.follow.serving.connections import Connection

log = structlog.get_logger()

KEEP_ALIVE_S = 75
BACKLOG = 1024


def serve(settings: FollowSettings, stop: threading.Event, program_version: str, on_start: Callable[[], None]) -> None:
    """Serve the releases of a run over HTTP until `stop` is set. Requests that have begun are answered.

    `on_start` is called once the address is in use and Kafka has answered.

    Raises UsageError when the address cannot be used, TopicsError, KafkaUnavailableError.
    """
    with _listener(settings.serve) as listener, Follower(**follower_arguments(settings)) as follower:
        on_start()
        application = Application(settings.run.id, follower, settings.serve, program_version)
        server = uvicorn.Server(_config(application, settings.serve))
        # On the main thread, uvicorn and uvloop would handle the signals.
        with ThreadPoolExecutor(1, "http") as thread:
            running = thread.submit(server.run, [listener])
            running.add_done_callback(lambda _: stop.set())
            host, port = listener.getsockname()[:2]
            log.info("serving", host=host, port=port, model=settings.run.id)
            stop.wait()
            server.should_exit = True
            running.result()
    log.info("stopped")


def _config(application: Application, settings: ServeSettings) -> uvicorn.Config:
    return uvicorn.Config(
        application,  # pyright: ignore[reportArgumentType]
        loop="uvloop",
        http=partial(Connection, headers_s=settings.timeout_s),  # pyright: ignore[reportArgumentType]
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


def _listener(settings: ServeSettings) -> socket.socket:
    host, port = settings.host, settings.port
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        why = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        raise UsageError(f"cannot listen on {host}:{port} ({why}); change serve.host or serve.port") from None
