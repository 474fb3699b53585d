"""Scores of a learner, from the number of correct images of each class at points of its stream."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Point(NamedTuple):
    """One evaluation: per class, over its evaluation images.

    `correct` and `total`, the images of classes that were not seen included, are int64 [classes]; `seen`, bool
    [classes], tells the classes of which the learner had been shown an image by then. `total` may differ between
    points: a few images do where many points are wanted.
    """

    correct: NDArray[np.int64]
    total: NDArray[np.int64]
    seen: NDArray[np.bool_]

    @property
    def asked(self) -> int:
        """How many images the model was asked about: those of the classes seen."""
        return int(self.total[self.seen].sum())


def summary(points: Sequence[Point], last: Sequence[Point]) -> dict[str, Any]:
    """As JSON: final (all classes), anytime and worst-case accuracy (0..1), and the spread over the last 100 steps.

    `points` are spread evenly over the stream and end with it, `last` over its last 100 steps. None is what fewer than
    two of them do not tell.
    """
    along = len(points) > 1
    return {
        "final": accuracy(points[-1]),
        "anytime": anytime(points) if along else None,
        "worst": worst(points) if along else None,
        "last_100_steps": spread(last) if len(last) > 1 else None,
    }


def evaluate(predictions: NDArray[np.int64], targets: NDArray[np.int64], seen: NDArray[np.bool_]) -> Point:
    """`predictions` and `targets` are classes, [N]; a prediction outside the known classes is merely wrong."""
    right = targets[predictions == targets]
    return Point(np.bincount(right, minlength=len(seen)), np.bincount(targets, minlength=len(seen)), seen)


def accuracy(point: Point) -> float:
    """Share of right answers (0..1) among the images of all classes, seen or not."""
    return float(point.correct.sum() / point.total.sum())


def accuracy_of_seen(point: Point) -> float | None:
    """Share of right answers (0..1) among the images of the classes seen so far; None when there is none of them."""
    return float(point.correct[point.seen].sum() / point.asked) if point.asked else None


def anytime(points: Sequence[Point]) -> float:
    """Average anytime accuracy (Caccia et al. 2020): the mean over the points of the accuracy on the classes seen,
    without points at which there was no image of them."""
    accuracies = [accuracy_of_seen(point) for point in points]
    return float(np.mean([accuracy for accuracy in accuracies if accuracy is not None]))


def worst(points: Sequence[Point]) -> float:
    """Worst-case accuracy, after De Lange et al. 2023, "Continual evaluation for lifelong learning: identifying the
    stability gap": the least accuracy that each class ever had since it was first seen, averaged over the classes.

    Classes stand for the paper's tasks, so that it is defined for streams without boundaries; the classes seen last are
    treated like all others. Classes that were never seen, or without evaluation images, are left out.
    """
    recall = np.array([point.correct / np.maximum(point.total, 1) for point in points])
    counted = np.array([point.seen & (point.total > 0) for point in points])
    least = np.where(counted, recall, np.inf).min(axis=0)
    return float(least[counted.any(axis=0)].mean())


def spread(points: Sequence[Point]) -> dict[str, float]:
    """Mean, standard deviation (of a sample) and range of the accuracy over these points."""
    accuracies = [accuracy(point) for point in points]
    return {
        "mean": float(np.mean(accuracies)),
        "std": float(np.std(accuracies, ddof=1)),
        "range": float(np.ptp(accuracies)),
    }
