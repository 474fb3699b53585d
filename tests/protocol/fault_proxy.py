"""Proxy between Kafka's clients and a broker that simulates a network which is slow, loses answers, or breaks."""

import asyncio
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

HOST = "127.0.0.1"
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing the socket resets the connection


class FaultProxy:
    """Passes Kafka's requests from `port` to `target`, and the answers back; a context manager.

    The broker must advertise `port` on the listener at `target`, or clients go past the proxy. Attributes may be set at
    any time, from any thread.
    """

    def __init__(self, port: int, target: int):
        self.port = port
        self.latency_s = 0.0
        """Seconds that each answer takes longer."""
        self.loses: Callable[[int], object] = lambda _: False
        """Whether an answer is lost, asked with the API key of its request: the broker has done what the request said,
        and the client gets a reset instead."""
        self.target = target
        self._loop = asyncio.new_event_loop()
        self._whole = asyncio.Event()
        self._whole.set()
        self._connections: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy")

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    def cut(self) -> None:
        """Let nothing through from now on. Old and new connections stay open: neither end is notified."""
        self._loop.call_soon_threadsafe(self._whole.clear)

    def heal(self) -> None:
        """Undoes every fault. What was held back arrives now."""
        self.latency_s, self.loses = 0.0, lambda _: False
        self._loop.call_soon_threadsafe(self._whole.set)

    def __enter__(self) -> "FaultProxy":
        self._thread.start()
        listening = asyncio.start_server(self._connected, HOST, self.port)
        self._server = asyncio.run_coroutine_threadsafe(listening, self._loop).result()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        self._server.close()
        await asyncio.sleep(0)  # what was just accepted begins
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await asyncio.sleep(0)  # sockets close

    async def _connected(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        """Carries a connection until one side ends it or a fault does; then both sides see it reset."""
        connection = asyncio.current_task()
        assert connection
        self._connections.add(connection)
        ends = [client_out]
        try:
            broker_in, broker_out = await asyncio.open_connection(HOST, self.target)
            ends.append(broker_out)
            asked: deque[int] = deque()
            async with asyncio.TaskGroup() as both:
                both.create_task(self._requests(client_in, broker_out, asked))
                both.create_task(self._answers(broker_in, client_out, asked))
        except* (OSError, EOFError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(connection)
            for end in ends:
                with suppress(OSError):  # its own peer was first
                    end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                end.transport.abort()

    async def _requests(self, client: asyncio.StreamReader, broker: asyncio.StreamWriter, asked: deque[int]) -> None:
        while True:
            request = await _frame(client)
            await self._whole.wait()
            asked.append(int.from_bytes(request[4:6]))
            broker.write(request)
            await broker.drain()

    async def _answers(self, broker: asyncio.StreamReader, client: asyncio.StreamWriter, asked: deque[int]) -> None:
        while True:  # Kafka answers the requests of a connection in their order
            answer = await _frame(broker)
            await asyncio.sleep(self.latency_s)
            await self._whole.wait()
            if self.loses(asked.popleft()):
                raise ConnectionResetError
            client.write(answer)
            await client.drain()


async def _frame(stream: asyncio.StreamReader) -> bytes:
    """A request or an answer, with the four bytes before it that hold its length. Raises EOFError, OSError."""
    size = await stream.readexactly(4)
    return size + await stream.readexactly(int.from_bytes(size))
