"""Predictions of a network: labels and probabilities."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from stream_learner.contract.vocabulary import Label

# Images in one forward pass. This limits the memory for activations.
BATCH = 256

Model = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Computes logits and probabilities, float32 [N, classes], of uint8 images [N, H, W, C]."""


class Predictions(NamedTuple):
    """The predicted label of each image, and the probabilities of all classes, float32 [N, classes], in the order of
    the model's labels."""

    labels: list[Label]
    probabilities: np.ndarray


def compute(model: Model, classes: int, images_NHWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return logits and probabilities, float32 [N, classes], of any number of images, uint8 [N, H, W, C]."""
    logits, probabilities = np.empty((2, len(images_NHWC), classes), np.float32)
    for start in range(0, len(images_NHWC), BATCH):
        part = slice(start, start + BATCH)
        logits[part], probabilities[part] = model(images_NHWC[part])
    return logits, probabilities


def predict(model: Model, labels: Sequence[Label], images_NHWC: np.ndarray) -> Predictions:
    """Predict images, uint8 [N, H, W, C]. `labels` holds the label of each output of the network, in order."""
    _, probabilities = compute(model, len(labels), images_NHWC)
    return Predictions([labels[index] for index in probabilities.argmax(1)], probabilities)
