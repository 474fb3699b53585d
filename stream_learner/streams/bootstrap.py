"""Connects a kafka-python client to the brokers. A refusal ends the attempts at once.

kafka-python itself retries after any error until its time-out, and only logs the error of each attempt.
"""

import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar
from weakref import WeakSet

from kafka import errors as kafka_errors
from kafka.net.compat import KafkaNetClient
from kafka.net.inet import KafkaNetSocket, create_connection
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport

log = logging.getLogger("kafka.bootstrap")

REFUSALS = (
    kafka_errors.SaslAuthenticationFailedError,
    kafka_errors.UnsupportedSaslMechanismError,
    kafka_errors.AuthorizationError,
)
# Errors after which further attempts would fail in the same way.
FINAL = (*REFUSALS, kafka_errors.IllegalSaslStateError, kafka_errors.InvalidReceiveError, ssl.SSLError)
# A peer that closes this number of connections without an answer is assumed to speak another protocol. The attempts
# take less than two seconds.
HANG_UPS = 3
# The loggers with which kafka-python reports failed attempts.
LOGGERS = [
    logging.getLogger(f"kafka.{name}")
    for name in (
        "cluster",
        *(f"net.{module}" for module in ("connection", "inet", "manager", "transport", "sasl.plain", "sasl.scram")),
    )
]


class UnresolvedHostError(kafka_errors.KafkaConnectionError):
    """Error for brokers that answer, but advertise only names that DNS does not know."""


def _says_more(record: logging.LogRecord) -> bool:
    """Return False for a log record about an advertised host that DNS does not know."""
    return UnresolvedHostError.__name__ not in record.getMessage()


# kafka-python logs a failed name lookup in four places. The first line, by `kafka.net.inet`, is enough.
for module in ("connection", "manager"):
    logging.getLogger(f"kafka.net.{module}").addFilter(_says_more)

Opened = TypeVar("Opened")


def connect(kind: Callable[..., Opened], config: dict[str, Any]) -> Opened:
    """Open a kafka-python client.

    Raises OSError, or the KafkaError that says why there is no connection. A refusal is raised at once. Other failures
    are retried for `bootstrap_timeout_ms`, and the first failure is logged.
    """
    bootstrap = _Bootstrap(config["bootstrap_servers"], config["bootstrap_timeout_ms"] / 1000)
    for logger in LOGGERS:
        logger.addFilter(bootstrap)
    try:
        return kind(**config, kafka_client=partial(_Client, bootstrap))
    except BaseException as error:
        bootstrap.close()
        if isinstance(error, kafka_errors.KafkaTimeoutError) and bootstrap.failures:
            raise bootstrap.failures[0] from None  # the first attempt had the most time
        raise
    finally:
        for logger in LOGGERS:
            logger.removeFilter(bootstrap)


class _Bootstrap(logging.Filter):
    """Failed connection attempts of one client. Replaces kafka-python's log lines with one warning or an error."""

    def __init__(self, servers: list[str], timeout_s: float):
        super().__init__()
        self._servers = servers
        self._timeout_s = timeout_s
        self._thread: int | None = None
        self.client: KafkaNetClient | None = None
        self.failures: list[BaseException] = []

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread != self._thread

    def begin(self) -> None:
        """Suppress the log records of the calling thread from now on, because they are about these attempts."""
        self._thread = threading.get_ident()

    def failed(self, error: BaseException) -> None:
        """Store the error of a failed attempt. Log the first error, unless it ends the attempts."""
        self.failures.append(error)
        if len(self.failures) == 1 and not _is_final(error):
            servers = ", ".join(self._servers)
            log.warning("%s cannot be reached yet: %s; retrying for up to %g s", servers, str(error), self._timeout_s)

    def end_when_refused(self) -> None:
        """Raise the error of the last attempt if further attempts would fail in the same way."""
        last = self.failures[-HANG_UPS:]
        if last and _is_final(last[-1]):
            if isinstance(last[-1], kafka_errors.InvalidReceiveError):
                raise kafka_errors.KafkaConnectionError("the listener speaks another protocol, possibly TLS")
            raise last[-1]
        if len(last) == HANG_UPS and all(map(_is_hang_up, last)):
            raise kafka_errors.KafkaConnectionError(
                "the broker closes each connection without an answer, possibly because its listener speaks another "
                f"protocol: {last[-1]}"
            )

    def close(self) -> None:
        """Close the IO thread and the sockets of a client that could not be opened."""
        if self.client:
            with suppress(kafka_errors.KafkaError, OSError):
                self.client.close()


class _Client(KafkaNetClient):
    """The network client inside kafka-python's consumer, producer and admin client (`kafka_client`)."""

    def __init__(self, bootstrap: _Bootstrap, **config: Any):
        net = NetworkSelector(**config)
        manager = _Manager(net, bootstrap, **config)
        self._transports = manager.transports
        super().__init__(net, manager, **config)
        bootstrap.client = self

    def await_ready(self, node_id: Any, timeout_ms: int = 30_000) -> Any:
        """Wait for the connection to a node, and return whether the connection is ready.

        kafka-python's own method raises an error if the connection is not ready. The producer then drops the
        transactional request that it was about to send, and the producer's caller waits forever. If this method returns
        False, the producer tries again.
        """
        try:
            return super().await_ready(node_id, timeout_ms)
        except kafka_errors.KafkaConnectionError:
            return False

    def close(self, node_id: Any = None) -> None:
        """Close one connection, or the client with all its sockets.

        kafka-python itself leaves the socket of a connection open if the last request still waits to be sent. It logs
        an error for each connection that is just being opened.
        """
        if node_id is not None:
            super().close(node_id)
            return
        io_thread = self._net._io_thread
        with _muted({threading.get_ident(), io_thread.ident if io_thread else None}):
            super().close()
            for transport in list(self._transports):
                if sock := transport._sock:
                    sock.close()


