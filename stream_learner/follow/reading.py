"""Read the releases of a run, with read rights only and without the worker's settings."""

from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

import structlog
from pydantic import ValidationError

from stream_learner.checkpoints.store import Store
from stream_learner.config import AnySettings, KafkaSettings, ReaderSettings, usage_error
from stream_learner.contract.manifest import Manifest, decode_manifest, digest
from stream_learner.contract.manifest import Release as Described
from stream_learner.contract.objects import Object, Published
from stream_learner.contract.pins import Chosen
from stream_learner.contract.topics import Names
from stream_learner.errors import NoReleaseError, StateError, StoreError
from stream_learner.follow.releases import Objects, Release
from stream_learner.streams.chunks import Chunks
from stream_learner.streams.history import History
from stream_learner.streams.manifests import no_manifest, read_newest
from stream_learner.streams.pins import listed, read_pins
from stream_learner.streams.topics import id_for_reader

log = structlog.get_logger()


class ReleaseReader:
    """Reads releases: their objects from the weights topic, or else from the store.

    The manifests of earlier releases come from the store, or else from the history topic.
    """

    def __init__(self, settings: ReaderSettings, store: str | None = None, own: str | None = None):
        """Connect. Raises KafkaUnavailableError, UsageError."""
        self._settings = settings
        self._location = store
        self._store: Store | None = None
        with suppress(StoreError):  # the worker may not have created it yet
            self._open_store()
        self._own = own
        self._chunks = Chunks(settings)

    def read(self, newest: Manifest, chosen: Chosen) -> Release:
        """Read and verify one of the releases that the newest manifest lists.

        Raises StateError when its manifest or one of its objects is gone or has another size or digest than it should
        have, KafkaUnavailableError, StoreError.
        """
        manifest, described = self._describe(newest, chosen)
        onnx = described.onnx
        objects = Objects(
            parameters=self._object(manifest, described, Published(described.object, described.chunks)),
            canary=self._object(manifest, described, described.canary),
            graph=self._object(manifest, described, onnx.published) if onnx else None,
        )
        return Release(manifest, described, objects, self._own)

    def close(self) -> None:
        """Close the connection."""
        self._chunks.close()

    def _open_store(self) -> Store | None:
        if self._store is None and self._location is not None:
            self._store = Store(self._location, create=False)
        return self._store

    def _describe(self, newest: Manifest, chosen: Chosen) -> tuple[Manifest, Described]:
        """Return a manifest that describes a release, and the description."""
        if newest.release and newest.release.sequence == chosen.sequence:
            return newest, newest.release
        failure = None
        stored = next((one.manifest for one in newest.earlier if one.sequence == chosen.sequence), None)
        try:
            if stored and (store := self._open_store()):
                return _decoded(store.fetch(stored), stored, chosen)
        except (StateError, StoreError) as error:
            failure = error
            log.warning("the manifest of a release cannot be read from the store", why=str(error))
        with closing(History(self._settings)) as history:
            manifest = released_by(history, chosen)
        if manifest and manifest.release:
            return manifest, manifest.release
        raise failure or StateError(
            f"topic {history.topic} does not hold the manifest of release {chosen.sequence}, epoch {chosen.epoch}; "
            "pass the worker's checkpoint.store as `store`, or choose another release with `stream-learner release`"
        )

    def _object(self, manifest: Manifest, described: Described, published: Published) -> bytes:
        """Fetch an object from the weights topic, or else from the store. Verify size and digest.

        The manifest holds the digest. `streams/manifests.py` has verified the manifest's signature before.
        """
        wanted = published.object
        data = self._chunks.read(published.chunks)
        if data is not None and len(data) == wanted.size and digest(data) == wanted.digest:
            return data
        try:
            store = self._open_store()
        except StoreError as error:
            raise StoreError(f"{error}. When the release was made, checkpoint.store was {manifest.store}") from error
        if store:
            return store.fetch(wanted)
        topic = Names.under(self._settings.prefix).weights
        why = "does not hold" if data is None else "holds other bytes than the manifest names for"
        raise StateError(
            f"topic {topic} {why} release {described.sequence} of run {manifest.run_id!r}; pass the worker's "
            f"checkpoint.store as `store`. When the release was made, checkpoint.store was {manifest.store}"
        )


