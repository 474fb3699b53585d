"""Predict labels and probabilities with a network."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from stream_learner.contract.vocabulary import Label
from stream_learner.networks.classifier import ImageClassifier

# Images in one forward pass. This limits the memory for activations.
BATCH = 256


class Predictions(NamedTuple):
    """The predicted label of each image, and the probabilities of all classes, float32 [N, classes], in the order of
    the model's labels."""

    labels: list[Label]
    probabilities: np.ndarray


@torch.inference_mode()
def predict(network: ImageClassifier, labels: Sequence[Label], images_NHWC: np.ndarray) -> Predictions:
    """Predict uint8 images [N, H, W, C]: float32 arithmetic, evaluation mode, on the network's device.

    `labels` holds the label of each output of the network, in order.
    """
    was_training = network.training
    network.eval()
    probabilities = np.empty((len(images_NHWC), len(labels)), np.float32)
    for start in range(0, len(images_NHWC), BATCH):
        part = slice(start, start + BATCH)
        images_on_device = torch.from_numpy(images_NHWC[part]).to(network.mean.device)
        probabilities[part] = network(images_on_device).float().softmax(1).cpu().numpy()
    network.train(was_training)
    return Predictions([labels[index] for index in probabilities.argmax(1)], probabilities)
