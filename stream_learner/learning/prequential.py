"""Prequential figures: how well the model predicts training samples before it learns them."""

import math
from typing import Any

import numpy as np
import torch
from msgspec import Struct

from stream_learner.contract.vocabulary import Label
from stream_learner.contract.window import RECENT_SAMPLES, Confusion, Recent
from stream_learner.learning.evaluation import calibration_error, score
from stream_learner.learning.state_dict import StateDict
from stream_learner.learning.stored import Count, NonNegative, parse
from stream_learner.networks.tensors import tensor, within

TOP_CONFUSIONS = 10
ROUNDING = 1e-5  # tolerance for rounding errors of a softmax in float32


class StoredMean(Struct):
    mean: NonNegative
    weight: NonNegative


class Stored(Struct):
    faded: dict[str, Any]
    batches: Count = 0  # only in states with a share below 1


class FadingMean:
    """Mean in which each new sample multiplies the weights of all earlier samples by 1 - 1/window.

    This is the fading factor of Gama, Sebastiao and Rodrigues, "On evaluating stream learning algorithms" (2013).
    """

    def __init__(self, window: int):
        self._fade = 1 - 1 / window
        self._mean = 0.0
        self._weight = 0.0  # total weight of all samples so far; it approaches 1

    def add(self, total: float, count: int) -> None:
        """Add `count` samples of the same age. The sum of their values is `total`."""
        keep = self._fade**count
        before = self._weight * keep
        self._weight = before + 1 - keep
        self._mean = (self._mean * before + total / count * (1 - keep)) / self._weight

    @property
    def mean(self) -> float:
        """The mean, 0 before the first sample."""
        return self._mean

    def state_dict(self) -> dict[str, float]:
        return {"mean": self._mean, "weight": self._weight}

    def load_state_dict(self, document: dict[str, float]) -> None:
        stored = parse(document, StoredMean)
        self._mean, self._weight = stored.mean, stored.weight


class Prequential:
    """Labels and predictions of the last `RECENT_SAMPLES` training samples whose predictions count.

    All figures are computed from these samples, except the faded accuracy, which covers all such samples so far.
    """

    def __init__(self, share: float = 1.0):
        """Take `share`, above 0 up to 1: the share of the batches whose predictions count."""
        self._share = share
        self._batches = 0
        self._faded = FadingMean(RECENT_SAMPLES)
        self._window = {
            "labels": np.empty(0, np.int64),
            "predictions": np.empty(0, np.int64),
            "confidences": np.empty(0, np.float32),
        }
        self._recent: Recent | None = None  # the figures of the window, once they were asked for

    def begin(self) -> bool:
        """Begin a batch of training samples. Return whether its predictions count.

        The batches that count are spread evenly over all batches. The first one counts.
        """
        before, self._batches = self._batches, self._batches + 1
        return math.ceil(self._share * self._batches) > math.ceil(self._share * before)

    def add(self, labels: np.ndarray, predictions: np.ndarray, confidences: np.ndarray) -> None:
        """Add a batch.

        `labels` and `predictions` are class indices, int64 [N]. `confidences` are the probabilities of the predictions,
        float32 [N].
        """
        self._recent = None
        self._faded.add(int((predictions == labels).sum()), len(labels))
        new = {"labels": labels, "predictions": predictions, "confidences": confidences}
        self._window = {
            name: np.concatenate([array, new[name]])[-RECENT_SAMPLES:] for name, array in self._window.items()
        }

    def retire(self, source: int, target: int | None) -> None:
        """Move samples and predictions of class `source` to class `target`. If `target` is None, drop the samples."""
        self._recent = None
        if target is None:
            kept = self._window["labels"] != source
            self._window = {name: array[kept] for name, array in self._window.items()}
        else:
            for name in ("labels", "predictions"):
                self._window[name] = np.where(self._window[name] == source, target, self._window[name])

    def recent(self, labels: list[Label]) -> Recent | None:
        """Return the figures, or None before the first sample. `labels` holds the label of each class index."""
        targets, predictions, confidences = self._window.values()
        if self._recent is None and len(targets):
            self._recent = Recent(
                accuracy=score(predictions, targets, labels),
                faded_accuracy=self._faded.mean,
                kappa=kappa(predictions, targets),
                calibration_error=calibration_error(predictions == targets, confidences),
                confusions=[
                    Confusion(labels[target], labels[prediction], count)
                    for target, prediction, count in confusions(predictions, targets)[:TOP_CONFUSIONS]
                ],
            )
        return self._recent

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the window, the faded accuracy and, with a share below 1, the number of batches."""
        window = {name: torch.from_numpy(array.copy()) for name, array in self._window.items()}
        counter = {"batches": self._batches} if self._share < 1 else {}
        return {"faded": self._faded.state_dict()} | counter | window

    def load_state_dict(self, state: StateDict, classes: int) -> None:
        """Restore a state from `state_dict` of a learner that knows `classes` classes.

        Raises ValueError when the state is malformed.
        """
        self._recent = None
        samples = tensor(state, "labels", torch.int64, None)
        if len(samples) > RECENT_SAMPLES:
            raise ValueError(f"tensor labels has {len(samples)} elements, more than {RECENT_SAMPLES}")
        for name in ("labels", "predictions"):
            indices = within(tensor(state, name, torch.int64, len(samples)), name, 0, classes)
            self._window[name] = indices.numpy().copy()
        confidences = tensor(state, "confidences", torch.float32, len(samples)).numpy().copy()
        if (confidences < 0).any() or (confidences > 1 + ROUNDING).any():
            raise ValueError("tensor confidences holds numbers that are not probabilities")
        self._window["confidences"] = confidences
        stored = parse(state, Stored)
        self._faded.load_state_dict(stored.faded)
        self._batches = stored.batches


def kappa(predictions: np.ndarray, targets: np.ndarray) -> float | None:
    """Compute Cohen's kappa (1960), (accuracy - chance) / (1 - chance).

    Chance is the expected accuracy of random guesses that name each class as often as the model does. Class indices are
    int64 [N]. The result is None if chance is 1: all samples and all predictions are of one class.
    """
    classes = int(max(predictions.max(), targets.max())) + 1
    predicted, present = (np.bincount(indices, minlength=classes) for indices in (predictions, targets))
    chance = float(predicted @ present) / len(targets) ** 2
    return (float((predictions == targets).mean()) - chance) / (1 - chance) if chance < 1 else None


def confusions(predictions: np.ndarray, targets: np.ndarray) -> list[tuple[int, int, int]]:
    """Return (target, prediction, count) for each pair of classes that the model confused, most frequent first."""
    wrong = predictions != targets
    pairs, counts = np.unique(np.stack([targets[wrong], predictions[wrong]], 1), axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [(int(t), int(p), int(n)) for (t, p), n in zip(pairs[order], counts[order], strict=True)]
