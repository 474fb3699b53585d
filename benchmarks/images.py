"""The images of a benchmark: a training and a test part, from any folder that `stream-learner feed` reads."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks import streams
from stream_learner.errors import DataError
from stream_learner.local.datasets import Dataset, open_dataset

TEST_SHARE = 1 / 6  # CIFAR's and MNIST's, near enough


def open_parts(path: Path | None) -> tuple[Dataset, Dataset]:
    """(training part, test part) of a data set: folders `train` and `test`, or parquet files named so.

    Where there is no test part, a sixth of each class is it, always the same. Raises DataError.
    """
    if path and all((path / part).is_dir() for part in ("train", "test")):
        return open_dataset(path / "train"), open_dataset(path / "test")
    try:
        return open_dataset(path, "train"), open_dataset(path, "test")
    except DataError:
        dataset = open_dataset(path)
        train, test = streams.split(np.array(dataset.targets), 0, TEST_SHARE)
        return subset(dataset, train), subset(dataset, test)


def subset(dataset: Dataset, indices: streams.Indices) -> Dataset:
    """The examples at these indices, in this order."""
    chosen = indices.tolist()
    return replace(
        dataset,
        targets=[dataset.targets[index] for index in chosen],
        ids=[dataset.ids[index] for index in chosen],
        read=lambda position: dataset.read(chosen[position]),
    )
