"""Heartbeats between the ranks of a gang: a rank that is killed or stopped ends the others within seconds.

Gloo reports a peer that was killed only to ranks that wait for it in a collective, and a peer that was stopped only
after the time-out of the group. Rank 0 has a TCP connection to every other rank. Both sides send one byte a second.
"""

import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address

from stream_learner.errors import RankLostError, UsageError

BEAT_S = 1.0
# While other code holds Python's global lock, a rank sends no heartbeat. This takes up to a few seconds, for example
# while a large state is encoded.
SILENT_BEATS = 7
CONNECT_S = 60.0
HELLO_S = 5.0
TOKEN_BYTES = 16
RANK_BYTES = 4
RECEIVE_BYTES = 4096
BEAT, LEAVING = b".", b"L"


class Heartbeats:
    """A thread that sends heartbeats, and calls `end` with a reason when another rank ends or is silent too long."""

    def __init__(
        self,
        rank: int,
        peers: dict[int, socket.socket],
        end: Callable[[str], None],
        beat_s: float = BEAT_S,
        watch: Callable[[], None] = lambda: None,
    ):
        """Start the thread. `peers` are the connections by rank: of rank 0 to all other ranks, of others to rank 0.

        The thread calls `watch` before each beat until this rank leaves. `watch` may end the process.
        """
        self._beat_s = beat_s
        self._rank = rank
        self._peers = peers
        self._end = end
        self._watch = watch
        self._lock = threading.Lock()
        self._leaving: set[int] = set()
        self._left = threading.Event()
        threading.Thread(target=self._run, name="heartbeats", daemon=True).start()

    def leave(self) -> None:
        """Wait until all ranks call this method. From then on, no end of a rank is noticed."""
        if self._rank:
            self._send(0, LEAVING)
        self._note_leaving(self._rank)
        self._left.wait()

    def _note_leaving(self, rank: int) -> None:
        # Rank 0 leaves when all others do. Its byte tells them that all ranks leave.
        with self._lock:
            self._leaving.add(rank)
            if self._rank == 0 and len(self._leaving) == len(self._peers) + 1:
                self._left.set()  # first: a rank that gets the byte may end before the next one gets it
                for peer in self._peers:
                    self._send(peer, LEAVING)
            elif self._rank and rank == 0:
                self._left.set()

    def _run(self) -> None:
        if reason := self._first_loss():
            self._end(reason)

    def _first_loss(self) -> str | None:
        """Send and receive heartbeats until a rank is lost, and return what happened. Return None once all leave."""
        selector = selectors.DefaultSelector()
        for rank, peer in self._peers.items():
            peer.setblocking(False)
            selector.register(peer, selectors.EVENT_READ, rank)
        silent = dict.fromkeys(self._peers, 0)
        next_beat = time.monotonic()
        while not self._left.is_set():
            for key, _ in selector.select(max(0.0, next_beat - time.monotonic())):
                silent[key.data] = 0
                if not self._receive(key.data) and not self._left.is_set():
                    if self._rank in self._leaving and self._rank:
                        self._left.set()  # rank 0 leaves last, and its last byte may be lost with the connection
                        return None
                    return f"rank {key.data} of the run ended"
            if time.monotonic() < next_beat:
                continue
            # Silence is counted in beats of this thread, after it has read what arrived. So a rank that was stopped
            # itself, or waited for the global lock, does not take its own silence for that of the others.
            next_beat = time.monotonic() + self._beat_s
            if self._rank not in self._leaving:
                self._watch()
            for rank in self._peers:
                silent[rank] += 1
                if silent[rank] > SILENT_BEATS:
                    return f"rank {rank} of the run has been silent for {SILENT_BEATS * self._beat_s:g} s"
                self._send(rank, BEAT)
        return None

    def _receive(self, rank: int) -> bool:
        """Read what a rank has sent. Return False if its connection has ended."""
        try:
            data = self._peers[rank].recv(RECEIVE_BYTES)
        except OSError:
            return False
        if LEAVING in data:
            self._note_leaving(rank)
        return bool(data)

    def _send(self, rank: int, data: bytes) -> None:
        # A full buffer or a broken connection shows as silence, or as the end of what arrives.
        with suppress(OSError):
            self._peers[rank].send(data)


def connections(rank: int, ranks: int, host: str, shared: Callable[[str], str]) -> dict[int, socket.socket]:
    """Connect rank 0 with every other rank, and return the connections of this rank by the rank at their other end.

    Rank 0 listens at `host` on a free port. It listens at all its addresses if `host` is a name of its host that leads
    other hosts elsewhere: on Debian, a host's own name leads to 127.0.1.1. `shared` is a collective: it returns the
    value that rank 0 passes to it.
    Raises UsageError if `host` is not an address of this host, RankLostError if a rank does not connect.
    """
    if rank:
        port, token = shared("").split()
        try:
            peer = socket.create_connection((host, int(port)), CONNECT_S)
            peer.sendall(bytes.fromhex(token) + rank.to_bytes(RANK_BYTES))
        except OSError as error:
            raise RankLostError(f"rank 0 of the run does not answer at {host}, port {port}: {error}") from None
        return {0: peer}
    try:
        family, *_, (address, *_) = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        own_name = ip_address(address).is_loopback and host not in (address, "localhost")
        both = own_name and socket.has_dualstack_ipv6()
        listener = socket.create_server(
            ("" if own_name else host, 0),
            family=socket.AF_INET6 if both else family,
            backlog=ranks,
            dualstack_ipv6=both,
        )
    except OSError as error:
        raise UsageError(
            f"rank 0 cannot listen at MASTER_ADDR = {host} ({error.strerror}); set it to an address of its host"
        ) from None
    with listener:
        token = secrets.token_bytes(TOKEN_BYTES)
        shared(f"{listener.getsockname()[1]} {token.hex()}")
        return _accepted(listener, token, set(range(1, ranks)))


def _accepted(listener: socket.socket, token: bytes, missing: set[int]) -> dict[int, socket.socket]:
    """Accept one connection from each of the missing ranks. Close connections of others, who do not know the token."""
    peers: dict[int, socket.socket] = {}
    listener.settimeout(CONNECT_S)
    while missing - peers.keys():
        try:
            peer, _ = listener.accept()
        except TimeoutError:
            names = ", ".join(map(str, sorted(missing - peers.keys())))
            raise RankLostError(f"these ranks of the run did not connect within {CONNECT_S:g} s: {names}") from None
        peer.settimeout(HELLO_S)
        hello = _received(peer, TOKEN_BYTES + RANK_BYTES)
        rank = int.from_bytes(hello[TOKEN_BYTES:])
        if secrets.compare_digest(hello[:TOKEN_BYTES], token) and rank in missing:
            peers[rank] = peer
        else:
            peer.close()
    return peers


def _received(peer: socket.socket, size: int) -> bytes:
    """Return this number of bytes, or fewer if the connection ends or is silent."""
    data = b""
    with suppress(OSError):
        while len(data) < size and (part := peer.recv(size - len(data))):
            data += part
    return data
