"""Small objects beside the states.

`<run.id>/run.json` says that this run has published, and to which topic of which cluster; `<run.id>/fenced/<worker>`
that this worker was replaced.
"""

import socket

import msgspec

from stream_learner.checkpoints.store import Store
from stream_learner.config import Settings
from stream_learner.errors import StateError
from stream_learner.records import documents
from stream_learner.records.documents import Text
from stream_learner.records.manifest import encode
from stream_learner.streams import topics


class Marker(msgspec.Struct, frozen=True):
    cluster_id: Text
    checkpoints_topic_id: Text


def write_marker(store: Store, settings: Settings, checkpoints_topic_id: str) -> None:
    """Writes the marker unless it is there. Raises StateError when another is, StoreError, KafkaUnavailableError."""
    if not check_marker(store, settings, checkpoints_topic_id):
        store.put(_key(settings), encode(Marker(topics.cluster_id(settings), checkpoints_topic_id)))


def read_marker(store: Store, settings: Settings) -> Marker | None:
    """Raises StateError when it is damaged, StoreError."""
    data = store.get(_key(settings), documents.MAX_BYTES)
    try:
        return documents.decode(data, Marker) if data is not None else None
    except ValueError as error:
        raise StateError(f"object {store.url}/{_key(settings)} is damaged: {error}") from None


def check_marker(store: Store, settings: Settings, checkpoints_topic_id: str) -> bool:
    """Whether there is a marker. Raises StateError when it names another cluster or topic."""
    marker = read_marker(store, settings)
    if marker and marker != Marker(topics.cluster_id(settings), checkpoints_topic_id):
        raise StateError(
            f"checkpoint.store holds run {settings.run.id!r} of another cluster or of a checkpoints topic that was "
            "made anew since; point kafka.bootstrap_servers and checkpoint.store at one run, or choose a new run.id"
        )
    return marker is not None


def delete_marker(store: Store, settings: Settings) -> None:
    store.delete([_key(settings)])


def write_fenced(store: Store, settings: Settings) -> None:
    """Leaves behind that this worker was replaced, so that its next start does not take the run back: two supervisors
    would do that for ever. Raises StoreError."""
    if not was_fenced(store, settings):
        store.put(_fenced_key(settings), b"")


def was_fenced(store: Store, settings: Settings) -> bool:
    """Whether the last life of this worker ended by being replaced. Raises StoreError, StateError when others wrote to
    the object."""
    return store.get(_fenced_key(settings), 0) is not None


def forget_fenced(store: Store, settings: Settings) -> None:
    """It is this worker's turn again. Raises StoreError."""
    store.delete([_fenced_key(settings)])


def fenced_folder(settings: Settings) -> str:
    return f"{settings.run.id}/fenced/"


def _fenced_key(settings: Settings) -> str:
    # What a worker has in common with its next life under the same supervisor.
    return f"{fenced_folder(settings)}{socket.gethostname()}-{settings.monitoring.port}"


def _key(settings: Settings) -> str:
    return f"{settings.run.id}/run.json"
