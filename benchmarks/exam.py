"""Exam of a model: test images, and the model's predictions."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from benchmarks.scores import Point, evaluate
from stream_learner.learning import evaluation

SAMPLE = 2_000
UNKNOWN = -1


class Exam:
    """Test images, uint8 [N, H, W, C], and their classes, int64 [N]."""

    def __init__(self, pixels_NHWC: np.ndarray, targets: np.ndarray):
        self._pixels = pixels_NHWC
        self._targets = targets
        self._sample = np.random.default_rng(0).permutation(len(targets))[:SAMPLE]

    def take(self, model: nn.Module, device: torch.device, classes: Sequence[int], sample: bool = False) -> Point:
        """Let a model predict the images, or the same 2,000 of them with `sample`.

        `classes` are those of the rows of the model's head. Images of other classes are not predicted.
        """
        among = self._sample if sample else np.arange(len(self._targets))
        targets = self._targets[among]
        seen = np.isin(targets, classes)
        predictions = np.full(len(targets), UNKNOWN)
        predictions[seen] = np.asarray(classes, np.int64)[evaluation.predict(model, self._pixels[among[seen]], device)]
        return evaluate(predictions, targets, np.isin(np.arange(self._targets.max() + 1), classes))
