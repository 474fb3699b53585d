"""Predictions and scores on held-out samples."""

import numpy as np
import torch
from torch import Tensor, nn

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


def own_probabilities(logits: Tensor, labels: Tensor) -> np.ndarray:
    """Softmax probability of each sample's own class, float32 [N]; 0 where the model has no such class, and where its
    logits are not finite. Logits [N, classes] of any float type, labels int64 [N]."""
    known = labels < logits.shape[1]
    probabilities = logits.float().softmax(1).gather(1, labels.where(known, 0)[:, None])[:, 0]
    return probabilities.where(known, 0).nan_to_num(0).cpu().numpy()


def score(predictions: np.ndarray, targets: np.ndarray, labels: list[Label]) -> Accuracy:
    """Accuracy, overall and per class; `predictions` and `targets` are class indices, int64 [N], into `labels`."""
    total = np.bincount(targets, minlength=len(labels))
    correct = np.bincount(targets[predictions == targets], minlength=len(labels))
    return accuracy(zip(labels, correct.tolist(), total.tolist(), strict=True))
