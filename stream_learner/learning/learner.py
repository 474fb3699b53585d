"""The learner: the model, and everything that changes when it learns."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from msgspec import Struct
from torch import Tensor

from stream_learner import networks as models
from stream_learner.config import Settings
from stream_learner.contract.manifest import Arithmetic
from stream_learner.contract.vocabulary import Label, Reason, Split
from stream_learner.contract.window import Recent
from stream_learner.errors import UsageError
from stream_learner.formats.images import batch as decoded
from stream_learner.formats.record import RejectError, Sample
from stream_learner.inference.predictions import Predictions, predict
from stream_learner.learning import evaluation
from stream_learner.learning.classes import Classes
from stream_learner.learning.drift import DriftMonitor
from stream_learner.learning.gauges import Gauges
from stream_learner.learning.groups import few_groups_share
from stream_learner.learning.identity import check_fits, identity, settings_digest
from stream_learner.learning.learned import Learned, Refused
from stream_learner.learning.memory import BalancedMemory, Replay, held_out_sets, replay_memory
from stream_learner.learning.outcome import Outcome
from stream_learner.learning.placement import place
from stream_learner.learning.prequential import Prequential
from stream_learner.learning.randomness import Randomness
from stream_learner.learning.releases import Releases
from stream_learner.learning.state_dict import StateDict
from stream_learner.learning.stored import Count, parse, part
from stream_learner.learning.strategies import Minibatch
from stream_learner.learning.trainers import TrainingBatch, trainer_for
from stream_learner.learning.weighting import Arrivals, Times, Weighed, Weights
from stream_learner.networks.predictions import answers

NON_FINITE_IN_A_ROW = 3


class Stored(Struct):
    """Fields of a saved state. The identity, the memories and other fields of the classes are read elsewhere."""

    labels: list[Label]
    trainer: dict[str, Any]
    weights: dict[str, Any]
    prequential: dict[str, Any]
    drift: dict[str, Any]
    releases: dict[str, Any]
    rng: dict[str, Any]
    records: Count
    non_finite_in_a_row: Count


@dataclass(frozen=True)
class Saved:
    """A state to continue from.

    `state` and `parts` are the `Learner.state_dict()` and `Learner.parts` that were saved. `released` is the state that
    was saved with the last release, or None.
    """

    state: StateDict
    parts: Mapping[str, bytes]
    released: StateDict | None = None


class Learner:
    """Learns samples in order. On one machine type and thread count, the same calls give the same state, byte for byte.

    Saving and restoring the learner in between changes nothing.
    """

    def __init__(self, settings: Settings, saved: Saved | None = None):
        """Begin without classes, or continue from a state. Classes retire if `[labels]` renames or forbids them.

        Raises UsageError when a model, strategy, weight policy or device does not exist, the images are too small for
        the model, or the pretrained weights do not fit it. Raises ValueError when the state belongs to other settings,
        lacks a part or is malformed.
        """
        self._settings = settings
        self._placement = place(settings.learning, models.factory(settings.model.name))
        self._randomness = Randomness(settings.run.seed, self._placement.device)
        self._classes = Classes(settings)
        with self._randomness.drawing():
            self._trainer = trainer = trainer_for(settings, self._placement)
        self._weights = Weights(settings.weights)
        self._identity = identity(settings)
        self._settings_digest = settings_digest(settings, self._identity)
        self.memory = replay_memory(settings, replays=trainer.replays, stores_logits=trainer.stores_logits)
        self._held_out = held_out_sets(settings)
        device = self._placement.device
        self._replay = Replay(settings, self.memory, self._weights, device, with_logits=trainer.stores_logits)
        self._releases = Releases(settings, trainer, self.memory, self._held_out, device)
        self.prequential = Prequential()
        self.drift = DriftMonitor(settings)
        self.records = 0
        """Number of the run's input records so far, including rejected records."""
        self._non_finite_in_a_row = 0
        if saved:
            self._load(saved)

    @property
    def labels(self) -> list[Label]:
        """Labels by class index, including labels of retired classes."""
        return self._classes.labels

    @property
    def retired(self) -> dict[Label, Label | None]:
        """Labels of retired classes, each with the label that took over its samples, or None."""
        named = [*self._classes.labels]
        return {named[i]: None if j is None else named[j] for i, j in self._classes.retired.items()}

    # -- learning

    def learn(self, samples: Sequence[Sample], records: int | None = None) -> Learned:
        """Predict the training samples, then learn them. Hold out the validation and test samples.

        `records` is the number of input records that were read to get these samples, including rejected records. It
        counts for `release.every_records` and for the ages of samples in the memory. The default is one record for each
        sample.
        """
        records = len(samples) if records is None else records
        learned = Learned()
        with self._randomness.drawing():
            train = self._sort(samples, learned)
            if train and not self._learn([samples[i] for i in train], records, learned):
                why = "the batch's loss or gradient was not finite; the step was undone"
                learned.refused += [Refused(i, Reason.NON_FINITE_STEP, why) for i in train]
                del learned.samples[Split.TRAIN]
                learned.weights = {}
        self.records += records
        return learned

    def predict(self, images: Iterable[bytes | np.ndarray]) -> Predictions:
        """Predict images as a release of the current model would. Nothing is learned.

        Each image is encoded (JPEG, PNG), or uint8 pixels [H, W, 1 or 3]. Raises UsageError before the first class,
        RejectError for an image that cannot be decoded, and ValueError for an array of another type or shape.
        """
        if not self.labels:
            raise UsageError("the learner knows no class yet; learn some samples first")
        model = self._settings.model
        images_NHWC = decoded(images, model.height, model.width, model.channels, self._settings.input.max_image_pixels)
        return predict(partial(answers, self._trainer.as_released()), self.labels, images_NHWC)

    @property
    def network(self) -> models.ImageClassifier:
        """The network that predicts now. A solved head has the rows from its last solve."""
        return self._trainer.evaluated

    @property
    def arithmetic(self) -> Arithmetic:
        """Software, hardware and settings on which the bytes of a state depend, besides the data."""
        return self._placement.arithmetic(self._settings_digest)

    @property
    def diverged(self) -> bool:
        """Whether each of the last three batches gave a loss or gradient that is not finite."""
        return self._non_finite_in_a_row >= NON_FINITE_IN_A_ROW

    def _sort(self, samples: Sequence[Sample], learned: Learned) -> list[int]:
        """Admit the labels, and hold out validation and test samples. Return the indices of the training samples."""
        train = []
        for position, sample in enumerate(samples):
            try:
                index = self._classes.admit(sample.label)
            except RejectError as reject:
                learned.refused.append(Refused(position, reject.reason, reject.message))
                continue
            learned.samples[sample.split] = learned.samples.get(sample.split, 0) + 1
            if sample.split is Split.TRAIN:
                train.append(position)
            else:
                weight = min(sample.weight, self._settings.weights.max_weight)
                self._held_out[sample.split].add(sample, index, weight, self.records)
        self._trainer.set_classes(len(self.labels), self._classes.retired)
        return train

    def _learn(self, train: list[Sample], records: int, learned: Learned) -> bool:
        """Predict, weigh and learn training samples.

        Return False if nothing was learned because the first step was not finite.
        """
        before = self._weights.state_dict()
        stream, features_NF, weighed = self._weighed(train, records, learned)
        if not weighed.now.any():
            self._weights.load_state_dict(before)  # all weights are 0: no step, and no change
            return True
        replay = partial(self._replay.draw, self.drift.replay_factor(self.records))
        learning_rate_factor = self.drift.learning_rate_factor(self.records) * self._releases.learning_rate_factor
        trained = self._trainer.learn(TrainingBatch(stream, features_NF, replay, learning_rate_factor))
        self._non_finite_in_a_row = 0 if trained.finite else self._non_finite_in_a_row + 1
        if trained.undone:
            self._weights.load_state_dict(before)
            return False
        learned.steps, learned.loss_sum = trained.steps, trained.loss_sum
        self._releases.taught()
        self._remember(train, weighed, stream.logits)
        return True

    def _weighed(self, samples: list[Sample], records: int, learned: Learned) -> tuple[Minibatch, Tensor, Weighed]:
        """Predict and weigh training samples. Return them as a minibatch, their features [N, F] and their weights."""
        labels = np.array([self._classes.index_of[sample.label] for sample in samples], np.int64)
        images_on_device = self._to_device(np.stack([sample.pixels_HWC for sample in samples]))
        labels_on_device = self._to_device(labels)
        features_NF, logits = self._predict_first(images_on_device, labels_on_device, records, learned)
        arrivals = Arrivals(
            record_weights=np.array([sample.weight for sample in samples]),
            labels=labels,
            times=Times(
                admitted=np.full(len(samples), self.records),
                timestamps_ms=np.array([sample.timestamp_ms for sample in samples], np.int64),
            ),
            probabilities=lambda: evaluation.own_probabilities(logits, labels_on_device),
            released_probabilities=lambda: self._releases.probabilities(images_on_device, labels_on_device),
        )
        weighed = self._weights.weigh(arrivals)
        learned.weights = weighed.factors
        kept = self._trainer.kept_logits(logits)
        stream = Minibatch(images_on_device, labels_on_device, self._to_device(weighed.now), kept)
        return stream, features_NF, weighed

    def _to_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._placement.device)

    def _predict_first(
        self, images_NHWC: Tensor, labels: Tensor, records: int, learned: Learned
    ) -> tuple[Tensor, Tensor]:
        """Predict samples and count the result, before they are learned.

        Return features [N, F] and logits [N, classes].
        """
        features_NF, logits = self._trainer.predict(images_NHWC)
        targets, (predictions, confidences) = labels.cpu().numpy(), evaluation.top(logits)
        hits = predictions == targets
        self.prequential.add(targets, predictions, confidences)
        learned.drifts = self.drift.observe(~hits, self.records + records)
        for index, hit in zip(targets.tolist(), hits.tolist(), strict=True):
            correct, seen = learned.prequential.get(self.labels[index], (0, 0))
            learned.prequential[self.labels[index]] = (correct + hit, seen + 1)
        return features_NF, logits

    def _remember(self, train: list[Sample], weighed: Weighed, logits: Tensor | None) -> None:
        rows = logits.cpu().numpy() if logits is not None else [None] * len(train)
        columns = weighed.stored.tolist(), weighed.timestamps_ms.tolist(), rows
        for sample, weight, timestamp_ms, row in zip(train, *columns, strict=True):
            if weight > 0:
                dated = sample._replace(timestamp_ms=timestamp_ms)
                self.memory.add(dated, self._classes.index_of[sample.label], weight, self.records, row)

    # -- releasing

    @property
    def release_due(self) -> bool:
        """Whether `release.every_records` records were read and something was learned since the last decision.

        A decision is due after the same batches in every execution.
        """
        return self._classes.in_use > 0 and self._releases.due(self.records)

    def decide(self) -> Outcome:
        """Evaluate the model. Decide whether it is released, and whether training returns to the last release."""
        with self._randomness.drawing():
            return self._releases.decide(self._classes, self.records)

    def gauges(self) -> Gauges:
        """Return the figures to show now."""
        fill = zip(self.labels, self.memory.counts.tolist(), strict=False)  # a label may have no training sample
        return Gauges(
            remembered=dict(fill),
            memory_bytes=self.memory.nbytes,
            recent=self.recent,
            drift_window=self.drift.window,
            boosted=self.drift.boosted(self.records),
            refused=self._releases.refused,
        )

    def few_groups(self) -> dict[Split, float]:
        """Return the held-out sets that few groups dominate, and the share (0..1) of the 10 largest groups in each."""
        shares = {split: few_groups_share(held_out.groups) for split, held_out in self._held_out.items()}
        return {split: share for split, share in shares.items() if share is not None}

    # -- state

    def state_dict(self) -> dict[str, Any]:
        """Return the state: copies of tensors on the CPU, and JSON values. `split` separates the two."""
        components = self._memories | {
            "trainer": self._trainer,
            "weights": self._weights,
            "prequential": self.prequential,
            "drift": self.drift,
            "releases": self._releases,
            "rng": self._randomness,
        }
        return (
            self._identity
            | self._classes.state_dict()
            | {name: component.state_dict() for name, component in components.items()}
            | {
                "records": self.records,
                # A run that stopped after three batches that were not finite counts from 0 when it resumes.
                "non_finite_in_a_row": self._non_finite_in_a_row % NON_FINITE_IN_A_ROW,
            }
        )

    @property
    def parts(self) -> dict[str, bytes]:
        """Immutable bytes that belong to the state, by digest (`sha256:` and 64 hex digits)."""
        return {digest: data for memory in self._memories.values() for digest, data in memory.parts.items()}

    @property
    def recent(self) -> Recent | None:
        """Figures of the latest training samples, predicted before they were learned. None before the first sample."""
        return self.prequential.recent(self.labels)

    def _load(self, saved: Saved) -> None:
        state = saved.state
        check_fits(state, self._identity, self._settings)
        stored = parse(state, Stored)
        self._classes.load_state_dict(state)
        classes = len(self.labels)
        with part("trainer"), self._randomness.drawing():
            self._trainer.load_state_dict(stored.trainer, classes)
        for name, memory in self._memories.items():
            with part(name):
                memory.load_state_dict(state.get(name, {}), saved.parts, classes)
        with part("weights"):
            self._weights.load_state_dict(stored.weights)
        with part("prequential"):
            self.prequential.load_state_dict(stored.prequential, classes)
        with part("drift"):
            self.drift.load_state_dict(stored.drift)
        with part("releases"):
            self._releases.load_state_dict(stored.releases)
        self.records = stored.records
        self._non_finite_in_a_row = stored.non_finite_in_a_row
        with part("rng"):
            self._randomness.load_state_dict(stored.rng)
        with self._randomness.drawing():
            self._retire()
        if saved.released is not None:
            self._load_released(saved.released)

    def _load_released(self, state: StateDict) -> None:
        """Load the last release from the state that was saved with it. Raises ValueError when it does not fit."""
        stored = parse(state, Stored)
        classes = len(stored.labels)
        if stored.labels != self.labels[:classes]:
            raise ValueError("the labels in the last release's state differ from the labels of the run")
        with part("the last release's trainer"):
            self._releases.load_released(stored.trainer, classes, stored.records)

    def _retire(self) -> None:
        for source, target in self._classes.retire():
            for memory in self._memories.values():
                memory.retire(source, target)
            self._weights.retire(source, target)
            self.prequential.retire(source, target)
            self._releases.retire(source, self.labels[source])
        self._trainer.set_classes(len(self.labels), self._classes.retired)

    @property
    def _memories(self) -> dict[str, BalancedMemory]:
        return {"memory": self.memory} | {split.value: held_out for split, held_out in self._held_out.items()}
