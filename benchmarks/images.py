"""The images of a benchmark: a training and a test part, from any folder that `stream-learner feed` reads."""

import hashlib
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks import streams
from stream_learner.local.datasets import Dataset, NoTestSplitError, open_dataset

TEST_SHARE = 1 / 6  # about that of CIFAR and MNIST


def open_parts(path: Path | None) -> tuple[Dataset, Dataset]:
    """Return (training part, test part) of a data set, as `open_dataset` separates them.

    If one of them is missing, a fixed sixth of each class becomes the test part, and a message says so. Raises
    DataError.
    """
    dataset = open_dataset(path, "train")
    try:
        test = open_dataset(path, "test")
        if test.ids != dataset.ids:
            return dataset, test
        missing = f"there is one part in {path}"
    except NoTestSplitError as error:
        missing = str(error)
    print(f"{missing}; a sixth of each class is the test part", file=sys.stderr)
    learned, examined = streams.split(np.array(dataset.targets), 0, TEST_SHARE)
    return subset(dataset, learned), subset(dataset, examined)


def digest(parts: Iterable[tuple[np.ndarray, Iterable[bytes]]]) -> str:
    """Return a digest that distinguishes data sets of the same name.

    It covers the classes of each part, int64 [N], and its encoded images.
    """
    hashed = hashlib.sha256()
    for targets, encoded in parts:
        hashed.update(targets.tobytes())
        for image in encoded:
            hashed.update(hashlib.sha256(image).digest())
    return hashed.hexdigest()[:8]


def mirrored(dataset: Dataset) -> bool:
    """Return whether the images are assumed to keep their meaning when mirrored.

    This is false if the names of all classes have one character, like digits and letters.
    """
    return not (dataset.named and all(len(label) == 1 for label in dataset.labels))


def subset(dataset: Dataset, indices: streams.Indices) -> Dataset:
    """Return the examples at these indices, in this order."""
    chosen = indices.tolist()
    return replace(
        dataset,
        targets=[dataset.targets[index] for index in chosen],
        ids=[dataset.ids[index] for index in chosen],
        read=lambda position: dataset.read(chosen[position]),
    )
