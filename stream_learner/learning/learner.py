"""The learner: the model, and everything that changes when it learns."""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stream_learner import networks as models
from stream_learner.config import Settings
from stream_learner.contract.manifest import Arithmetic
from stream_learner.contract.vocabulary import Label, Reason, Split
from stream_learner.contract.window import Recent
from stream_learner.errors import UsageError
from stream_learner.formats.images import batch as decoded
from stream_learner.formats.record import Sample
from stream_learner.inference.predictions import Predictions, predict
from stream_learner.learning.admission import SPLITS, Admitted, admit
from stream_learner.learning.classes import Classes
from stream_learner.learning.drift import DriftMonitor
from stream_learner.learning.gauges import Gauges
from stream_learner.learning.groups import few_groups_share
from stream_learner.learning.identity import check_fits, identity, settings_digest
from stream_learner.learning.learned import Learned, Refused
from stream_learner.learning.outcome import Outcome
from stream_learner.learning.parallel import Parallel
from stream_learner.learning.placement import place
from stream_learner.learning.predicted import FACTS, Predicted
from stream_learner.learning.prequential import Prequential
from stream_learner.learning.randomness import Randomness
from stream_learner.learning.releases import Releases
from stream_learner.learning.saved import Saved, Stored
from stream_learner.learning.shard import Shard
from stream_learner.learning.state_dict import StateDict
from stream_learner.learning.stored import parse, part
from stream_learner.learning.strategies import Minibatch
from stream_learner.learning.trainers import Portion, TrainingBatch, trainer_for
from stream_learner.learning.weighting import Arrivals, Times, Weighed, Weights
from stream_learner.networks.predictions import answers

NON_FINITE_IN_A_ROW = 3