@contextmanager
def _muted(threads: set[int | None]) -> Iterator[None]:
    """Suppress the log records of these threads about connections and what waits for them."""
    loggers = [*LOGGERS, logging.getLogger("kafka.net.selector")]

    def is_other(record: logging.LogRecord) -> bool:
        return record.thread not in threads

    for logger in loggers:
        logger.addFilter(is_other)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_other)


class _Dialer(KafkaNetSocket):
    """Closes a socket that cannot be connected. kafka-python leaves such a socket to the garbage collector."""

    SCHEMES = ("direct",)

    async def sock_connect(self, net: Any, sock: socket.socket, sockaddr: Any, timeout_at: float | None = None) -> Any:
        try:
            return await super().sock_connect(net, sock, sockaddr, timeout_at)
        except BaseException:
            sock.close()
            raise


class _TcpTransport(KafkaTCPTransport):
    """A transport that delivers data which arrived together with the end of a connection.

    kafka-python drops such data, and a refusal may be in it.
    """

    def _sock_recv(self) -> tuple[bytes, Exception | None]:
        data, error = super()._sock_recv()
        return (data, None) if data else (data, error)


class _TlsTransport(_TcpTransport, KafkaSSLTransport):
    """A transport whose handshake has a time-out. kafka-python waits forever for a peer that does not answer."""

    timeout_at: float | None = None

    async def handshake(self) -> None:
        sock: Any = self._sock
        while True:
            try:
                return sock.do_handshake()
            except ssl.SSLWantReadError:
                wait = self._net.wait_read
            except ssl.SSLWantWriteError:
                wait = self._net.wait_write
            try:
                await wait(sock, self.timeout_at)
            except kafka_errors.KafkaTimeoutError:
                raise TimeoutError("no answer") from None


class _Manager(KafkaConnectionManager):
    def __init__(self, net: NetworkSelector, bootstrap: _Bootstrap, **config: Any):
        super().__init__(net, **config)
        # kafka-python does not pass its own setting of this name to this object. If the setting were true, brokers that
        # create topics automatically would create each topic that a client asks about, with default settings.
        self.cluster.config["allow_auto_create_topics"] = False
        self._bootstrap = bootstrap
        self._unresolved: set[str] = set()
        self.transports: WeakSet[KafkaTCPTransport] = WeakSet()

    async def _do_bootstrap(self, deadline: float | None) -> Any:
        self._bootstrap.begin()
        return await super()._do_bootstrap(deadline)

    def get_connection(self, node_id: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.cluster.is_bootstrap(node_id):
            return super().get_connection(node_id, *args, **kwargs)
        self._bootstrap.end_when_refused()
        connection = super().get_connection(node_id, *args, **kwargs)
        connection.close_future.add_errback(self._bootstrap.failed)
        return connection

    async def _build_transport(self, node: Any, timeout_at: float | None = None) -> KafkaTCPTransport:
        options = self.config["socket_options"]
        try:
            connected = await create_connection(self._net, node.host, node.port, options, "direct:", timeout_at)
        except kafka_errors.KafkaConnectionError as error:
            if "DNS" in str(error):
                self._explain(node)
            raise
        self._unresolved.discard(node.host)
        try:
            if self.ssl_enabled:
                connected = _TlsTransport(self._net, connected, node.host, ssl_context=self.config["ssl_context"])
                connected.timeout_at = timeout_at
            else:
                connected = _TcpTransport(self._net, connected, node.host)
            self.transports.add(connected)
            await connected.handshake()
        except BaseException as error:  # also GeneratorExit, when the client is closed during the handshake
            connected.close()
            if isinstance(error, (OSError, ValueError)):
                raise kafka_errors.KafkaConnectionError(f"Handshake failed: {error}") from error
            raise
        return connected

    def _explain(self, node: Any) -> None:
        """Raise the error for a host that DNS does not know."""
        if self.cluster.is_bootstrap(node.node_id):
            raise kafka_errors.KafkaConnectionError(f"DNS does not know {node.host}")
        self._unresolved.add(node.host)
        known = {broker.host for broker in self.cluster.brokers()} - self._unresolved
        raise (kafka_errors.KafkaConnectionError if known else UnresolvedHostError)(
            f"broker {node.node_id} is advertised as {node.host}:{node.port}, a name that DNS does not know; correct "
            "advertised.listeners of the brokers, or DNS"
        )


def _causes(error: BaseException) -> tuple[object, ...]:
    return error, error.__context__, *error.args


def _is_final(error: BaseException) -> bool:
    return any(isinstance(cause, FINAL) and not isinstance(cause, ssl.SSLEOFError) for cause in _causes(error))


def _is_hang_up(error: BaseException) -> bool:
    return "socket disconnected" in str(error) or any(
        isinstance(cause, (ssl.SSLEOFError, ConnectionResetError, BrokenPipeError)) for cause in _causes(error)
    )
