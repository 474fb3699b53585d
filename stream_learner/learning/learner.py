"""The model and everything that changes when it learns."""

import copy
import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from msgspec import Struct
from torch import Tensor

from stream_learner import networks as models
from stream_learner.config import ModelSettings, Settings
from stream_learner.contract.manifest import Arithmetic, Decision
from stream_learner.contract.spans import Positions
from stream_learner.contract.vocabulary import Label, Reason, Split
from stream_learner.formats.record import RejectError, Rejection, Sample
from stream_learner.learning import evaluation
from stream_learner.learning.batch import Batch
from stream_learner.learning.classes import Classes
from stream_learner.learning.drift import DriftMonitor
from stream_learner.learning.groups import few_groups_share
from stream_learner.learning.identity import check_fits, identity, settings_digest
from stream_learner.learning.memory import BalancedMemory
from stream_learner.learning.placement import place
from stream_learner.learning.prequential import Prequential
from stream_learner.learning.progress import Progress
from stream_learner.learning.releases import Releases
from stream_learner.learning.snapshot import Snapshot
from stream_learner.learning.stored import Count, parse, part, tensor
from stream_learner.learning.strategies import Minibatch
from stream_learner.learning.trainer import Trainer, prefixed, under
from stream_learner.learning.weighting import Arrivals, Times, Weighed, Weights
from stream_learner.monitoring.report import Report
from stream_learner.registry import AUGMENTATIONS

NON_FINITE_IN_A_ROW = 3


class Stored(Struct):
    """The learner's part of a state's document, beside its identity."""

    labels: list[Label]
    trainer: dict[str, Any]
    weights: dict[str, Any]
    prequential: dict[str, Any]
    drift: dict[str, Any]
    releases: dict[str, Any]
    records: Count
    non_finite_in_a_row: Count


