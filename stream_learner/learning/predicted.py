"""A batch's training samples, predicted before they are learned, and their facts, which every rank knows."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stream_learner.contract.vocabulary import Label
from stream_learner.formats.record import Sample
from stream_learner.learning import evaluation
from stream_learner.learning.placement import filled
from stream_learner.learning.trainers import Trainer

FACTS = np.dtype(
    [
        ("labels", np.int64),
        ("weights", np.float64),
        ("timestamps_ms", np.int64),
        ("predictions", np.int64),
        ("confidences", np.float32),
    ]
)
"""Facts about a training sample that every rank knows: class index, weight of the record, timestamp, prediction."""


class Predicted(NamedTuple):
    """A shard's training samples with their class indices [N], features [N, F] and logits [N, classes]."""

    samples: Sequence[Sample]
    images_NHWC: Tensor
    labels: Tensor
    features_NF: Tensor
    logits: Tensor

    @classmethod
    def by(
        cls, trainer: Trainer, samples: Sequence[Sample], index_of: Mapping[Label, int], device: torch.device
    ) -> "Predicted":
        """Predict samples. `index_of` holds the class index of each label."""
        labels = torch.tensor([index_of[sample.label] for sample in samples], dtype=torch.int64).to(device)
        if not samples:
            head = trainer.model.head
            features_NF, logits = (torch.empty(0, n, device=device) for n in (head.in_features, head.out_features))
            return cls(samples, torch.empty(0, 1, 1, 1, dtype=torch.uint8, device=device), labels, features_NF, logits)
        pixels = [sample.pixels_HWC for sample in samples]
        images_NHWC = filled((len(pixels), *pixels[0].shape), lambda out: np.stack(pixels, out=out), device)
        return cls(samples, images_NHWC, labels, *trainer.predict(images_NHWC))

    def facts(self) -> np.ndarray:
        """Return the samples' facts, `FACTS` [N]."""
        facts = np.empty(len(self.samples), FACTS)
        facts["labels"] = self.labels.cpu().numpy()
        facts["weights"] = [sample.weight for sample in self.samples]
        facts["timestamps_ms"] = [sample.timestamp_ms for sample in self.samples]
        facts["predictions"], facts["confidences"] = evaluation.top(self.logits)
        return facts

    def own_probabilities(self) -> np.ndarray:
        """Return the probability of each sample's own class, float32 [N]."""
        return evaluation.own_probabilities(self.logits, self.labels)
