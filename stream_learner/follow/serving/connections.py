"""HTTP connections with limits for clients that send or read slowly."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADER_BYTES = 64 * 1024
LAST_S = 2.0
"""Seconds without a request after which a connection is closed while the server stops."""
HEALTH = b"/v2/health/"
"""Pages that are answered on any number of connections, so that nobody restarts a server that only has too many."""


class _Joined:
    """A transport that writes the parts of a response at once, which halves the system calls."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop):
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._parts and not self._transport.is_closing():
            self._transport.write(b"".join(self._parts))
        self._parts.clear()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Connection(HttpToolsProtocol):
    """A connection of uvicorn that is closed when headers are too long, or when a client sends or reads too slowly.

    uvicorn itself waits without a limit until headers are complete, and until the client has read a response. It also
    keeps the trailers after a body.
    """

    def __init__(self, *arguments: Any, timeout_s: float, **named: Any):
        """`timeout_s` is the limit in seconds for the headers to arrive, and for the client to read what waits.

        The rest is uvicorn's.
        """
        super().__init__(*arguments, **named)
        self._timeout_s = timeout_s
        self._limit = self.limit_concurrency
        self._is_further = False
        self._is_stopping = False
        self._in_headers = True
        self._header_bytes = 0
        self._is_body = False  # whether the data that arrived holds the end of headers or a part of a body
        self._deadline: asyncio.TimerHandle | None = None  # of the headers
        self._unread: asyncio.TimerHandle | None = None  # of the responses that the client has not read

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(_Joined(transport, self.loop))  # pyright: ignore[reportArgumentType]
        self._is_further = self._limit is not None and len(self.connections) > self._limit
        self._deadline = self.loop.call_later(self._timeout_s, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # uvicorn leaves the timer of a connection that was reset
        self._arrived()
        self._was_read()

    def data_received(self, data: bytes) -> None:
        self._is_body = False
        super().data_received(data)
        self._header_bytes = 0 if self._is_body else self._header_bytes + len(data)
        if self._header_bytes > MAX_HEADER_BYTES:
            self.transport.abort()
        elif self._deadline is None and (self._in_headers or self.cycle.response_complete):
            self._deadline = self.loop.call_later(self._timeout_s, self.transport.abort)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_headers = True

    def on_headers_complete(self) -> None:
        # uvicorn itself would refuse requests on all connections at the limit, not only on further ones.
        self.limit_concurrency = self._limit if self._is_further and not self.url.startswith(HEALTH) else None
        super().on_headers_complete()
        if self._is_stopping:
            self.cycle.keep_alive = False
        self._is_body = True
        self._arrived()

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._is_body = True

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._expect_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._was_read()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._expect_reading()

    def shutdown(self) -> None:
        """Close the connection with the answer to its last request, or when no request has arrived for `LAST_S`.

        uvicorn itself closes a connection that waits for a request at once. A request on its way would be reset.
        """
        self._is_stopping = True
        self.timeout_keep_alive = LAST_S
        if self.cycle and not self.cycle.response_complete:
            if not self.cycle.response_started:
                self.cycle.keep_alive = False
        elif self._deadline is None or not self._header_bytes:  # otherwise, headers are arriving
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(LAST_S, self.timeout_keep_alive_handler)

    def _expect_reading(self) -> None:
        if self._unread is None:
            self._unread = self.loop.call_later(self._timeout_s, self.transport.abort)

    def _was_read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _arrived(self) -> None:
        self._in_headers = False
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
