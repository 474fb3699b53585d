"""Predictions and scores on held-out samples."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from stream_learner.contract.vocabulary import Label
from stream_learner.contract.window import Accuracy, accuracy

EVALUATION_BATCH = 256
CALIBRATION_BINS = 15


def predict(model: nn.Module, images_NHWC: np.ndarray, device: torch.device) -> np.ndarray:
    """Predict the class indices, int64 [N], of uint8 images.

    The network computes in float32 and in evaluation mode, and draws no random numbers.
    """
    return predict_with_confidence(model, images_NHWC, device)[0]


def predict_with_confidence(
    model: nn.Module, images_NHWC: np.ndarray, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Return the result of `predict`, and the probability of each prediction, float32 [N]."""
    parts = [top(logits) for logits in _logits(model, images_NHWC, device)]
    if not parts:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    predictions, confidences = zip(*parts, strict=True)
    return np.concatenate(predictions), np.concatenate(confidences)


def predict_with_logits(
    model: nn.Module, images_NHWC: np.ndarray, classes: int, device: torch.device
) -> tuple[np.ndarray, Tensor]:
    """Return the result of `predict`, and the logits, float32 [N, classes] on the CPU."""
    logits = torch.empty(len(images_NHWC), classes)
    parts = []
    for start, part in zip(range(0, len(logits), EVALUATION_BATCH), _logits(model, images_NHWC, device), strict=True):
        parts.append(top(part)[0])
        logits[start : start + EVALUATION_BATCH] = part
    return np.concatenate(parts) if parts else np.empty(0, np.int64), logits


@torch.inference_mode()
def _logits(model: nn.Module, images_NHWC: np.ndarray, device: torch.device) -> Iterator[Tensor]:
    """Yield the logits of each batch of images. The model is in evaluation mode until the last batch was taken."""
    was_training = model.training
    model.eval()
    for i in range(0, len(images_NHWC), EVALUATION_BATCH):
        yield model(torch.from_numpy(images_NHWC[i : i + EVALUATION_BATCH]).to(device))
    model.train(was_training)


def top(logits: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the predicted class indices, int64 [N], and their probabilities, float32 [N].

    The probabilities are a softmax of the logits [N, classes] in float32. A probability is 0 if the softmax is NaN.
    """
    confidences = logits.float().softmax(1).amax(1).nan_to_num(0.0)
    return logits.argmax(1).cpu().numpy(), confidences.cpu().numpy()


def own_probabilities(logits: Tensor, labels: Tensor) -> np.ndarray:
    """Return the softmax probability of each sample's own class, float32 [N].

    The probability is 0 if the model does not know the class, or if the softmax is NaN. Logits [N, classes] have any
    float type. Labels are int64 [N].
    """
    known = labels < logits.shape[1]
    probabilities = logits.float().softmax(1).gather(1, labels.where(known, 0)[:, None])[:, 0]
    return probabilities.where(known, 0).nan_to_num(0).cpu().numpy()


def score(predictions: np.ndarray, targets: np.ndarray, labels: list[Label]) -> Accuracy:
    """Return the accuracy, overall and per class. `predictions` and `targets`, int64 [N], are indices into `labels`."""
    total = np.bincount(targets, minlength=len(labels))
    correct = np.bincount(targets[predictions == targets], minlength=len(labels))
    return accuracy(zip(labels, correct.tolist(), total.tolist(), strict=True))


def calibration_error(correct: np.ndarray, confidences: np.ndarray) -> float | None:
    """Return the expected calibration error (0..1): the mean distance of accuracy from confidence over 15 bins.

    Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv:1706.04599). `correct` is bool [N], `confidences`
    float32 [N] in 0..1. Without samples the result is None.
    """
    if not len(correct):
        return None
    # A bin includes its upper bound.
    bins = np.ceil(confidences * CALIBRATION_BINS).astype(int).clip(1, CALIBRATION_BINS)
    gaps = np.bincount(bins, weights=correct - confidences.astype(np.float64))
    return float(np.abs(gaps).sum() / len(correct))
