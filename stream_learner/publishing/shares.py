"""The objects of a state that each rank writes: the states of its shards, and their parts."""

import hashlib
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from stream_learner.checkpoints.store import Store
from stream_learner.contract import keys, tensors
from stream_learner.contract.manifest import digest
from stream_learner.contract.objects import Object
from stream_learner.publishing.recover import SHARDS
from stream_learner.publishing.snapshot import Snapshot


class Share(msgspec.Struct, frozen=True):
    """The objects that one rank wrote for a state.

    `shards` are the states of its shards, empty if the run has a single shard. `parts` are the shards' parts. `replica`
    is the digest of the arrays that are the same on every rank, or empty if the run has a single shard.
    """

    shards: list[Object]
    parts: list[Object]
    replica: str


class Peers(Protocol):
    """The other ranks of a run, from which rank 0 gets their shares."""

    def shares(self, sequence: int) -> list[Share]:
        """Return the shares of checkpoint `sequence` in the order of ranks, without that of rank 0. Wait for them."""
        ...


class NoPeers:
    """A run of a single process."""

    def shares(self, sequence: int) -> list[Share]:
        del sequence
        return []


class ShareWriter:
    """Writes the parts of snapshots to the store. Two snapshots share most of their parts."""

    def __init__(self, store: Store, run_id: str, known: list[Object]):
        """Take the parts that are in the store already."""
        self._store = store
        self._run_id = run_id
        self._known = {part.digest: part for part in known}

    def keep(self, parts: list[Object]) -> None:
        """Forget all parts except these, because the others may be deleted from now on."""
        self._known = {part.digest: part for part in parts}

    def put(self, sequence: int, snapshot: Snapshot) -> Share:
        """Write the parts and the states of the shards, except those that are in the store. Raises StoreError."""
        states = [(digest(data), data) for data in (tensors.encode(*shard) for shard in snapshot.shards)]
        for name, data in [*snapshot.parts.items(), *states]:
            if name not in self._known:
                self._known[name] = self._store.put(keys.new_part(self._run_id, sequence), data)
        return Share(
            shards=[self._known[name] for name, _ in states],
            parts=[self._known[name] for name in snapshot.parts],
            replica=replica_digest(snapshot) if snapshot.shards else "",
        )


def replica_digest(snapshot: Snapshot) -> str:
    """Return the digest of the part of a snapshot that must be the same on all ranks, without positions."""
    document = {name: value for name, value in snapshot.document.items() if name != "may_discard_from"}
    found = hashlib.sha256(msgspec.json.encode(document, order="deterministic"))
    for name in sorted(snapshot.tensors):
        found.update(name.encode())
        found.update(snapshot.tensors[name].data)
    return f"sha256:{found.hexdigest()}"


def encoded_state(snapshot: Snapshot, shards: list[str]) -> bytes:
    """Return the bytes of a state. `shards` are the digests of the states of all shards, empty for a single shard."""
    return tensors.encode(snapshot.tensors, with_shards(snapshot.document, shards))


def with_shards(document: Mapping[str, Any], shards: list[str]) -> dict[str, Any]:
    """Return the document with the digests of the shards' states, if there are several shards."""
    return {**document, SHARDS: shards} if shards else dict(document)
