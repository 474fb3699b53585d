"""The network, its classes and its state, which both trainers share."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from msgspec import Struct
from torch import Tensor

from stream_learner import networks as models
from stream_learner.config import Settings
from stream_learner.contract.manifest import ModelSpec
from stream_learner.learning.parallel import Parallel
from stream_learner.learning.placement import Placement
from stream_learner.learning.spec import spec_of
from stream_learner.learning.state_dict import StateDict, copies, prefixed, under
from stream_learner.learning.stored import Count, NonNegative, parse, part
from stream_learner.learning.strategies import Minibatch
from stream_learner.networks.tensors import load_parameters, tensor
from stream_learner.networks.weights import load_body


class Portion(NamedTuple):
    """A shard's training samples of a batch, their features, and replay.

    `features_NF()` returns the samples' features, as `Trainer.predict` does. They are float32 for a solved head. Each
    call of `replay()` draws samples from the shard's memory. Everything that is drawn for the shard is drawn in
    the context `drawing()`. A shard without samples has an empty `stream`, and takes no part except in sums.
    """

    stream: Minibatch
    features_NF: Callable[[], Tensor]
    replay: Callable[[], Minibatch]
    drawing: Callable[[], AbstractContextManager] = nullcontext

    @property
    def samples(self) -> int:
        """Number of training samples."""
        return len(self.stream.labels)


class TrainingBatch(NamedTuple):
    """A batch: the portions of the local shards, and the factor of the learning rate."""

    portions: Sequence[Portion]
    learning_rate_factor: float


class Trained(NamedTuple):
    """Result of learning a batch: number of steps, sum of their losses, and whether all numbers were finite."""

    steps: int = 0
    loss_sum: float = 0.0
    finite: bool = True

    @property
    def undone(self) -> bool:
        """Whether nothing of the batch was learned. If a later step is not finite, the steps before it are kept."""
        return not self.finite and not self.steps


class Stored(Struct):
    """Values in the state of every trainer. With a solved head, only `silent_rows` changes."""

    loss_normaliser: NonNegative
    fresh_rows: list[Count]
    silent_rows: list[Count]
    averaged_steps: Count


class Trainer(ABC):
    """Base class of trainers, which train a network on batches. The state holds everything that a batch can change."""

    replays: bool = False
    """Whether the trainer also learns samples from a memory."""
    stores_logits: bool = False
    """Whether the memory keeps logits with its samples."""

    def __init__(self, settings: Settings, placement: Placement, parallel: Parallel):
        self._settings = settings
        self._placement = placement
        self._parallel = parallel
        model = self._build(classes=0)
        if settings.model.weights:
            load_body(model, settings.model.weights)
        self._begin(model)

    def _begin(self, model: models.ImageClassifier) -> None:
        """Begin with this network. Reset everything else to its initial state."""
        self.model = model
        self._silent_rows: list[int] = []  # of retired classes

    @abstractmethod
    def learn(self, batch: TrainingBatch) -> Trained:
        """Learn a batch that has at least one weight above 0. A step that is not finite is undone.

        The result is the same on every rank.
        """

    @property
    def evaluated(self) -> models.ImageClassifier:
        """The network that predicts and is released."""
        return self.model

    @abstractmethod
    def solve(self) -> None:
        """Solve the head from all samples learned, if it is a solved head."""

    def as_released(self) -> models.ImageClassifier:
        """Return the network as a release would have it now."""
        return self.evaluated

    @torch.inference_mode()
    def predict(self, images_NHWC: Tensor) -> tuple[Tensor, Tensor]:
        """Return features [N, F] and logits [N, classes]."""
        network = self.evaluated
        if network.training:
            network.eval()
        with self._placement.training():
            features_NF = network.features(images_NHWC)
            return features_NF, network.head(features_NF)

    def kept_logits(self, logits: Callable[[], Tensor]) -> Tensor | None:
        """Return the logits [N, classes] for the memory to keep with the samples, or None if it keeps no logits."""
        del logits

    # -- classes

    def set_classes(self, classes: int, retired: Mapping[int, int | None]) -> None:
        """Extend the head to `classes` rows, and silence exactly the rows of retired classes.

        `retired` holds their indices in the order of retiring, each with the index that took over its samples, or None.
        """
        if classes > self.model.head.out_features:
            self._grow(classes)
        for row in [row for row in self._silent_rows if row not in retired]:
            self._silent_rows.remove(row)
            self._revive(row)
        for source, target in retired.items():
            if source not in self._silent_rows:
                self._silent_rows.append(source)
                self._retire(source, target)

    @abstractmethod
    def _grow(self, classes: int) -> None:
        """Extend the head to `classes` rows."""

    @abstractmethod
    def _retire(self, source: int, target: int | None) -> None:
        """Silence a row. The samples of its class now belong to class `target`, or to no class if `target` is None."""

    @abstractmethod
    def _revive(self, row: int) -> None:
        """Let a row that was silent learn again."""

    # -- state

    def state_dict(self) -> dict[str, Any]:
        """Return copies of the state's tensors, on the CPU, and the rest of the state, as JSON."""
        return {
            "loss_normaliser": float(self._settings.batch.size),
            "fresh_rows": [],
            "silent_rows": list(self._silent_rows),
            "averaged_steps": 0,
        } | prefixed("model", copies(self.model.state_dict()))

    @torch.no_grad()
    def load_state_dict(self, state: StateDict, classes: int) -> None:
        """Restore a state from `state_dict` of a network with `classes` classes. Raises ValueError for other states."""
        stored = parse(state, Stored)
        rows = stored.fresh_rows + stored.silent_rows
        if len(set(rows)) < len(rows) or max(rows, default=-1) >= classes:
            raise ValueError(f"fresh_rows and silent_rows must be different rows of a head of {classes}")
        with part("model"):
            parameters = under("model", state)
            tensor(parameters, "head.bias", torch.float32, classes)
            self._begin(self._build(classes))
            load_parameters(self.model, parameters)
        self._silent_rows = stored.silent_rows

    def check(self, state: StateDict, classes: int) -> None:
        """Raise ValueError if `load_state_dict` would raise it for this state. Change nothing."""
        with torch.random.fork_rng(devices=[]):
            copy.copy(self).load_state_dict(state, classes)

    # -- building

    def spec(self) -> ModelSpec:
        """Return the spec of the current network."""
        return spec_of(self._settings.model, self.model.head.out_features)

    def _build(self, classes: int) -> models.ImageClassifier:
        model = models.build(spec_of(self._settings.model, classes), own=self._settings.model.name)
        if self._settings.model.frozen:
            model.freeze()
        return model.to(self._placement.device, memory_format=self._placement.memory_format)  # pyright: ignore
