"""Scores of a learner, from the number of correct images of each class at points of its stream."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Point(NamedTuple):
    """One evaluation: figures per class, over its evaluation images.

    `correct` and `total` are int64 [classes], and include images of classes that were not seen. `seen`, bool [classes],
    marks the classes of which the learner has seen an image. `total` may differ between points, because frequent points
    use fewer images.
    """

    correct: NDArray[np.int64]
    total: NDArray[np.int64]
    seen: NDArray[np.bool_]

    @property
    def asked(self) -> int:
        """Return the number of images of classes that were seen."""
        return int(self.total[self.seen].sum())


def summary(points: Sequence[Point], last: Sequence[Point]) -> dict[str, Any]:
    """Return as JSON: final (all classes), anytime and worst-case accuracy (0..1), and spread over the last 100 steps.

    `points` are spread evenly over the stream and end with it. `last` are spread over its last 100 steps. A figure that
    needs two points is None with fewer.
    """
    along = len(points) > 1
    return {
        "final": accuracy(points[-1]),
        "anytime": anytime(points) if along else None,
        "worst": worst(points) if along else None,
        "last_100_steps": spread(last) if len(last) > 1 else None,
    }


def evaluate(predictions: NDArray[np.int64], targets: NDArray[np.int64], seen: NDArray[np.bool_]) -> Point:
    """Count correct predictions per class.

    `predictions` and `targets` are classes, [N]. A prediction outside the known classes counts as wrong.
    """
    right = targets[predictions == targets]
    return Point(np.bincount(right, minlength=len(seen)), np.bincount(targets, minlength=len(seen)), seen)


def accuracy(point: Point) -> float:
    """Return the share of correct predictions (0..1) among the images of all classes, seen or not."""
    return float(point.correct.sum() / point.total.sum())


def accuracy_of_seen(point: Point) -> float | None:
    """Return the share of correct predictions (0..1) among the images of classes seen so far, None without any."""
    return float(point.correct[point.seen].sum() / point.asked) if point.asked else None


def anytime(points: Sequence[Point]) -> float:
    """Return the average anytime accuracy (Caccia et al. 2020): the mean over points of the accuracy on seen classes.

    Points without images of seen classes are left out.
    """
    accuracies = [accuracy_of_seen(point) for point in points]
    return float(np.mean([accuracy for accuracy in accuracies if accuracy is not None]))


def worst(points: Sequence[Point]) -> float:
    """Return the worst-case accuracy: the lowest accuracy of each class since it was first seen, averaged over classes.

    After De Lange et al. 2023, "Continual evaluation for lifelong learning: identifying the stability gap".

    Classes take the place of the paper's tasks, so that the figure is defined for streams without boundaries. The
    classes seen last are treated like all others. Classes that were never seen, or have no evaluation images, are left
    out.
    """
    recall = np.array([point.correct / np.maximum(point.total, 1) for point in points])
    counted = np.array([point.seen & (point.total > 0) for point in points])
    least = np.where(counted, recall, np.inf).min(axis=0)
    return float(least[counted.any(axis=0)].mean())


def spread(points: Sequence[Point]) -> dict[str, float]:
    """Return mean, standard deviation (of a sample) and range of the accuracy over these points."""
    accuracies = [accuracy(point) for point in points]
    return {
        "mean": float(np.mean(accuracies)),
        "std": float(np.std(accuracies, ddof=1)),
        "range": float(np.ptp(accuracies)),
    }