class Learner:
    """Learns batches in order. The same batches give the same state, byte for byte, on one machine type and thread
    count, however often the learner was saved and restored between them."""

    def __init__(self, settings: Settings):
        """Raises UsageError when the settings name a model, strategy, weight policy or device that is not there, images
        too small for the model, or pretrained weights that are not its own."""
        self._settings = settings
        learning = settings.learning
        self._augmentations = [AUGMENTATIONS.lookup(name) for name in learning.augment]
        self._placement = place(learning, models.factory(settings.model.name))
        if learning.threads:
            torch.set_num_threads(learning.threads)
        if settings.model.head != "linear":
            self._placement = replace(self._placement, autocast=False)  # no steps to be made faster
        torch.manual_seed(settings.run.seed)  # the one generator behind weights, dropout, replay and augmentation
        self._classes = Classes(settings)
        self._trainer = Trainer(settings, self._placement)
        self._weights = Weights(settings.weights)
        self._identity = identity(settings)
        self._settings_digest = settings_digest(settings, self._identity)
        self.memory = self._build_memory(
            settings.memory.max_items if self._trainer.replays else 0,
            settings.memory.max_bytes,
            stores_logits=self._trainer.strategy.stores_logits,
        )
        self._held_out = {
            # They are decoded at once: the bound is one of pixels.
            split: self._build_memory(
                min(settings.held_out.max_items, settings.held_out.max_bytes // _pixel_bytes(settings.model)),
                settings.held_out.max_bytes,
                stores_groups=True,
            )
            for split in (Split.VALIDATION, Split.TEST)
        }
        self._releases = Releases(settings, self._trainer, self.memory, self._held_out, self._placement.device)
        self.prequential = Prequential()
        self.drift = DriftMonitor(settings)
        self.progress = Progress({})
        self.records = 0
        self._non_finite_in_a_row = 0

    @property
    def labels(self) -> list[Label]:
        """Labels by class index, those of retired classes too."""
        return self._classes.labels

    @property
    def retired(self) -> dict[Label, Label | None]:
        """Labels of retired classes, and the labels that took over their samples, if any."""
        named = [*self._classes.labels]
        return {named[i]: None if j is None else named[j] for i, j in self._classes.retired.items()}

    # -- learning

    def learn(self, batch: Batch) -> Report:
        """Predicts the batch's training samples, then learns them; holds out the others."""
        report = Report(
            spans=batch.spans,
            pieces=batch.pieces,
            lost=batch.lost,
            records=batch.records,
            tombstones=batch.tombstones,
            rejections=list(batch.rejections),
            odd_timestamps=batch.odd_timestamps,
            poll_s=batch.poll_s,
            decode_s=batch.decode_s,
        )
        began = time.monotonic()
        train = self._sort(batch.samples, report)
        if train:
            before = self._weights.state()
            stream, features_NF, weighed = self._weighed(train, report)
            if not weighed.now.any():
                self._weights.restore(before)  # learned, by no step: nothing changes
            elif self._learn(stream, features_NF, report):
                self._releases.taught()
                self._remember(train, weighed, stream.logits)
            else:
                self._weights.restore(before)
                report.weights = {}
                report.rejections += [_not_finite(sample) for sample in train]
                del report.samples[Split.TRAIN]
            report.learned = report.samples.get(Split.TRAIN, 0)
        rejected = {r.record[:3]: r.reason for r in report.rejections}  # by topic, partition, offset
        reasons = (rejected.get(place) for place in batch.places)
        report.used = [reason is None for reason in reasons if reason is not Reason.RARE_LABEL]
        report.step_s = time.monotonic() - began
        self.progress.add(report)
        self._releases.learned(report.spans)
        self.records += batch.records
        return report

    @property
    def network(self) -> models.ImageClassifier:
        """The network as a release would have it now."""
        return self._trainer.evaluated

    @property
    def arithmetic(self) -> Arithmetic:
        """Return the conditions, beside the data, on which the bytes of a state depend."""
        return self._placement.arithmetic(self._settings_digest)

    @property
    def diverged(self) -> bool:
        """Whether the last three batches gave a loss or gradient that is not finite."""
        return self._non_finite_in_a_row >= NON_FINITE_IN_A_ROW

    def _sort(self, samples: list[Sample], report: Report) -> list[Sample]:
        """Gives labels their indices, holds out validation and test samples, returns the training samples."""
        train = []
        for sample in samples:
            try:
                index = self._classes.admit(sample.label)
            except RejectError as reject:
                report.rejections.append(Rejection(sample.record, reject.reason, "learn", reject.message))
                continue
            report.samples[sample.split] = report.samples.get(sample.split, 0) + 1
            if sample.split is Split.TRAIN:
                train.append(sample)
            else:
                weight = min(sample.weight, self._settings.weights.max_weight)
                self._held_out[sample.split].add(sample, index, weight, self.records)
        self._trainer.set_classes(len(self.labels), self._classes.retired)
        return train

    def _weighed(self, samples: list[Sample], report: Report) -> tuple[Minibatch, Tensor, Weighed]:
        """Predicts training samples and weighs them; their features [N, F] are in the middle."""
        labels = np.array([self._classes.index_of[sample.label] for sample in samples], np.int64)
        images_on_device = self._to_device(np.stack([sample.pixels_HWC for sample in samples]))
        labels_on_device = self._to_device(labels)
        features_NF, logits = self._predict_first(images_on_device, labels_on_device, report)
        arrivals = Arrivals(
            record_weights=np.array([sample.weight for sample in samples]),
            labels=labels,
            times=Times(
                admitted=np.full(len(samples), self.records),
                timestamps_ms=np.array([sample.record.timestamp_ms for sample in samples], np.int64),
            ),
            probabilities=lambda: evaluation.own_probabilities(logits, labels_on_device),
            released_probabilities=lambda: self._predict_as_released(images_on_device, labels_on_device),
        )
        weighed = self._weights.weigh(arrivals)
        report.weights = weighed.factors
        kept = None
        if self._trainer.strategy.stores_logits:
            kept = logits.float().clone()
            kept[:, self._trainer.mute_rows] = torch.nan
        stream = Minibatch(images_on_device, labels_on_device, self._to_device(weighed.now), kept)
        return stream, features_NF, weighed

    def _to_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._placement.device)

    @torch.inference_mode()
    def _predict_first(self, images_NHWC: Tensor, labels: Tensor, report: Report) -> tuple[Tensor, Tensor]:
        """Features [N, F] and the logits [N, classes] that came of them."""
        network = self._trainer.evaluated.eval()
        with self._placement.training():
            features_NF = network.features(images_NHWC)
            logits = network.head(features_NF)
        targets, (predictions, confidences) = labels.cpu().numpy(), evaluation.top(logits)
        hits = predictions == targets
        self.prequential.add(targets, predictions, confidences)
        report.drifts = self.drift.observe(~hits, self.records + report.records, report.spans)
        for index, hit in zip(targets.tolist(), hits.tolist(), strict=True):
            correct, seen = report.prequential.get(self.labels[index], (0, 0))
            report.prequential[self.labels[index]] = (correct + hit, seen + 1)
        return features_NF, logits

    @torch.inference_mode()
    def _predict_as_released(self, images_NHWC: Tensor, labels: Tensor) -> np.ndarray:
        if self._releases.network is None:
            return np.zeros(len(labels), np.float32)
        return evaluation.own_probabilities(self._releases.network(images_NHWC), labels)

    def _learn(self, stream: Minibatch, features_NF: Tensor, report: Report) -> bool:
        """Adds the batch to a head that is solved, or takes its steps. False when it was not finite and undone."""
        if not self._trainer.accumulates:
            return self._take_steps(stream, report)
        finite = self._trainer.accumulate(features_NF, stream)
        self._non_finite_in_a_row = 0 if finite else self._non_finite_in_a_row + 1
        return finite

    def _take_steps(self, stream: Minibatch, report: Report) -> bool:
        """The batch's optimizer updates, up to one that is not finite and undone. False when that was the first."""
        self._trainer.scale_learning_rate(
            self.drift.learning_rate_factor(self.records) * self._releases.learning_rate_factor
        )
        for _ in range(self._settings.learning.steps_per_batch):
            loss = self._trainer.step(self._augmented(stream), self._replay)
            if not math.isfinite(loss):
                self._non_finite_in_a_row += 1
                return report.steps > 0  # learned as far as it went; a dead letter must not be learned in part
            report.steps += 1
            report.loss_sum += loss
        self._non_finite_in_a_row = 0
        return True

    def _replay(self) -> Minibatch:
        memory = self.memory
        slots = memory.draw(round(self._settings.replay_size * self.drift.replay_factor(self.records)))
        times = Times(memory.admitted[slots], memory.timestamps_ms[slots])
        weights = self._weights.replayed(memory.weights[slots], times)
        drawn = [memory.pixels_NHWC(slots), memory.labels[slots], weights]
        if self._trainer.strategy.stores_logits:
            drawn.append(memory.logits[slots])
        return self._augmented(Minibatch(*map(self._to_device, drawn)))

    def _augmented(self, minibatch: Minibatch) -> Minibatch:
        images_NHWC = minibatch.images_NHWC
        for augment in self._augmentations:
            images_NHWC = augment(images_NHWC)
        return minibatch._replace(images_NHWC=images_NHWC)

    def _remember(self, train: list[Sample], weighed: Weighed, logits: Tensor | None) -> None:
        rows = logits.cpu().numpy() if logits is not None else [None] * len(train)
        columns = weighed.stored.tolist(), weighed.timestamps_ms.tolist(), rows
        for sample, weight, timestamp_ms, row in zip(train, *columns, strict=True):
            if weight > 0:
                dated = sample._replace(record=sample.record._replace(timestamp_ms=timestamp_ms))
                self.memory.add(dated, self._classes.index_of[sample.label], weight, self.records, row)

    # -- releasing

    @property
    def release_due(self) -> bool:
        """Return whether `release.every_records` have been read since the last decision and something was learned from
        them: the same batch in every run."""
        return self._classes.in_use > 0 and self._releases.due(self.records)

    def decide_release(self) -> Decision:
        """Evaluates the model and decides whether it is released, or goes back to the last release; the next snapshot
        carries the outcome."""
        return self._releases.decide(self._classes, self.records, self.progress.positions)

    @property
    def refused(self) -> int:
        """Candidates refused for being worse since the last release."""
        return self._releases.refused

    def few_groups(self) -> dict[Split, float]:
        """Return the held-out sets that few groups dominate, and the share (0..1) of the 10 largest groups in each."""
        shares = {split: few_groups_share(held_out.groups) for split, held_out in self._held_out.items()}
        return {split: share for split, share in shares.items() if share is not None}

    # -- state

    def begin(self, positions: Positions) -> None:
        """Starts fresh at `positions`."""
        self.progress = Progress(copy.deepcopy(positions))

    def snapshot(self) -> Snapshot:
        """A copy of the state and of what was learned since the last snapshot. Changes nothing that is learned."""
        candidate, decision, discarded = self._releases.take_outcome() or (None, None, None)
        return Snapshot(
            tensors=self._tensors(),
            document=self._document(),
            parts={digest: data for memory in self._memories.values() for digest, data in memory.parts.items()},
            positions=copy.deepcopy(self.progress.positions),
            closed=self.progress.close(),
            recent=self.prequential.recent(self.labels),
            arithmetic=self.arithmetic,
            candidate=candidate,
            decision=decision,
            discarded=discarded,
        )

    def restore(
        self, tensors: dict[str, Tensor], document: dict[str, Any], parts: dict[str, bytes], positions: Positions
    ) -> None:
        """Continue from a snapshot's state, and retire the classes that `[labels]` renames or does not allow any more.

        Raises ValueError when it belongs to other settings, lacks a part, or holds what no snapshot would.
        """
        check_fits(document, self._identity, self._settings)
        stored = parse(document, Stored)
        self._classes.restore(document)
        with part("trainer"):
            self._trainer.restore(under("trainer", tensors), stored.trainer, len(self.labels))
        for name, memory in self._memories.items():
            with part(name):
                memory.restore(under(name, tensors), parts, len(self.labels))
        with part("weights"):
            self._weights.restore(stored.weights)
        with part("prequential"):
            self.prequential.restore(under("prequential", tensors), stored.prequential, len(self.labels))
        with part("drift"):
            self.drift.restore(stored.drift)
        with part("releases"):
            self._releases.restore(stored.releases)
        self.records = stored.records
        self._non_finite_in_a_row = stored.non_finite_in_a_row
        self.begin(positions)
        with part("rng"):
            torch.set_rng_state(tensor(tensors, "rng/cpu", torch.uint8, len(torch.get_rng_state())))
            if "rng/cuda" in tensors and self._placement.device.type == "cuda":
                torch.cuda.set_rng_state(tensors["rng/cuda"], self._placement.device)
        self._retire()

    def restore_released(self, tensors: dict[str, Tensor], document: dict[str, Any]) -> None:
        """Take the last release from the state that was saved with it. Raises ValueError when it holds none."""
        stored = parse(document, Stored)
        classes = len(stored.labels)
        if stored.labels != self.labels[:classes]:
            raise ValueError("labels of the last release's state are not those of the run")
        with part("the last release's trainer"):
            self._releases.restore_released(under("trainer", tensors), stored.trainer, classes, stored.records)

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

    def _tensors(self) -> dict[str, Tensor]:
        tensors = prefixed("trainer", self._trainer.tensors())
        for name, memory in self._memories.items():
            tensors |= prefixed(name, memory.state())
        tensors |= prefixed("prequential", self.prequential.tensors())
        tensors["rng/cpu"] = torch.get_rng_state()
        if self._placement.device.type == "cuda":
            tensors["rng/cuda"] = torch.cuda.get_rng_state(self._placement.device)
        return tensors

    def _document(self) -> dict[str, Any]:
        return (
            self._identity
            | self._classes.document()
            | {
                "trainer": self._trainer.document(),
                "weights": self._weights.state(),
                "prequential": self.prequential.document(),
                "drift": self.drift.document(),
                "releases": self._releases.document(),
                "records": self.records,
                # A run that stopped after three gets past them.
                "non_finite_in_a_row": self._non_finite_in_a_row % NON_FINITE_IN_A_ROW,
            }
        )

    # -- building

    def _build_memory(self, max_items: int, max_bytes: int, **columns: bool) -> BalancedMemory:
        model = self._settings.model
        return BalancedMemory(
            (model.height, model.width, model.channels),
            max_items,
            max_bytes,
            self._settings.memory.segment_bytes,
            self._settings.run.seed,
            **columns,
        )


def _pixel_bytes(model: ModelSettings) -> int:
    return model.height * model.width * model.channels


def _not_finite(sample: Sample) -> Rejection:
    return Rejection(
        sample.record,
        Reason.NON_FINITE_STEP,
        "learn",
        "the batch's loss or gradient was not finite; the step was undone",
    )
