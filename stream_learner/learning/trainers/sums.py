"""Training of a solved head, by sums over the samples."""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from stream_learner import networks as models
from stream_learner.config import Settings
from stream_learner.learning.growth import grow_head
from stream_learner.learning.heads import StatisticsHead, silence
from stream_learner.learning.parallel import Parallel
from stream_learner.learning.placement import Placement
from stream_learner.learning.state_dict import StateDict, prefixed, under
from stream_learner.learning.stored import part
from stream_learner.learning.trainers.base import Trained, Trainer, TrainingBatch
from stream_learner.networks.tensors import tensor, within

MAX_SAMPLES = 2**53


class SumTrainer(Trainer):
    """Adds samples to the sums of a solved head, and computes the network's linear layer from the sums.

    The head is solved at each decision about a release and when a class retires. It is also solved when the number of
    samples reaches a power of two, so that a new run soon predicts. In every execution, the head is solved after the
    same batches. A class is predicted from the first solve after its first sample. The rest of the network is frozen.

    Every rank adds the features of all shards' samples, because they are smaller than the sums: `ridge` has a sum for
    each pair of features.
    """

    def __init__(self, settings: Settings, placement: Placement, parallel: Parallel, head: type[StatisticsHead]):
        """Build the trainer of a head.

        Features are always computed in float32: `learning.precision` applies only to trainers that take optimizer
        steps.
        """
        self._head_class = head
        super().__init__(settings, replace(placement, autocast=False), parallel)

    def _begin(self, model: models.ImageClassifier) -> None:
        super()._begin(model)
        self._head = self._head_class(model.head.in_features, self._placement.device)
        self._samples = 0

    @torch.no_grad()
    def learn(self, batch: TrainingBatch) -> Trained:
        """Add the samples. Add nothing if a feature or weight is not finite."""
        features_NF = self._of_all([portion.features_NF() for portion in batch.portions])
        labels = self._of_all([portion.stream.labels for portion in batch.portions])
        weights = self._of_all([portion.stream.weights for portion in batch.portions])
        if not (features_NF.isfinite().all() and weights.isfinite().all()):
            return Trained(finite=False)
        self._head.observe(features_NF, labels, weights)
        before, self._samples = self._samples, self._samples + int((weights > 0).sum())
        if self._samples.bit_length() > before.bit_length():
            self.solve()
        return Trained()

    def _of_all(self, rows: list[Tensor]) -> Tensor:
        """Return the rows of all shards as one tensor. `rows` are those of the local shards."""
        if self._parallel.shards == 1:
            return rows[0]
        return torch.from_numpy(self._parallel.joined([one.cpu().numpy() for one in rows])).to(self._placement.device)

    def solve(self) -> None:
        self._solve(self.model.head)

    def as_released(self) -> models.ImageClassifier:
        """Return the network as a release would have it now: a copy with a newly solved head."""
        network = copy.deepcopy(self.model)
        self._solve(network.head)
        return network

    @torch.no_grad()
    def _solve(self, layer: nn.Linear) -> None:
        weight_CF, bias_C = self._head.solve(layer.out_features)
        layer.weight.copy_(weight_CF)
        layer.bias.copy_(bias_C)

    # -- classes

    def _grow(self, classes: int) -> None:
        known = self.model.head.out_features
        grow_head(self.model, None, classes)
        silence(self.model.head, [*range(known, classes)])

    def _retire(self, source: int, target: int | None) -> None:
        self._head.retire(source, target)
        self.solve()

    def _revive(self, row: int) -> None:
        """Do nothing: a solve sets the row when its class has samples."""

    # -- state

    def state_dict(self) -> dict[str, Any]:
        sums = self._head.state_dict() | {"samples": torch.tensor(self._samples)}
        return super().state_dict() | prefixed("head", sums)

    @torch.no_grad()
    def load_state_dict(self, state: StateDict, classes: int) -> None:
        super().load_state_dict(state, classes)
        with part("head"):
            sums = under("head", state)
            self._head.load_state_dict(sums, classes)
            self._samples = int(within(tensor(sums, "samples", torch.int64), "samples", 0, MAX_SAMPLES))
