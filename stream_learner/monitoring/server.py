"""The monitoring port: a small HTTP server that answers probes even with many or slow clients.

One thread serves all connections. At most 64 connections are open: a further connection closes the oldest. So a probe
is answered even while thousands of clients hold sockets open. Each connection serves one request and lasts
at most ten seconds. The servers of libraries (waitress, uvicorn, aiohttp) stop accepting connections at their limit, or
answer 503.
"""

import asyncio
import errno
import hashlib
import socket
import struct
from contextlib import closing
from threading import Thread

import structlog
from prometheus_client import CollectorRegistry

from stream_learner.errors import UsageError
from stream_learner.monitoring.health import Health
from stream_learner.monitoring.pages import TEXT, Answer, Pages

log = structlog.get_logger()

MAX_CONNECTIONS = 64
MAX_HEAD_BYTES = 8 * 1024
TIMEOUT_S = 10.0
BACKLOG = 1024
ACCEPT_RETRY_S = 0.5
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing discards unsent data


class Server:
    """A server that answers on a daemon thread until it is closed. `port` is its actual port."""

    def __init__(self, listener: socket.socket, claim: socket.socket, pages: Pages):
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._claim = claim
        self._pages = pages
        self._open: dict[asyncio.Task[None], None] = {}  # oldest first
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._thread = Thread(target=self._run, name="monitoring", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close the port and all connections, and wait for the thread."""
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()

    def _run(self) -> None:
        with self._claim, self._listener, closing(self._loop):
            self._loop.run_until_complete(self._serve_until_closed())

    async def _serve_until_closed(self) -> None:
        accepting = self._loop.create_task(self._accept())
        await self._closing.wait()
        tasks = [accepting, *self._open]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self) -> None:
        while True:
            await self._arrival()
            if len(self._open) >= MAX_CONNECTIONS:
                oldest = next(iter(self._open))
                oldest.cancel()
                await asyncio.wait([oldest])
            # No await until a task owns the connection: a cancelled `sock_accept` would lose it.
            try:
                client, _ = self._listener.accept()
            except BlockingIOError:  # the client has left already
                continue
            except OSError as error:  # the client has left, or the process is out of file descriptors
                log.debug("could not accept a connection", error=str(error))
                await asyncio.sleep(ACCEPT_RETRY_S)
                continue
            client.setblocking(False)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = self._loop.create_task(self._serve(client))
            self._open[task] = None
            task.add_done_callback(self._open.pop)
            # A task that is cancelled before its first step does not run, so it cannot close the client itself.
            task.add_done_callback(lambda _, client=client: client.close())
            await asyncio.sleep(0)  # a request that has arrived is answered before the next connection is accepted

    async def _arrival(self) -> None:
        """Return once a connection waits to be accepted."""
        arrived = asyncio.Event()
        self._loop.add_reader(self._listener, arrived.set)
        try:
            await arrived.wait()
        finally:
            self._loop.remove_reader(self._listener)

    async def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    head = await self._head(client)
                    if head is not None:
                        for part in _encoded(*self._answer(head)):
                            await self._loop.sock_sendall(client, part)
            except (TimeoutError, OSError, asyncio.CancelledError):
                # Too slow, gone or replaced by a newer client: the kernel must not keep unsent data.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    async def _head(self, client: socket.socket) -> bytes | None:
        """Read a request up to the empty line after its headers. Return None if the client leaves earlier."""
        head = b""
        while b"\r\n\r\n" not in head and len(head) <= MAX_HEAD_BYTES:
            data = await self._loop.sock_recv(client, MAX_HEAD_BYTES)
            if not data:
                return None
            head += data
        return head

    def _answer(self, head: bytes) -> tuple[Answer, bool]:
        """Return the answer, and whether to send its body."""
        request, *lines = head.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
        words = request.split(" ")
        if len(head) > MAX_HEAD_BYTES or len(words) != 3 or not words[2].startswith("HTTP/"):
            return Answer("400 Bad Request", {"Content-Type": TEXT}, b"not an HTTP request of at most 8 KiB\n"), True
        method, target, _ = words
        if method not in ("GET", "HEAD"):
            return Answer(
                "405 Method Not Allowed", {"Content-Type": TEXT, "Allow": "GET, HEAD"}, b"GET or HEAD\n"
            ), True
        named = (line.partition(":") for line in lines)
        headers = {name.strip().lower(): value.strip() for name, _, value in named}
        try:
            return self._pages.answer(target.partition("?")[0], headers), method == "GET"
        except Exception:  # one page must not end the server
            log.warning("a page of the monitoring port could not be rendered", path=target, exc_info=True)
            return Answer("500 Internal Server Error", {"Content-Type": TEXT}, b"see the log\n"), True


def _encoded(answer: Answer, with_body: bool) -> tuple[bytes, bytes]:
    # Two parts, so that connections of slow clients share one body.
    headers = answer.headers | {"Content-Length": str(len(answer.body)), "Connection": "close"}
    lines = [f"HTTP/1.1 {answer.status}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode(), answer.body if with_body else b""


def serve(host: str, port: int, registry: CollectorRegistry, health: Health, run_id: str) -> Server:
    """Start the server. With port 0, or if another worker of the run on this host has the port, use a free port.

    Raises UsageError when the address cannot be used.
    """
    claim = socket.socket(socket.AF_UNIX)
    has_claim = _claimed(claim, f"{run_id} {host}:{port}")
    try:
        listener = _listener(host, port if has_claim else 0)
    except OSError as error:
        claim.close()
        raise UsageError(
            f"cannot listen on {host}:{port} ({error.strerror}); change monitoring.host or monitoring.port"
        ) from None
    server = Server(listener, claim, Pages(registry, health))
    log.info("monitoring", host=host, port=server.port)
    if port and not has_claim:
        log.warning(
            "another worker of the run on this host uses monitoring.port; this worker uses a free port instead",
            taken=port,
            free=server.port,
        )
    return server


def _claimed(claim: socket.socket, name: str) -> bool:
    """Bind an abstract Unix socket. Return False when another process has bound the same name.

    Like a port, the name belongs to the network namespace, and the kernel frees it when the process ends. It shows at
    once whether a worker of the run has the port, even if that worker is frozen and would not answer over HTTP.
    """
    try:
        claim.bind(f"\0stream-learner/{hashlib.sha256(name.encode()).hexdigest()}")
    except OSError as error:
        return error.errno != errno.EADDRINUSE
    return True


def _listener(host: str, port: int) -> socket.socket:
    # Not SO_REUSEPORT: a second worker on the same port must fail.
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener
