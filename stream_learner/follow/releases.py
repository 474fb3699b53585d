"""The newest release of a run, read with read rights and without the worker's settings."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import ValidationError

from stream_learner.checkpoints.store import Store
from stream_learner.config import InputSettings, KafkaSettings, ReaderSettings, usage_error
from stream_learner.contract import tensors
from stream_learner.contract.manifest import Manifest, digest
from stream_learner.contract.manifest import Release as Described
from stream_learner.contract.topics import Names
from stream_learner.contract.vocabulary import Label
from stream_learner.errors import NoReleaseError, StateError, TopicsError
from stream_learner.formats import images as decoding
from stream_learner.streams import topics
from stream_learner.streams.chunks import read_chunks
from stream_learner.streams.manifests import no_manifest, read_newest

if TYPE_CHECKING:
    from stream_learner.networks import ImageClassifier
    from stream_learner.networks.predictions import Predictions

MAX_IMAGE_PIXELS: int = InputSettings.model_fields["max_image_pixels"].default


class Release:
    """A released model: the manifest that names it, and its bytes, whose size and digest were verified."""

    def __init__(self, manifest: Manifest, described: Described, data: bytes):
        self.manifest = manifest
        self.described = described
        """The manifest's `release`: network, preprocessing, accuracy."""
        self.data = data
        """The parameters, as a safetensors file."""
        self._network: tuple[str | None, ImageClassifier] | None = None

    @property
    def labels(self) -> list[Label]:
        """Label of each output of the network, in order."""
        return self.described.labels

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the parameters by their names in the network's state dict. Raises StateError if they are damaged."""
        try:
            return tensors.decode(self.data)
        except ValueError as error:
            raise StateError(f"{self} cannot be decoded: {error}; wait for the next release") from None

    def network(self, own: str | None = None) -> "ImageClassifier":
        """Build the network, in evaluation mode: uint8 images [N, H, W, C] to logits [N, classes]. Imports torch.

        A name in a manifest is never imported. For a network of your own, pass its `package.module:name` as `own`.
        Raises StateError when the release needs another network or its parameters do not fit.
        """
        from stream_learner import networks
        from stream_learner.networks.tensors import as_tensors, load_parameters

        network = networks.build(self.described.model, own)
        try:
            load_parameters(network, as_tensors(self.arrays()))
        except ValueError as error:
            raise StateError(f"{self} does not fit its network: {error}; wait for the next release") from None
        return network.eval()

    def predict(self, images: Iterable[bytes | np.ndarray], own: str | None = None) -> "Predictions":
        """Predict images, preprocessed as in training. `own` is as in `network()`. The network is built once.

        Each image is encoded (JPEG, PNG), or uint8 pixels [H, W, 1 or 3]. Raises RejectError for an image that cannot
        be decoded, ValueError for an array of another shape or type, and the errors of `network`.
        """
        from stream_learner.networks.predictions import predict

        shown = self.described.preprocessing
        images_NHWC = decoding.batch(images, shown.height, shown.width, shown.channels, MAX_IMAGE_PIXELS)
        if self._network is None or self._network[0] != own:
            self._network = own, self.network(own)
        return predict(self._network[1], self.labels, images_NHWC)

    def __repr__(self) -> str:
        return f"release {self.described.sequence} of run {self.manifest.run_id!r}, epoch {self.manifest.epoch}"


def read_release(
    run_id: str,
    kafka: KafkaSettings | str = "127.0.0.1:9092",
    *,
    prefix: str | None = None,
    verify_key_files: Sequence[str | Path] = (),
    store: str | None = None,
) -> Release:
    """Read the newest release of a run from its output topics.

    `kafka` is the bootstrap servers, or settings with credentials. `prefix` is the worker's `topics.prefix`.
    `verify_key_files` are public keys (PEM): with them, only a signed manifest is accepted. `store` is the worker's
    `checkpoint.store`, for releases that are too large for the weights topic.

    Raises NoReleaseError before the first release, StateError when the manifest or release in the topics or the store
    cannot be used, TopicsError, KafkaUnavailableError, StoreError, UsageError.
    """
    settings = _settings(run_id, kafka, prefix, verify_key_files)
    while True:
        manifest, release = _newest(settings)
        try:
            return Release(manifest, release, _data(settings, manifest, release, store))
        except StateError:  # a newer release may have replaced the bytes
            if _newest(settings)[1] == release:
                raise


def _settings(
    run_id: str, kafka: KafkaSettings | str, prefix: str | None, verify_key_files: Sequence[str | Path]
) -> ReaderSettings:
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


def _newest(settings: ReaderSettings) -> tuple[Manifest, Described]:
    """Return the newest manifest and the release that it names."""
    topic = Names.under(settings.prefix).checkpoints
    try:
        topic_id = topics.topic_ids(settings, [topic])[topic]
    except TopicsError:
        raise TopicsError(
            f"Kafka at {settings.kafka.bootstrap_servers} has no topic {topic}; check the run id and the prefix"
        ) from None
    newest = read_newest(settings, topic_id, positions={}, wait=False)
    if newest.found is None and newest.foreign:
        raise no_manifest(settings, newest)
    if newest.found is None or newest.found.manifest.release is None:
        raise NoReleaseError(
            f"run {settings.run.id!r} has not released a model yet; try again once its worker has decided "
            "(release.every_records)"
        )
    return newest.found.manifest, newest.found.manifest.release


def _data(settings: ReaderSettings, manifest: Manifest, release: Described, store: str | None) -> bytes:
    """Fetch the bytes of the release from the weights topic, or else from the store. Verify size and digest.

    The signature of the manifest, which holds the digest, was verified before (`streams/manifests.py`).
    """
    data = read_chunks(settings, release.chunks) if release.chunks else None
    if data is not None and len(data) == release.object.size and digest(data) == release.object.digest:
        return data
    if store is not None:
        return Store(store, create=False).fetch(release.object)
    topic = Names.under(settings.prefix).weights
    why = "does not hold" if data is None else "holds other bytes than the manifest names for"
    raise StateError(
        f"topic {topic} {why} release {release.sequence} of run {settings.run.id!r}; pass the worker's "
        f"checkpoint.store as `store`. When the release was made, checkpoint.store was {manifest.store}"
    )
