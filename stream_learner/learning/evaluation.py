"""Predictions and scores on held-out samples."""

import numpy as np
import torch
from torch import nn

from stream_learner.records.record import Label
from stream_learner.records.window import Accuracy, accuracy

EVALUATION_BATCH = 256


@torch.inference_mode()
def predict(model: nn.Module, images_NHWC: np.ndarray, device: torch.device) -> np.ndarray:
    """Class indices, int64 [N], for uint8 images; float32 arithmetic, evaluation mode, no random draw."""
    was_training = model.training
    model.eval()
    predictions = [
        model(torch.from_numpy(images_NHWC[i : i + EVALUATION_BATCH]).to(device)).argmax(1).cpu()
        for i in range(0, len(images_NHWC), EVALUATION_BATCH)
    ]
    model.train(was_training)
    return torch.cat(predictions).numpy() if predictions else np.empty(0, np.int64)


def score(predictions: np.ndarray, targets: np.ndarray, labels: list[Label]) -> Accuracy:
    """Accuracy, overall and per class; `predictions` and `targets` are class indices, int64 [N], into `labels`."""
    total = np.bincount(targets, minlength=len(labels))
    correct = np.bincount(targets[predictions == targets], minlength=len(labels))
    return accuracy(zip(labels, correct.tolist(), total.tolist(), strict=True))
