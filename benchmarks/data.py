"""Data set of the learning benchmarks: encoded images for training and test."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.images import digest, mirrored, open_parts
from stream_learner.config import ModelSettings
from stream_learner.errors import DataError
from stream_learner.formats import images
from stream_learner.formats.record import RejectError
from stream_learner.local.datasets import Dataset

MIN_MODEL_PX = 16
MAX_MODEL_PX = 32
MAX_IMAGE_PIXELS = 50_000_000


@dataclass(frozen=True)
class Part:
    """Encoded images (JPEG or PNG) and their classes: indices into `Data.labels`, int64 [N]."""

    images: Sequence[bytes]
    targets: np.ndarray

    def at(self, indices: np.ndarray) -> "Part":
        return Part([self.images[index] for index in indices.tolist()], self.targets[indices])


@dataclass(frozen=True)
class Data:
    """Both parts of a data set.

    `digest` distinguishes data sets of the same name. `height`, `width` (px) and `channels` are those of the images for
    a model: their own size, but 16 to 32 px. `mirrored` says whether an image keeps its meaning when mirrored.
    """

    name: str
    digest: str
    labels: list[str]
    height: int
    width: int
    channels: Literal[1, 3]
    mirrored: bool
    train: Part
    test: Part


def open_data(folder: Path | None) -> Data:
    """Read both parts of a data set, or of scikit-learn's digits without a folder.

    Raises DataError, also when an image cannot be decoded, and UsageError.
    """
    train, test = open_parts(folder)
    height, width = (min(max(side, MIN_MODEL_PX), MAX_MODEL_PX) for side in (train.height, train.width))
    size = height, width, train.channels
    parts = _part(train, train.labels, size), _part(test, train.labels, size)
    name = folder.resolve().name if folder else train.name
    known_by = digest((part.targets, part.images) for part in parts)
    return Data(name, known_by, train.labels, *size, mirrored(train), *parts)


def _part(dataset: Dataset, labels: list[str], size: tuple[int, int, int]) -> Part:
    if unknown := sorted(set(dataset.labels) - set(labels)):
        raise DataError(f"the test images of {dataset.name} have classes that the training images lack: {unknown}")
    if not len(dataset):
        raise DataError(f"{dataset.name} has too few images to hold out a test part")
    encoded = [dataset.read(index) for index in range(len(dataset))]
    for image, place in zip(encoded, dataset.ids, strict=True):
        try:
            images.decode(image, *size, MAX_IMAGE_PIXELS)
        except RejectError as error:
            raise DataError(f"{place} in {dataset.name}: {error}; remove it, or convert it to JPEG or PNG") from None
    index_of = np.array([labels.index(label) for label in dataset.labels])
    return Part(encoded, index_of[dataset.targets])


def decoded(encoded: Iterable[bytes], model: ModelSettings) -> np.ndarray:
    """Return the images as the model gets them, uint8 [N, H, W, C]."""
    pixels = [images.decode(image, model.height, model.width, model.channels, MAX_IMAGE_PIXELS) for image in encoded]
    return np.stack(pixels)
