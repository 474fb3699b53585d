"""A data set for the learning benchmarks: encoded images to learn from and to be tested on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.images import open_parts
from stream_learner.config import ModelSettings
from stream_learner.errors import DataError
from stream_learner.local.datasets import Dataset
from stream_learner.records import images

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
    """`height`, `width` (px) and `channels` are what a model sees of the images: their own size, or 32 px; `mirrored`,
    whether they mean the same seen in a mirror."""

    name: str
    labels: list[str]
    height: int
    width: int
    channels: Literal[1, 3]
    mirrored: bool
    train: Part
    test: Part


def open_data(folder: Path | None) -> Data:
    """Reads both parts of a data set, scikit-learn's digits when there is no folder. Raises DataError, UsageError."""
    train, test = open_parts(folder)
    return Data(
        folder.resolve().name if folder else train.name,
        train.labels,
        min(train.height, MAX_MODEL_PX),
        min(train.width, MAX_MODEL_PX),
        train.channels,
        folder is not None,
        _part(train, train.labels),
        _part(test, train.labels),
    )


def _part(dataset: Dataset, labels: list[str]) -> Part:
    if unknown := sorted(set(dataset.labels) - set(labels)):
        raise DataError(f"the test images of {dataset.name} have classes that the training images lack: {unknown}")
    index_of = np.array([labels.index(label) for label in dataset.labels])
    return Part([dataset.read(index) for index in range(len(dataset))], index_of[dataset.targets])


def decoded(encoded: Iterable[bytes], model: ModelSettings) -> np.ndarray:
    """What the model sees of the images, uint8 [N, H, W, C]. Raises RejectError when one cannot be decoded."""
    pixels = [images.decode(image, model.height, model.width, model.channels, MAX_IMAGE_PIXELS) for image in encoded]
    return np.stack(pixels)
