"""A released model: its manifest, its objects and its predictions."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from stream_learner.config import InputSettings
from stream_learner.contract import tensors
from stream_learner.contract.manifest import Manifest
from stream_learner.contract.manifest import Release as Described
from stream_learner.contract.vocabulary import Label
from stream_learner.errors import StateError, UsageError
from stream_learner.formats import images as decoding
from stream_learner.inference import predictions
from stream_learner.inference.agreement import disagreement
from stream_learner.inference.onnx import OnnxModel
from stream_learner.inference.predictions import Model, Predictions

if TYPE_CHECKING:
    from stream_learner.networks import ImageClassifier

MAX_IMAGE_PIXELS: int = InputSettings.model_fields["max_image_pixels"].default
# Ten times `agreement.TOLERANCE`, because another processor may add numbers in another order than the worker's.
CANARY_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Objects:
    """The objects of a release: parameters and canary are safetensors files, `graph` is an ONNX graph or None."""

    parameters: bytes
    canary: bytes
    graph: bytes | None


class Release:
    """A released model: the manifest that names it, and its objects, whose sizes and digests were verified."""

    def __init__(self, manifest: Manifest, described: Described, objects: Objects, own: str | None = None):
        self.manifest = manifest
        self.described = described
        """The manifest's `release`: network, preprocessing, accuracy."""
        self.data = objects.parameters
        """The parameters, as a safetensors file."""
        self.graph = objects.graph
        """The network as an ONNX graph without its parameters, None when the release has no graph."""
        self._canary = objects.canary
        self._own = own

    @property
    def labels(self) -> list[Label]:
        """Label of each output of the network, in order."""
        return self.described.labels

    @property
    def order(self) -> tuple[int, int]:
        """Epoch and sequence. Compare them to see which of two releases is later."""
        return self.manifest.epoch, self.described.sequence

    @property
    def is_of_its_manifest(self) -> bool:
        """Whether the manifest's checkpoint released the model. Its offsets and decision are then those of the
        release. Otherwise a later checkpoint wrote the manifest."""
        return self.manifest.sequence == self.described.sequence

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the parameters by their names in the network's state dict. Raises StateError if they are damaged."""
        return self._decoded(self.data)

    def network(self) -> "ImageClassifier":
        """Build the network, in evaluation mode: uint8 images [N, H, W, C] to logits [N, classes]. Imports torch.

        A name in a manifest is never imported. For a network of your own, `read_release` and `Follower` take its
        `package.module:name` as `own`. Raises StateError when the release needs another network or its parameters do
        not fit.
        """
        from stream_learner import networks
        from stream_learner.networks.tensors import as_tensors, load_parameters

        network = networks.build(self.described.model, self._own)
        try:
            load_parameters(network, as_tensors(self.arrays()))
        except ValueError as error:
            raise StateError(f"{self} does not fit its network: {error}; wait for the next release") from None
        return network.eval()

    def predict(self, images: Iterable[bytes | np.ndarray]) -> Predictions:
        """Predict images, preprocessed as in training.

        Each image is encoded (JPEG, PNG), or uint8 pixels [H, W, 1 or 3]. ONNX Runtime computes the network if the
        release has a graph, otherwise PyTorch does. Raises RejectError for an image that cannot be decoded, ValueError
        for an array of another shape or type, StateError when the network cannot be computed here.
        """
        return predictions.predict(self._model, self.labels, self.preprocess(images))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the network's images."""
        shown = self.described.preprocessing
        return shown.height, shown.width, shown.channels

    def preprocess(self, images: Iterable[bytes | np.ndarray]) -> np.ndarray:
        """Return images as the network takes them, uint8 [N, H, W, C].

        Raises RejectError for an image that cannot be decoded, ValueError for an array of another shape or type.
        """
        return decoding.batch(images, *self.image_shape, MAX_IMAGE_PIXELS)

    def compute(self, images_NHWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return logits and probabilities, float32 [N, classes], of preprocessed images, uint8 [N, H, W, C].

        The network is built at the first call. Raises StateError when the network cannot be computed here, ValueError
        for an array of another shape or type.
        """
        return predictions.compute(self._model, len(self.labels), images_NHWC)

    def check(self) -> None:
        """Compute the canary, a few images whose logits the worker published.

        Raises StateError when the network cannot be computed here, or gives other logits.
        """
        canary = self._decoded(self._canary)
        try:
            logits, _ = self.compute(canary["images"])
            why = disagreement(logits, canary["logits"], CANARY_TOLERANCE)
        except (KeyError, ValueError) as error:
            why = f"the canary cannot be used: {error}"
        if why:
            raise StateError(f"{self} computes other predictions here than where it was made: {why}")

    @cached_property
    def _model(self) -> Model:
        if (
            self.graph is not None
            and self.described.onnx
            and (_is_installed("onnxruntime") or not _is_installed("torch"))
        ):
            try:
                return OnnxModel(self.graph, self.arrays(), self.described.onnx.unused)
            except ValueError as error:
                raise StateError(f"{self} cannot be loaded: {error}; wait for the next release") from None
        if not _is_installed("torch"):
            why = self.described.missing_formats.get("onnx", "see release.formats of the worker")
            raise StateError(
                f"{self} has no ONNX graph ({why}), and PyTorch is not installed; wait for the next release, or "
                'pip install "stream-learner[worker]"'
            )
        from stream_learner.networks.predictions import answers

        return partial(answers, self.network())

    def _decoded(self, data: bytes) -> dict[str, np.ndarray]:
        try:
            return tensors.decode(data)
        except ValueError as error:
            raise StateError(f"{self} cannot be decoded: {error}; wait for the next release") from None

    def __repr__(self) -> str:
        return f"release {self.described.sequence} of run {self.manifest.run_id!r}, epoch {self.manifest.epoch}"


def check_runtime() -> None:
    """Raise UsageError when nothing that computes networks is installed."""
    if not _is_installed("onnxruntime") and not _is_installed("torch"):
        raise UsageError(
            "neither ONNX Runtime nor PyTorch is installed, so no network can be computed: pip install "
            '"stream-learner[follow]", or pass compute=False'
        )


def _is_installed(library: str) -> bool:
    return find_spec(library) is not None
