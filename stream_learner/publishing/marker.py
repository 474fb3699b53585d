"""Read and write two kinds of small objects in the store.

`<run.id>/run.json`, the marker, shows that the run has published or was started over. It names the cluster, the
checkpoints topic and the epoch. `<run.id>/fenced/<worker>` shows that another worker replaced this worker.
"""

import socket

import msgspec

from stream_learner.checkpoints.store import Store
from stream_learner.config import Settings
from stream_learner.contract import documents
from stream_learner.contract.documents import Epoch, Text
from stream_learner.contract.manifest import encode
from stream_learner.errors import StateError
from stream_learner.streams.cluster import Cluster


class Marker(msgspec.Struct, frozen=True):
    cluster_id: Text
    checkpoints_topic_id: Text
    epoch: Epoch


def write_marker(store: Store, settings: Settings, cluster: Cluster, checkpoints_topic_id: str, epoch: int) -> None:
    """Write the marker unless it exists. Raises the errors of `check_marker`."""
    if not check_marker(store, settings, cluster, checkpoints_topic_id):
        store.put(_key(settings), encode(Marker(cluster.cluster_id(), checkpoints_topic_id, epoch)))


def replace_marker(store: Store, settings: Settings, cluster: Cluster, checkpoints_topic_id: str, epoch: int) -> None:
    """Replace the marker of a run that is started over, so that no later start uses the epoch again.

    Call this before the first commit, because a crash may follow. Raises StoreError, KafkaUnavailableError.
    """
    marker = Marker(cluster.cluster_id(), checkpoints_topic_id, epoch)
    store.delete([_key(settings)])
    store.put(_key(settings), encode(marker))


def last_epoch(store: Store, settings: Settings) -> int:
    """Return the marker's epoch, or 0 if there is no marker. Raises StateError when it is damaged, StoreError."""
    marker = read_marker(store, settings)
    return marker.epoch if marker else 0


def read_marker(store: Store, settings: Settings) -> Marker | None:
    """Return the marker, or None if there is none. Raises StateError when it is damaged, StoreError."""
    data = store.get(_key(settings), documents.MAX_BYTES)
    try:
        return documents.decode(data, Marker) if data is not None else None
    except ValueError as error:
        raise StateError(
            f"object {store.url}/{_key(settings)} is damaged: {error}. Restore it from a backup, or delete it"
        ) from None


def check_marker(store: Store, settings: Settings, cluster: Cluster, checkpoints_topic_id: str) -> bool:
    """Return whether there is a marker, after a check of its contents.

    Raises StateError when it is damaged or names another cluster or topic, StoreError, KafkaUnavailableError.
    """
    marker = read_marker(store, settings)
    found = marker and (marker.cluster_id, marker.checkpoints_topic_id)
    if found and found != (cluster.cluster_id(), checkpoints_topic_id):
        raise StateError(
            f"checkpoint.store holds run {settings.run.id!r} of another cluster or of a checkpoints topic that was "
            "deleted and created again. Set kafka.bootstrap_servers and checkpoint.store to the cluster and the store "
            "of the same run, or choose a new run.id"
        )
    return marker is not None


def write_fenced(store: Store, settings: Settings) -> None:
    """Record that this worker was replaced, so that its next start stands by.

    Otherwise two workers with `run.on_conflict = take_over` would replace each other forever. Raises StoreError.
    """
    if not was_fenced(store, settings):
        store.put(_fenced_key(settings), b"")


def was_fenced(store: Store, settings: Settings) -> bool:
    """Return whether this worker was, or may have been, replaced when it last ran.

    Raises StoreError, StateError when the object is not empty.
    """
    return store.get(_fenced_key(settings), 0) is not None


def forget_fenced(store: Store, settings: Settings) -> None:
    """Forget that this worker was replaced, because it is active again. Raises StoreError."""
    store.delete([_fenced_key(settings)])


def fenced_folder(settings: Settings) -> str:
    return f"{settings.run.id}/fenced/"


def _fenced_key(settings: Settings) -> str:
    # Host and port stay the same when a supervisor restarts a worker. Another worker of the run with the same host and
    # port may then stand by once instead of taking over, which costs at most the session's time-out.
    return f"{fenced_folder(settings)}{socket.gethostname()}-{settings.monitoring.port}"


def _key(settings: Settings) -> str:
    return f"{settings.run.id}/run.json"
