"""A batch's training samples before they are learned, their prediction, and their facts, which every rank knows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

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


@dataclass(frozen=True)
class Predicted:
    """A shard's training samples with their class indices [N], and their prediction.

    They are predicted when the prediction is first needed, which must be before they are learned.
    """

    samples: Sequence[Sample]
    images_NHWC: Tensor
    labels: Tensor
    trainer: Trainer

    @classmethod
    def by(
        cls, trainer: Trainer, samples: Sequence[Sample], index_of: Mapping[Label, int], device: torch.device
    ) -> "Predicted":
        """Take the samples that `trainer` predicts. `index_of` holds the class index of each label."""
        labels = torch.tensor([index_of[sample.label] for sample in samples], dtype=torch.int64).to(device)
        if not samples:
            return cls(samples, torch.empty(0, 1, 1, 1, dtype=torch.uint8, device=device), labels, trainer)
        pixels = [sample.pixels_HWC for sample in samples]
        images_NHWC = filled((len(pixels), *pixels[0].shape), lambda out: np.stack(pixels, out=out), device)
        return cls(samples, images_NHWC, labels, trainer)

    @cached_property
    def _prediction(self) -> tuple[Tensor, Tensor]:
        if self.samples:
            return self.trainer.predict(self.images_NHWC)
        head = self.trainer.model.head
        features_NF, logits = (
            torch.empty(0, n, device=self.labels.device) for n in (head.in_features, head.out_features)
        )
        return features_NF, logits

    def features_NF(self) -> Tensor:
        """Return the samples' features [N, F]."""
        return self._prediction[0]

    def logits(self) -> Tensor:
        """Return the samples' logits [N, classes]."""
        return self._prediction[1]

    def facts(self, *, predicted: bool) -> np.ndarray:
        """Return the samples' facts, `FACTS` [N]. Unless `predicted`, the facts about the prediction are 0."""
        facts = np.zeros(len(self.samples), FACTS)
        facts["labels"] = self.labels.cpu().numpy()
        facts["weights"] = [sample.weight for sample in self.samples]
        facts["timestamps_ms"] = [sample.timestamp_ms for sample in self.samples]
        if predicted:
            facts["predictions"], facts["confidences"] = evaluation.top(self.logits())
        return facts

    def own_probabilities(self) -> np.ndarray:
        """Return the probability of each sample's own class, float32 [N]."""
        return evaluation.own_probabilities(self.logits(), self.labels)
