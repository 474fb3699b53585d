"""Decisions about releases, and the return of training to the last release after too many refusals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from stream_learner import networks as models
from stream_learner.config import Settings
from stream_learner.contract.manifest import Decision, Preprocessing
from stream_learner.contract.vocabulary import Label, Split
from stream_learner.learning import evaluation, gate
from stream_learner.learning.classes import Classes
from stream_learner.learning.forgetting import BestRecalls
from stream_learner.learning.heads import silence
from stream_learner.learning.memory import BalancedMemory
from stream_learner.learning.outcome import Candidate, Outcome
from stream_learner.learning.parallel import Parallel
from stream_learner.learning.patience import Patience
from stream_learner.learning.shard import Shard
from stream_learner.learning.spec import spec_of
from stream_learner.learning.state_dict import StateDict, copies, under
from stream_learner.learning.stored import Count, parse
from stream_learner.learning.trainers import Trainer
from stream_learner.networks import ImageClassifier
from stream_learner.networks.tensors import is_finite, load_parameters


class Stored(msgspec.Struct):
    decided_at: Count
    taught: bool
    retired_since: list[Count]
    best_recalls: list[Any]
    patience: dict[str, Any]


@dataclass(frozen=True)
class Released:
    """The last release. The gate compares candidates with its network, and training may return to its state.

    `state` is the trainer's state at the release. `records` is the number of the run's input records up to the release.
    """

    network: ImageClassifier
    state: StateDict
    records: int


class Releases:
    """Decides whether to release the trainer's network.

    After too many refusals, it returns the trainer to the last release.
    """

    def __init__(
        self,
        settings: Settings,
        trainer: Trainer,
        shards: Sequence[Shard],
        parallel: Parallel,
        device: torch.device,
    ):
        """Take the objects that decisions use. `shards` are the local ones.

        A roll-back changes `trainer` and the memories. Held-out sets are only read.
        """
        self._settings = settings
        self._trainer = trainer
        self._shards = shards
        self._parallel = parallel
        self._device = device
        self._decided_at = 0  # input records up to the last decision
        self._taught = False  # whether something was learned since the last decision
        self._released: Released | None = None
        self._retired_since: list[int] = []  # indices of the classes that retired since the last release
        self._best_recalls = BestRecalls()
        self._patience = Patience(settings.release.patience)

    @property
    def network(self) -> ImageClassifier | None:
        """The last release's network, in evaluation mode. None before the first release."""
        return self._released and self._released.network

    @torch.inference_mode()
    def probabilities(self, images_NHWC: Tensor, labels: Tensor) -> np.ndarray:
        """Return the probability of each of a shard's samples' own class under the last release, float32 [N].

        The probability is 0 before the first release.
        """
        if self.network is None or not len(labels):
            return np.zeros(len(labels), np.float32)
        return evaluation.own_probabilities(self.network(images_NHWC), labels)

    @property
    def learning_rate_factor(self) -> float:
        """Factor (0..1) of the learning rate after roll-backs since the last release."""
        return self._patience.learning_rate_factor

    @property
    def refused(self) -> int:
        """Number of candidates since the last release that were refused because they were worse."""
        return self._patience.refused

    def due(self, records: int) -> bool:
        """Return whether `release.every_records` records were read and something was learned since the last decision.

        `records` is the number of the run's input records so far. A model that learned nothing is not released.
        """
        return self._taught and records - self._decided_at >= self._settings.release.every_records

    def taught(self) -> None:
        """Note that a batch with at least one weight above 0 was learned."""
        self._taught = True

    def decide(self, classes: Classes, records: int) -> Outcome:
        """Evaluate the trainer's network and decide whether to release it. May return training to the last release.

        Each rank evaluates its own shards, and decides by the results of all shards.

        `classes` are the run's classes. `records` is the number of the run's input records so far.
        """
        self._decided_at, self._taught = records, False
        self._trainer.solve()
        candidate, decision = self._judged(classes)
        if decision.released:
            self._best_recalls.released(candidate.test)
            self._released = Released(
                network=self._build(candidate.parameters),
                state=self._trainer.state_dict(),
                records=records,
            )
            self._retired_since = []
        if rolled_back := self._patience.decided(decision):
            self._roll_back(classes)
        return Outcome(candidate, decision, rolled_back)

    def _judged(self, classes: Classes) -> tuple[Candidate, Decision]:
        """Evaluate the candidate. Return it and the gate's decision."""
        network, last, labels = self._trainer.evaluated, self.network, classes.labels
        targets, new, confidences, before = self._of_all(self._validated, Split.VALIDATION)
        decision = gate.decide(
            new, before if last else None, targets, last.head.out_features if last else 0, self._settings.release
        )
        if not is_finite(network):
            decision = msgspec.structs.replace(
                decision,
                released=False,
                abstained=False,
                worse=self._released is not None,
                reason="the candidate has weights that are not finite",
            )
        test_targets, predictions, logits, images_NHWC = self._of_all(self._tested, Split.TEST)
        test_score = evaluation.score(predictions, test_targets, labels)
        model = self._settings.model
        candidate = Candidate(
            parameters=copies(network.state_dict()),
            model=self._trainer.spec(),
            labels=list(labels),
            retired=sorted(classes.retired),
            preprocessing=Preprocessing(model.height, model.width, model.channels, model.mean, model.std),
            validation=evaluation.score(new, targets, labels),
            test=test_score,
            calibration_error=evaluation.calibration_error(new == targets, confidences),
            forgetting=self._best_recalls.forgetting(test_score),
            evaluation={
                "images": torch.from_numpy(images_NHWC),
                "labels": torch.from_numpy(test_targets),
                "predictions": torch.from_numpy(predictions),
            },
            logits=torch.from_numpy(logits),
        )
        return candidate, decision

    def _of_all(self, evaluate: Callable[[BalancedMemory], tuple[np.ndarray, ...]], split: Split) -> list[np.ndarray]:
        """Evaluate the local shards' held-out samples of a split. Return the results of all shards, joined."""
        results = [evaluate(shard.held_out[split]) for shard in self._shards]
        return [self._parallel.joined(arrays) for arrays in zip(*results, strict=True)]

    def _validated(self, held: BalancedMemory) -> tuple[np.ndarray, ...]:
        """Return the labels, the candidate's predictions, their confidences, and the last release's predictions.

        Before the first release, they are the candidate's own predictions.
        """
        images_NHWC = held.pixels_NHWC(np.arange(len(held)))
        new, confidences = evaluation.predict_with_confidence(self._trainer.evaluated, images_NHWC, self._device)
        last = evaluation.predict(self.network, images_NHWC, self._device) if self.network else new
        return held.labels, new, confidences, last

    def _tested(self, held: BalancedMemory) -> tuple[np.ndarray, ...]:
        """Return the labels, the candidate's predictions and logits, and the images."""
        images_NHWC, network = held.pixels_NHWC(np.arange(len(held))), self._trainer.evaluated
        classes = network.head.out_features
        predictions, logits = evaluation.predict_with_logits(network, images_NHWC, classes, self._device)
        return held.labels.copy(), predictions, logits.numpy(), images_NHWC

    def retire(self, index: int, label: Label) -> None:
        """Make the last release never predict a class that has retired by now, so that the comparison is fair."""
        self._retired_since.append(index)
        self._best_recalls.forget(label)
        if self.network is not None:
            self._silence(self.network)

    def _silence(self, network: ImageClassifier) -> None:
        silence(network.head, [row for row in self._retired_since if row < network.head.out_features])

    def _roll_back(self, classes: Classes) -> None:
        """Return training to the last release. Counts, random generators, labels and held-out samples do not change."""
        assert self._released
        known = self._released.network.head.out_features
        self._trainer.load_state_dict(self._released.state, known)
        self._trainer.set_classes(len(classes.labels), classes.retired)
        for shard in self._shards:
            shard.memory.drop_since(self._released.records)

    # -- state

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON, without the last release. `load_released` loads it from its own saved state."""
        return {
            "decided_at": self._decided_at,
            "taught": self._taught,
            "retired_since": list(self._retired_since),
            "best_recalls": self._best_recalls.state_dict(),
            "patience": self._patience.state_dict(),
        }

    def load_state_dict(self, document: dict[str, Any]) -> None:
        """Restore a state from `state_dict`. Raises ValueError when it is malformed."""
        stored = parse(document, Stored)
        self._decided_at, self._taught = stored.decided_at, stored.taught
        self._retired_since = stored.retired_since
        self._best_recalls.load_state_dict(stored.best_recalls)
        self._patience.load_state_dict(stored.patience)

    def load_released(self, state: StateDict, classes: int, records: int) -> None:
        """Load the last release from the trainer's state that was saved with it.

        `classes` is the number of classes of the release. `records` is the number of input records up to the release.
        Raises ValueError when the state is malformed.
        """
        self._trainer.check(state, classes)  # check it now, because training may return to it at any time
        parameters = under("average", state) or under("model", state)
        self._released = Released(self._build(parameters), state, records)
        self._silence(self._released.network)

    def _build(self, parameters: dict[str, Tensor]) -> ImageClassifier:
        """Build the settings' network with these parameters, on the device and in evaluation mode."""
        spec = spec_of(self._settings.model, len(parameters["head.bias"]))
        with torch.random.fork_rng(devices=[]):  # initial parameters must not use the learner's random numbers
            model = models.build(spec, own=spec.name)
        load_parameters(model, parameters)
        return model.to(self._device).eval()