def read_release(
    run_id: str,
    kafka: KafkaSettings | str = "127.0.0.1:9092",
    *,
    prefix: str | None = None,
    verify_key_files: Sequence[str | Path] = (),
    store: str | None = None,
    own: str | None = None,
) -> Release:
    """Read the newest release of a run from its output topics, or the pinned one. Never read a withdrawn release.

    `kafka` holds the bootstrap servers, or settings with credentials. `prefix` is the worker's `topics.prefix`.
    `verify_key_files` are public keys (PEM): with them, only a signed manifest is accepted. `store` is the worker's
    `checkpoint.store`, for releases that are too large for the weights topic. `own` is the `package.module:name` of a
    network of your own.

    Raises NoReleaseError before the first release, StateError when the manifest or release in the topics or the store
    cannot be used, TopicsError, KafkaUnavailableError, StoreError, UsageError.
    """
    settings = reader_settings(run_id, kafka, prefix, verify_key_files)
    newest, chosen = _choose(settings)
    with closing(ReleaseReader(settings, store, own)) as reader:
        while True:
            try:
                return reader.read(newest, chosen)
            except StateError:  # a newer release may have replaced the bytes
                before, (newest, chosen) = chosen, _choose(settings)
                if chosen == before:
                    raise


def reader_settings(
    run_id: str, kafka: KafkaSettings | str, prefix: str | None, verify_key_files: Sequence[str | Path]
) -> ReaderSettings:
    """Return the settings with which a program reads a run. Raises UsageError."""
    sections = {
        "run": {"id": run_id},
        "kafka": {"bootstrap_servers": kafka} if isinstance(kafka, str) else kafka,
        "topics": {"prefix": prefix},
        "security": {"verify_key_files": verify_key_files},
    }
    try:
        return ReaderSettings.model_validate(sections)
    except ValidationError as error:
        raise usage_error(error) from None


def released_by(history: History, chosen: Chosen) -> Manifest | None:
    """Return the manifest of the checkpoint that made a release, None if the history topic does not hold it."""
    found = history.find(chosen.sequence, chosen.epoch)
    release = found.manifest.release if found else None
    return found.manifest if found and release and release.object.digest == chosen.digest else None


def newest_manifest(settings: AnySettings) -> Manifest | None:
    """Return the newest manifest of a run, None before the first one.

    Raises StateError when the topic holds only foreign records, TopicsError, KafkaUnavailableError.
    """
    topic_id = id_for_reader(settings, Names.under(settings.prefix).checkpoints)
    newest = read_newest(settings, topic_id, mirrored={}, wait=False)
    if newest.found is None and newest.foreign:
        raise no_manifest(settings, newest)
    return newest.found.manifest if newest.found else None


def _decoded(data: bytes, stored: Object, chosen: Chosen) -> tuple[Manifest, Described]:
    """Decode the stored manifest of a release. Raises StateError when it is not a manifest of this release."""
    try:
        manifest = decode_manifest(data)
    except ValueError as error:
        raise StateError(f"object {stored.key} is {error}; choose another release") from None
    if manifest.release is None or listed(manifest)[-1] != chosen:
        raise StateError(f"object {stored.key} describes another release than {chosen.sequence}; choose another one")
    return manifest, manifest.release


def _choose(settings: ReaderSettings) -> tuple[Manifest, Chosen]:
    """Return the newest manifest, and the release to use."""
    newest = newest_manifest(settings)
    if newest is None or newest.release is None:
        raise NoReleaseError(
            f"run {settings.run.id!r} has not released a model yet; try again once its worker has decided "
            "(release.every_records)"
        )
    chosen = read_pins(settings).choose(newest)
    if chosen is None:
        raise NoReleaseError(f"all releases of run {settings.run.id!r} were withdrawn; wait for the next one")
    return newest, chosen
