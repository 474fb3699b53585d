"""Logits and probabilities of a network."""

import numpy as np
import torch

from stream_learner.networks.classifier import ImageClassifier


@torch.inference_mode()
def answers(network: ImageClassifier, images_NHWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return logits and probabilities, float32 [N, classes], of uint8 images [N, H, W, C].

    The network computes them in float32 and in evaluation mode, on its own device.
    """
    was_training = network.training
    network.eval()
    logits = network(torch.from_numpy(images_NHWC).to(network.mean.device)).float()
    network.train(was_training)
    return logits.cpu().numpy(), logits.softmax(1).cpu().numpy()
