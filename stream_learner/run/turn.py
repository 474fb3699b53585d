"""The start of a worker's turn: rank 0 is elected and recovers the run, and the other ranks follow it."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from enum import StrEnum, auto

import msgspec
import structlog

from stream_learner.checkpoints.store import Store
from stream_learner.config import Settings
from stream_learner.contract.manifest import decode_manifest, digest, encode
from stream_learner.contract.spans import Positions
from stream_learner.errors import RankLostError, StoreError, StreamLearnerError
from stream_learner.learning.parallel import Parallel
from stream_learner.publishing.ownership import await_turn, fencing, first_look
from stream_learner.publishing.recover import Checkpoint, Fetch, Recovered, Recovery
from stream_learner.run.gang import PATIENCE_S, Gang
from stream_learner.run.together import any_rank, first_failure, from_ranks
from stream_learner.streams.clients import Clients

log = structlog.get_logger()

# Rank 0 polls the election at least this often while other ranks fetch a checkpoint.
POLL_S = 0.5
# A rank of a standby waits this long before it fetches a checkpoint again that the store did not return.
AGAIN_S = 5.0


@dataclass(frozen=True)
class Lead:
    """The objects that only rank 0 has: it alone is elected, recovers the run and publishes."""

    clients: Clients
    recovery: Recovery


class What(StrEnum):
    LOOKED = auto()
    """Rank 0 has looked at the run. The other ranks fetch the checkpoint that it saw."""
    LOOKED_AGAIN = auto()
    """Rank 0 has looked again, because a rank could not fetch the checkpoint. If a rank fails again, all ranks end."""
    STANDING_BY = auto()
    RECOVERING = auto()
    RECOVERED = auto()
    STOPPED = auto()


class Said(msgspec.Struct):
    """A message from rank 0 to the other ranks.

    `manifest` is the newest manifest as bytes, None if there is none, or if an earlier message of a standby had it.
    """

    what: What
    manifest: bytes | None = None
    positions: Positions = {}
    epoch: int = 0


class Ahead:
    """Fetches checkpoints on a thread, so that a take-over finds the newest one, or most of its parts, fetched."""

    def __init__(self, fetch: Fetch):
        self._fetch = fetch
        self._thread = ThreadPoolExecutor(1, "fetch")
        self._newest: Future[Checkpoint] | None = None
        self._manifest = b""
        self._begun_at = 0.0
        self._seen: Checkpoint | None = None

    def begin(self, manifest: bytes) -> None:
        """Begin to fetch the checkpoint of a manifest, unless it was the last one that was fetched."""
        if self._newest:
            self._newest.cancel()  # it may still wait for the thread
        self._manifest, self._begun_at = manifest, time.monotonic()
        self._newest = self._thread.submit(self._fetched, manifest)

    def begin_again(self) -> None:
        """Begin the same manifest again if the store failed, and the last attempt began AGAIN_S ago or earlier."""
        if isinstance(self.failure(), StoreError) and time.monotonic() >= self._begun_at + AGAIN_S:
            self.begin(self._manifest)

    def failure(self) -> StreamLearnerError | None:
        """Return the error of the checkpoint that was begun last. None if there is none, or it is still fetched.

        Raises errors that are not StreamLearnerErrors: they are bugs, or the memory ran out.
        """
        error = self._newest.exception() if self._newest and self._newest.done() else None
        if error is None or isinstance(error, StreamLearnerError):
            return error
        raise error

    def wait(self, seconds: float) -> bool:
        """Wait for the checkpoint that was begun last. Return whether it is still being fetched."""
        return self._newest is not None and bool(wait([self._newest], seconds).not_done)

    def result(self) -> Checkpoint | None:
        """Return the checkpoint that was begun last, None if none was. Raises StateError, StoreError."""
        return self._newest and self._newest.result()

    def _fetched(self, manifest: bytes) -> Checkpoint:
        seen, found = self._seen, digest(manifest)
        if seen and seen.manifest_digest == found:
            return seen
        try:
            self._seen = self._fetch(decode_manifest(manifest), found, seen.parts if seen else {})
        except StreamLearnerError as error:
            log.warning("a checkpoint could not be fetched", error=str(error))
            raise
        return self._seen


def lead_in(
    settings: Settings,
    store: Store,
    lead: Lead,
    gang: Gang,
    stop: threading.Event,
    stand_by: Callable[[], None],
    recover: Callable[[], None],
) -> Recovered | None:
    """Wait until this worker is elected, then recover the run. Return None if `stop` is set earlier, on any rank.

    Call `stand_by` while another worker is active, and `recover` once this worker is elected. The other ranks of the
    run are in `follow` meanwhile. All ranks fetch the newest checkpoint before the take-over. Raises the errors of
    `await_turn` and of `Recovery.take_over`, StateError, StoreError if another rank cannot fetch the checkpoint, and
    RankLostError if another rank fetches it for longer than PATIENCE_S.
    """
    parallel, election, recovery = gang.parallel, lead.clients.election, lead.recovery
    told = None

    def news() -> bytes | None:
        nonlocal told
        before, told = told, recovery.seen
        return encode(told) if told and told is not before else None

    def stand_by_together() -> None:
        stand_by()
        _say(parallel, Said(What.STANDING_BY, news()))
        if any_rank(parallel, stop.is_set())[0]:
            stop.set()

    def poll() -> None:
        if settings.run.on_conflict != "take_over":  # which would disturb the active worker
            election.poll()

    _say(parallel, Said(What.LOOKED, news()))
    _wait_for_others(parallel, poll)
    if _failed(gang, What.LOOKED):
        # The active worker may have deleted the objects of this checkpoint, after it published a newer one.
        first_look(settings, recovery.look)
        told = None
        _say(parallel, Said(What.LOOKED_AGAIN, news()))
        _wait_for_others(parallel, poll)
        _failed(gang, What.LOOKED_AGAIN)
    if not await_turn(settings, store, election, stop, stand_by_together, recovery.look):
        _say(parallel, Said(What.STOPPED))
        return None
    recover()
    _say(parallel, Said(What.RECOVERING))
    recovered = recovery.take_over(fencing(election, lead.clients.transaction.fence))
    manifest = recovered.checkpoint and encode(recovered.checkpoint.manifest)
    _say(parallel, Said(What.RECOVERED, manifest, recovered.positions, recovered.epoch))
    _wait_for_others(parallel, election.poll)
    return recovered


def follow(
    settings: Settings,
    store: Store,
    gang: Gang,
    stop: threading.Event,
    stand_by: Callable[[], None],
    recover: Callable[[], None],
) -> Recovered | None:
    """Wait until rank 0 has recovered the run, and fetch the states of this rank's shards. Return None if it stops.

    While another worker is active, rank 0 also stops if `stop` is set here. Raises StateError, StoreError.
    """
    parallel = gang.parallel
    ahead = Ahead(Fetch(settings, store, parallel.local))
    while (said := _say(parallel, None)).what != What.STOPPED:
        if said.manifest:
            ahead.begin(said.manifest)
        if said.what == What.STANDING_BY:
            ahead.begin_again()
            stand_by()
            any_rank(parallel, stop.is_set())
        elif said.what == What.RECOVERING:
            recover()
        else:
            while any_rank(parallel, ahead.wait(POLL_S))[0]:
                pass
        if said.what in (What.LOOKED, What.LOOKED_AGAIN):
            _failed(gang, said.what, ahead.failure())
        elif said.what == What.RECOVERED:
            return Recovered(said.positions, {}, said.epoch, ahead.result() if said.manifest else None)
    return None


def _wait_for_others(parallel: Parallel, poll: Callable[[], None]) -> None:
    """Wait on rank 0 until no other rank fetches a checkpoint. Call `poll` meanwhile.

    The group of the election would give up a member that does not poll for five minutes. Raises RankLostError.
    """
    deadline = time.monotonic() + PATIENCE_S
    while any_rank(parallel, False)[0]:
        if time.monotonic() > deadline:
            raise RankLostError(
                f"another rank of the run did not fetch the newest checkpoint within {PATIENCE_S:g} s. Check that the "
                "store answers on its host, then start all ranks again"
            )
        poll()


def _failed(gang: Gang, what: What, failure: StreamLearnerError | None = None) -> bool:
    """Return whether a rank could not fetch the checkpoint. `failure` is the error of this rank.

    After LOOKED_AGAIN, raise StateError or StoreError on all ranks instead.
    """
    failed = first_failure(gang.parallel, failure)
    if failed and what == What.LOOKED_AGAIN:
        gang.leave()
        raise failed
    return failed is not None


def _say(parallel: Parallel, said: Said | None) -> Said:
    """Send a message from rank 0 to the other ranks, which pass None. Return the message."""
    return msgspec.msgpack.decode(from_ranks(parallel, said and msgspec.msgpack.encode(said))[0], type=Said)
