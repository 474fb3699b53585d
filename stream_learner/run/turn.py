"""The start of a worker's turn: rank 0 is elected and recovers the run, and the other ranks follow it."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from stream_learner.checkpoints.store import Store
from stream_learner.config import Settings
from stream_learner.contract.manifest import decode_manifest, digest, encode
from stream_learner.contract.spans import Positions
from stream_learner.learning.parallel import Parallel
from stream_learner.publishing.ownership import await_turn, fencing
from stream_learner.publishing.recover import Fetch, Recovered, Recovery
from stream_learner.run.together import from_ranks
from stream_learner.streams.clients import Clients


@dataclass(frozen=True)
class Lead:
    """The objects that only rank 0 has: it alone is elected, recovers the run and publishes."""

    clients: Clients
    recovery: Recovery


class Found(msgspec.Struct):
    """The point from which rank 0 continues. `manifest` are its bytes, None at a fresh start."""

    positions: Positions
    epoch: int
    manifest: bytes | None


STANDING_BY, RECOVERING, STOPPED = "standing by", "recovering", "stopped"


def lead_in(
    settings: Settings,
    store: Store,
    lead: Lead,
    parallel: Parallel,
    stop: threading.Event,
    stand_by: Callable[[], None],
    recover: Callable[[], None],
) -> Recovered | None:
    """Wait until this worker is elected, then recover the run. Return None if `stop` is set earlier.

    Call `stand_by` while another worker is active, and `recover` once this worker is elected. The other ranks of the
    run are in `follow` meanwhile. Raises the errors of `await_turn` and of `Recovery.take_over`.
    """

    def stand_by_together() -> None:
        stand_by()
        _say(parallel, STANDING_BY)

    election = lead.clients.election
    if not await_turn(settings, store, election, stop, stand_by_together, lead.recovery.look):
        _say(parallel, STOPPED)
        return None
    recover()
    _say(parallel, RECOVERING)
    recovered = lead.recovery.take_over(fencing(election, lead.clients.transaction.fence))
    manifest = recovered.checkpoint and encode(recovered.checkpoint.manifest)
    _say(parallel, msgspec.msgpack.encode(Found(recovered.positions, recovered.epoch, manifest)))
    return recovered


def follow(
    settings: Settings, store: Store, parallel: Parallel, stand_by: Callable[[], None], recover: Callable[[], None]
) -> Recovered | None:
    """Wait until rank 0 has recovered the run, and fetch the states of this rank's shards. Return None if it stops.

    Raises StateError, StoreError.
    """
    while (said := _say(parallel, None)) in (STANDING_BY, RECOVERING):
        if said == RECOVERING:
            recover()
        else:
            stand_by()
    if said == STOPPED:
        return None
    found = msgspec.msgpack.decode(said, type=Found)
    if found.manifest is None:
        return Recovered(found.positions, {}, found.epoch)
    manifest = decode_manifest(found.manifest)
    checkpoint = Fetch(settings, store, parallel.local)(manifest, digest(found.manifest), {})
    return Recovered(found.positions, {}, found.epoch, checkpoint)


def _say(parallel: Parallel, said: str | bytes | None) -> Any:
    """Send a message from rank 0 to the other ranks, which pass None. Return the message."""
    return from_ranks(parallel, said)[0]