class Learner:
    """Learns samples in order. On one machine type and thread count, the same calls give the same state, byte for byte.

    Saving and restoring the learner in between changes nothing.

    With several shards (`run.shards`), ranks may share them. Then every rank has a learner of its own, and all call the
    same methods in the same order. Results are the same on every rank, unless a docstring says that they are of the
    local shards.
    """

    def __init__(self, settings: Settings, saved: Saved | None = None, parallel: Parallel | None = None):
        """Begin without classes, or continue from a state. Classes retire if `[labels]` renames or forbids them.

        `parallel` connects the ranks; by default, this process has all shards.

        Raises UsageError when a model, strategy, weight policy or device does not exist, the images are too small for
        the model, or the pretrained weights do not fit it. Raises ValueError when the state belongs to other settings,
        lacks a part or is malformed.
        """
        self._settings = settings
        self._placement = place(settings.learning, models.factory(settings.model.name))
        self.parallel = parallel = parallel or Parallel(settings.run.shards)
        assert parallel.shards == settings.run.shards
        self._randomness = Randomness(settings.run.seed, self._placement.device, parallel)
        self._classes = Classes(settings)
        with self._randomness.drawing():
            self._trainer = trainer = trainer_for(settings, self._placement, parallel)
        self._weights = Weights(settings.weights)
        self._identity = identity(settings)
        self._settings_digest = settings_digest(settings, self._identity)
        device = self._placement.device
        self.shards = [Shard(settings, trainer, self._weights, device, number) for number in parallel.local]
        """Samples that the local shards keep."""
        self._releases = Releases(settings, trainer, self.shards, parallel, device)
        self.prequential = Prequential(settings.prequential.share)
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

        Only the share `prequential.share` of the batches is predicted, unless learning needs the prediction.

        `records` is the number of input records that were read to get these samples, including rejected records. It
        counts for `release.every_records` and for the ages of samples in the memory. The default is one record for each
        sample. If there are several local shards, they get the samples in turn.
        """
        count = len(self.shards)
        dealt = [range((shard - self.records) % count, len(samples), count) for shard in range(count)]
        read = [len(samples) if records is None else records] + [0] * (count - 1)
        learned = self.learn_shards([[samples[i] for i in indices] for indices in dealt], read)
        learned.refused = [r._replace(sample=dealt[r.shard][r.sample], shard=0) for r in learned.refused]
        return learned

    def learn_shards(self, samples: Sequence[Sequence[Sample]], records: Sequence[int]) -> Learned:
        """Learn a batch as `learn` does. `samples` and `records` are those of each local shard.

        A shard may have no samples. At most its share of `batch.size` should be training samples.
        """
        learned = Learned()
        with self._randomness.drawing():
            admitted = admit(self._classes, self.parallel, samples, records)
            self._trainer.set_classes(len(self.labels), self._classes.retired)
            counts = zip(SPLITS, admitted.counts.sum(0).tolist(), strict=True)
            learned.refused, learned.samples = admitted.refused, {split: count for split, count in counts if count}
            train = self._hold_out(samples, {(refused.shard, refused.sample) for refused in learned.refused})
            if learned.learned and not self._learn(
                [[of_shard[i] for i in indices] for of_shard, indices in zip(samples, train, strict=True)],
                admitted,
                learned,
            ):
                why = "the batch's loss or gradient was not finite; the step was undone"
                undone = ((shard, i) for shard, indices in enumerate(train) for i in indices)
                learned.refused += [Refused(i, Reason.NON_FINITE_STEP, why, shard) for shard, i in undone]
                del learned.samples[Split.TRAIN]
                learned.weights = {}
        self.records += admitted.records
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

    def _hold_out(self, samples: Sequence[Sequence[Sample]], refused: set[tuple[int, int]]) -> list[list[int]]:
        """Hold out validation and test samples. Return the indices of each local shard's training samples.

        `refused` are pairs of shard and index.
        """
        train: list[list[int]] = [[] for _ in self.shards]
        for shard, of_shard in enumerate(samples):
            for i, sample in enumerate(of_shard):
                if (shard, i) in refused:
                    continue
                if sample.split is Split.TRAIN:
                    train[shard].append(i)
                else:
                    index, weight = self._classes.index_of[sample.label], self._settings.weights.max_weight
                    held_out = self.shards[shard].held_out[sample.split]
                    held_out.add(sample, index, min(sample.weight, weight), self.records)
        return train

    def _learn(self, train: list[list[Sample]], admitted: Admitted, learned: Learned) -> bool:
        """Predict, weigh and learn training samples. `train` are those of the local shards.

        Return False if nothing was learned because the first step was not finite.
        """
        before = self._weights.state_dict()
        index_of, device = self._classes.index_of, self._placement.device
        predicted = [Predicted.by(self._trainer, samples, index_of, device) for samples in train]
        weighed = self._weighed(predicted, admitted, learned)
        if not weighed.now.any():
            self._weights.load_state_dict(before)  # all weights are 0: no step, and no change
            return True
        local = self.parallel.local
        weights = weighed.divided(admitted.training)[local.start : local.stop]
        replay_factor = self.drift.replay_factor(self.records)
        portions = [
            Portion(
                Minibatch(one.images_NHWC, one.labels, self._to_device(own.now), self._trainer.kept_logits(one.logits)),
                one.features_NF,
                partial(shard.replay.draw, replay_factor),
                partial(self._randomness.of_shard, i),
            )
            for i, (shard, one, own) in enumerate(zip(self.shards, predicted, weights, strict=True))
        ]
        learning_rate_factor = self.drift.learning_rate_factor(self.records) * self._releases.learning_rate_factor
        trained = self._trainer.learn(TrainingBatch(portions, learning_rate_factor))
        self._non_finite_in_a_row = 0 if trained.finite else self._non_finite_in_a_row + 1
        if trained.undone:
            self._weights.load_state_dict(before)
            return False
        learned.steps, learned.loss_sum = trained.steps, trained.loss_sum
        self._releases.taught()
        for shard, one, own, portion in zip(self.shards, predicted, weights, portions, strict=True):
            shard.remember(one, own, self.records, portion.stream.logits)
        return True

    def _weighed(self, predicted: list[Predicted], admitted: Admitted, learned: Learned) -> Weighed:
        """Weigh the samples of all shards, and count predictions. `predicted` are those of the local shards."""
        lengths, joined, counts = admitted.training, self.parallel.joined, self.prequential.begin()
        facts = joined([one.facts(predicted=counts) for one in predicted], lengths)
        columns = {name: np.ascontiguousarray(facts[name]) for name in FACTS.names or ()}
        labels = columns["labels"]
        if counts:
            self._count(labels, columns["predictions"], columns["confidences"], admitted, learned)
        released = self._releases.probabilities
        weighed = self._weights.weigh(
            Arrivals(
                record_weights=columns["weights"],
                labels=labels,
                times=Times(np.full(len(labels), self.records), columns["timestamps_ms"]),
                probabilities=lambda: joined([one.own_probabilities() for one in predicted], lengths),
                released_probabilities=lambda: joined([released(p.images_NHWC, p.labels) for p in predicted], lengths),
            )
        )
        learned.weights = weighed.factors
        return weighed

    def _count(
        self, labels: np.ndarray, predictions: np.ndarray, confidences: np.ndarray, admitted: Admitted, learned: Learned
    ) -> None:
        """Count the predictions of all shards in the prequential figures, and look for a drift."""
        self.prequential.add(labels, predictions, confidences)
        hits = predictions == labels
        learned.drifts = self.drift.observe(~hits, self.records + admitted.records)
        seen, correct = Counter(labels.tolist()), Counter(labels[hits].tolist())
        learned.prequential = {self.labels[index]: (correct[index], count) for index, count in seen.items()}

    def _to_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._placement.device)

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
        """Return the figures to show now. The memory's figures are those of the local shards."""
        counts = Counter[int]()
        for shard in self.shards:
            counts.update(dict(enumerate(shard.memory.counts.tolist())))
        return Gauges(
            remembered={self.labels[index]: count for index, count in counts.items()},
            memory_bytes=sum(shard.memory.nbytes for shard in self.shards),
            recent=self.recent,
            drift_window=self.drift.window,
            boosted=self.drift.boosted(self.records),
            refused=self._releases.refused,
        )

    def few_groups(self) -> dict[Split, float]:
        """Return the held-out sets that few groups dominate, and the share (0..1) of the 10 largest groups in each.

        The sets are those of the local shards.
        """
        groups = {
            split: np.concatenate([shard.held_out[split].groups for shard in self.shards])
            for split in (Split.VALIDATION, Split.TEST)
        }
        shares = {split: few_groups_share(of_split) for split, of_split in groups.items()}
        return {split: share for split, share in shares.items() if share is not None}

    # -- state

    def state_dict(self) -> dict[str, Any]:
        """Return the state: copies of tensors on the CPU, and JSON values. `split` separates the two.

        With several shards, `shard_states` returns the rest.
        """
        components = {
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
            | (self.shards[0].state_dict() if self.parallel.shards == 1 else {})
            | {name: component.state_dict() for name, component in components.items()}
            | {
                "records": self.records,
                # A run that stopped after three batches that were not finite counts from 0 when it resumes.
                "non_finite_in_a_row": self._non_finite_in_a_row % NON_FINITE_IN_A_ROW,
            }
        )

    def shard_states(self) -> list[dict[str, Any]]:
        """Return the states of the local shards, as `state_dict` does. There are none if the run has one shard."""
        if self.parallel.shards == 1:
            return []
        return [
            shard.state_dict()
            | {"rng": self._randomness.shard_state_dict(i), "shard": self.parallel.local[i], "records": self.records}
            for i, shard in enumerate(self.shards)
        ]

    @property
    def parts(self) -> dict[str, bytes]:
        """Immutable bytes that belong to the state of the local shards, by digest (`sha256:` and 64 hex digits)."""
        return {digest: data for shard in self.shards for digest, data in shard.parts.items()}

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
        self._load_shards(saved, classes)
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

    def _load_shards(self, saved: Saved, classes: int) -> None:
        if self.parallel.shards == 1:
            self.shards[0].load_state_dict(saved.state, saved.parts, classes)
            return
        if len(saved.shards) != len(self.shards):
            raise ValueError(f"it comes with the states of {len(saved.shards)} shards, not {len(self.shards)}")
        for i, (shard, state) in enumerate(zip(self.shards, saved.shards, strict=True)):
            wanted = {"shard": self.parallel.local[i], "records": saved.state["records"]}
            with part(f"shard {wanted['shard']}"):
                if wanted != (found := {name: state.get(name) for name in wanted}):
                    raise ValueError(f"its state is of {found}, not {wanted}")
                shard.load_state_dict(state, saved.parts, classes)
                with part("rng"):
                    self._randomness.load_shard_state_dict(i, state["rng"])

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
            for shard in self.shards:
                shard.retire(source, target)
            self._weights.retire(source, target)
            self.prequential.retire(source, target)
            self._releases.retire(source, self.labels[source])
        self._trainer.set_classes(len(self.labels), self._classes.retired)
