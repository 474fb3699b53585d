"""The mirror of publish: from topics and objects back to a learner that goes on where the last commit stood."""

from dataclasses import dataclass
from typing import Any

from stream_learner.checkpoints import state
from stream_learner.checkpoints.state import Tensors
from stream_learner.checkpoints.store import Store
from stream_learner.config import Settings
from stream_learner.errors import InputError, StateError
from stream_learner.learning.learner import check_fits
from stream_learner.publishing.marker import check_marker, delete_marker, write_marker
from stream_learner.records.manifest import Manifest, ModelSpec, Object, decode_manifest, digest
from stream_learner.records.spans import Positions
from stream_learner.streams import offsets, topics
from stream_learner.streams.journal import read_newest
from stream_learner.streams.topics import Names


@dataclass(frozen=True)
class Recovered:
    """Where to go on. `manifest`, `document` and the tensors are None at a fresh start."""

    positions: Positions
    topic_ids: dict[str, str]
    manifest: Manifest | None = None
    manifest_digest: str | None = None
    document: dict[str, Any] | None = None
    tensors: Tensors | None = None
    released: tuple[ModelSpec, Tensors] | None = None


def recover(settings: Settings, store: Store, fence, fresh: bool = False) -> Recovered:
    """Finds the newest checkpoint, takes the run over, and reads what it needs to go on.

    `fence` is the transaction's. Raises TopicsError, StateError, InputError, StoreError, KafkaUnavailableError.
    """
    checkpoints = Names.of(settings).checkpoints
    # 1. Read-only checks first: a starter that is misconfigured must not kill the worker that runs. A killed worker's
    #    transaction may still be open; it is not waited for here, because 2 aborts it.
    topics.check(settings)
    ids = topics.topic_ids(settings, [checkpoints, *settings.input.topics])
    visible = read_newest(settings, checkpoints, wait=False)
    if visible is not None:
        _verified(settings, store, ids, visible)
    # 2. Fence. Nobody else can commit for this run from here on, and what was open is aborted.
    fence()
    # 3. Read again, to the true end: another worker may have committed since, and anybody's transaction may hide it.
    newest = read_newest(settings, checkpoints)
    if newest is None:
        return _fresh_start(settings, store, ids, fresh)
    found = _verified(settings, store, ids, newest)
    # 4. A crash between the first commit and the marker left none; from here on a lost manifest is noticed.
    write_marker(store, settings, ids[checkpoints])
    return found


def _fresh_start(settings: Settings, store: Store, ids: dict[str, str], fresh: bool) -> Recovered:
    """The beginning of every partition, once it is sure, or allowed by `fresh`, that there is nothing to go on from."""
    if fresh:
        delete_marker(store, settings)
    else:
        _check_nothing_was_published(settings, store, ids[Names.of(settings).checkpoints])
    first, _ = offsets.bounds(settings.kafka, settings.input.topics)
    return Recovered(first, ids)


def _verified(settings: Settings, store: Store, ids: dict[str, str], value: bytes) -> Recovered:
    """The checkpoint of a manifest, once all that it names is there and fits; changes nothing."""
    checkpoints = Names.of(settings).checkpoints
    check_marker(store, settings, ids[checkpoints])
    try:
        manifest = decode_manifest(value)
    except ValueError as error:
        raise StateError(f"the newest record of {checkpoints} is {error}") from None
    if manifest.run_id != settings.run.id:
        raise StateError(
            f"topic {checkpoints} belongs to run {manifest.run_id!r}, not to {settings.run.id!r}; topics belong to one "
            "run: set topics.prefix or run.id"
        )
    _check_topics(manifest, ids)
    positions = _check_positions(settings, manifest)
    data = store.fetch(manifest.state)
    try:
        document = state.decode_document(data)
        check_fits(document, settings)
        tensors = state.decode_tensors(data)
    except ValueError as error:
        raise StateError(
            f"the state {manifest.state.url} does not fit the settings: {error}. Set them back, or choose a new run.id"
        ) from None
    released = None
    if manifest.release:
        released = manifest.release.model, _tensors(store, manifest.release.object)
    return Recovered(positions, ids, manifest, digest(value), document, tensors, released)


def _tensors(store: Store, reference: Object) -> Tensors:
    try:
        return state.decode_tensors(store.fetch(reference))
    except ValueError as error:
        raise StateError(f"object {reference.url} is {error}") from None


def _check_nothing_was_published(settings: Settings, store: Store, checkpoints_topic_id: str) -> None:
    """A first publication that was killed leaves objects of sequence 1 at most; anything else had a manifest."""
    first_folder = f"{settings.run.id}/{1:012d}-"
    traces = [key for key in store.times(f"{settings.run.id}/") if not key.startswith(first_folder)]
    if check_marker(store, settings, checkpoints_topic_id) or traces or offsets.mirrored_positions(settings):
        raise StateError(
            f"run {settings.run.id!r} has published before, but its checkpoints topic holds no manifest. Bring the "
            "topic back, choose a new run.id, or start over with `run --fresh` (what was learned is given up)"
        )


def _check_topics(manifest: Manifest, ids: dict[str, str]) -> None:
    for name, topic_id in ids.items():
        if manifest.topic_ids.get(name, topic_id) != topic_id:
            raise InputError(
                f"topic {name} was deleted and made again since the last checkpoint; its offsets mean other records "
                "now. Choose a new run.id to learn from the new topic"
            )


def _check_positions(settings: Settings, manifest: Manifest) -> Positions:
    """The manifest's positions, and the first offset of partitions that are new."""
    first, end = offsets.bounds(settings.kafka, settings.input.topics)
    for topic, partitions in manifest.positions.items():
        if topic not in first:
            raise InputError(f"the run has learned from topic {topic}, which is not in input.topics; add it back")
        for partition, position in partitions.items():
            if partition not in first[topic]:
                raise InputError(f"{topic} has fewer partitions than before: partition {partition} is missing")
            if position < first[topic][partition]:
                raise InputError(
                    f"records of {topic}[{partition}] from offset {position} to {first[topic][partition]} have fallen "
                    "off retention before they were learned; give the topic a longer retention, and choose a new run.id"
                )
            if position > end[topic][partition]:
                raise InputError(
                    f"{topic}[{partition}] ends at offset {end[topic][partition]}, before the run's position "
                    f"{position}: the topic lost records, or is another one. Choose a new run.id"
                )
            first[topic][partition] = position
    return first
