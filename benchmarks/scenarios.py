"""Scenarios: the records that a learner gets, in order. A registry maps names to functions."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from benchmarks import streams

INCREMENTS = 5
TENTHS = 10
CONTRAST = 0.5
NOISE = 0.1  # standard deviation, of pixels in 0..1
NOISY_SHARE = 0.5
FLIPPED_SHARE = 0.6
LOW_WEIGHT = 0.1


@dataclass(frozen=True)
class Stream:
    """Records in order.

    `indices`, int64 [N], are the training images, `labels`, int64 [N], the classes in the records, and `weights`,
    float32 [N], the weights in their headers. `ends` are numbers of records after which the model is examined on all
    test images, rounded down to full batches. From record `changes_at` on, the images are corrupted.
    """

    indices: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    ends: list[int]
    changes_at: int

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def changes(self) -> bool:
        return self.changes_at < len(self)

    def whole_batches(self, size: int) -> "Stream":
        """Return the stream without the records that would not fill a batch."""
        n = len(self) - len(self) % size
        ends = [min(end, n) for end in self.ends]
        return replace(self, indices=self.indices[:n], labels=self.labels[:n], weights=self.weights[:n], ends=ends)


def _stream(targets: np.ndarray, parts: list[np.ndarray]) -> Stream:
    indices = np.concatenate(parts)
    ends = np.cumsum([len(part) for part in parts]).tolist()
    return Stream(indices, targets[indices], np.ones(len(indices), np.float32), ends, len(indices))


def increments(targets: np.ndarray, train: np.ndarray, seed: int) -> Stream:
    """Five increments with disjoint classes. This is Split-CIFAR-10 when there are ten classes."""
    return _stream(targets, streams.increments(targets, train, seed, INCREMENTS))


def shuffled(targets: np.ndarray, train: np.ndarray, seed: int) -> Stream:
    """All classes, mixed."""
    return _stream(targets, streams.iid(train, seed, INCREMENTS))


def tenths(targets: np.ndarray, train: np.ndarray, seed: int) -> Stream:
    """Ten increments, with all classes in each."""
    return _stream(targets, streams.iid(train, seed, TENTHS))


def class_tenths(targets: np.ndarray, train: np.ndarray, seed: int) -> Stream:
    """Ten increments with disjoint classes."""
    return _stream(targets, streams.increments(targets, train, seed, TENTHS))


def blurry(targets: np.ndarray, train: np.ndarray, seed: int) -> Stream:
    """Classes come and go as Gaussians (Shanahan et al. 2021)."""
    return _stream(targets, np.array_split(streams.gaussian_schedule(targets, train, seed)[0], INCREMENTS))


def imbalanced(targets: np.ndarray, train: np.ndarray, seed: int) -> Stream:
    """All classes, mixed, with sizes by Zipf's law: the largest class is 100 times the smallest."""
    return _stream(targets, streams.iid(streams.zipf(targets, train, seed), seed, INCREMENTS))


def drifting(targets: np.ndarray, train: np.ndarray, seed: int) -> Stream:
    """All classes, mixed. From the middle of the stream on, the images are corrupted, also those of the test."""
    stream = shuffled(targets, train, seed)
    return replace(stream, changes_at=len(stream) // 2)


def noisy(targets: np.ndarray, train: np.ndarray, seed: int) -> Stream:
    """All classes, mixed. Half of the records come from a producer with 60 % wrong labels and a weight of 0.1."""
    stream = shuffled(targets, train, seed)
    rng = np.random.default_rng([seed, 1])
    unreliable = rng.random(len(stream)) < NOISY_SHARE
    flipped = unreliable & (rng.random(len(stream)) < FLIPPED_SHARE)
    classes = int(targets.max()) + 1
    if classes < 2:
        raise ValueError("one class has no wrong labels")
    others = (stream.labels + rng.integers(1, classes, len(stream))) % classes
    weights = np.where(unreliable, LOW_WEIGHT, 1.0).astype(np.float32)
    return replace(stream, labels=np.where(flipped, others, stream.labels), weights=weights)


SCENARIOS: dict[str, Callable[[np.ndarray, np.ndarray, int], Stream]] = {
    "increments": increments,
    "shuffled": shuffled,
    "blurry": blurry,
    "imbalanced": imbalanced,
    "drifting": drifting,
    "noisy": noisy,
    "tenths": tenths,
    "class_tenths": class_tenths,
}
"""From the classes of all training images int64 [N], the indices of those that may be learned, and a seed."""


def corrupted(pixels_NHWC: np.ndarray, seed: int) -> np.ndarray:
    """Halve the contrast and add Gaussian noise (two corruptions of Hendrycks and Dietterich 2019); uint8."""
    rng = np.random.default_rng(seed)
    x_NHWC = pixels_NHWC.astype(np.float32) / 255
    mean_N111 = x_NHWC.mean((1, 2, 3), keepdims=True)
    x_NHWC = mean_N111 + CONTRAST * (x_NHWC - mean_N111) + rng.normal(0, NOISE, x_NHWC.shape)
    return (255 * x_NHWC.clip(0, 1)).round().astype(np.uint8)
