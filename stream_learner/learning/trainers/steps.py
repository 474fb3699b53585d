"""Training by optimizer steps."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from stream_learner import networks as models
from stream_learner.config import LearningSettings, Settings
from stream_learner.errors import UsageError
from stream_learner.learning.averaging import Average
from stream_learner.learning.growth import grow_head, start_moments
from stream_learner.learning.moments import load_moments, moments
from stream_learner.learning.muon import Muon, matrices_of
from stream_learner.learning.optimizers import PlainAdam, PlainSGD
from stream_learner.learning.parallel import Parallel
from stream_learner.learning.placement import Placement
from stream_learner.learning.rows import begin_again, keep_silent, take_over
from stream_learner.learning.state_dict import StateDict, copies, prefixed, under
from stream_learner.learning.stored import parse, part
from stream_learner.learning.strategies import Losses, Minibatch, Step, Strategy
from stream_learner.learning.trainers.base import Portion, Stored, Trained, Trainer, TrainingBatch
from stream_learner.learning.trainers.passes import Passes
from stream_learner.learning.weighting import WeightedLoss
from stream_learner.networks.tensors import load_parameters


class StepTrainer(Trainer):
    """Takes optimizer steps with a strategy, and keeps an average of the network over its steps.

    The average, if one is kept, predicts and is released.
    """

    def __init__(
        self,
        settings: Settings,
        placement: Placement,
        parallel: Parallel,
        strategy: type[Strategy],
        augmentations: Sequence[Callable[[Tensor], Tensor]],
    ):
        """Build the network, the strategy and the optimizer. Raises UsageError as `trainer_for` does."""
        learning = settings.learning
        self._strategy_class = strategy
        if self._strategy_class.distils and not learning.average_decay:
            raise UsageError(
                f"learning.strategy = {learning.strategy!r} uses the average as teacher; "
                "set learning.average_decay above 0"
            )
        self._augmentations = augmentations
        self.replays, self.stores_logits = self._strategy_class.replays, self._strategy_class.stores_logits
        super().__init__(settings, placement, parallel)

    def _begin(self, model: models.ImageClassifier) -> None:
        super()._begin(model)
        learning = self._settings.learning
        self._strategy = self._strategy_class()
        self._average = Average(model, learning.average_decay) if learning.average_decay else None
        self._optimizer = _optimizer(model, learning)
        self._weighted_loss = WeightedLoss(mean=float(self._settings.batch.size))
        self._fresh_rows: list[int] = []  # rows that no step has trained

    @property
    def evaluated(self) -> models.ImageClassifier:
        return self._average.model if self._average else self.model

    def solve(self) -> None:
        """Do nothing: the steps train the head."""

    @property
    def _shares_features(self) -> bool:
        """Whether a batch's first step needs the features that its prediction needs: same network, images and mode."""
        same_images = not (self.replays or self._augmentations)
        return same_images and not self._average and (self.model.frozen or self.model.same_in_training)

    def predict(self, images_NHWC: Tensor) -> tuple[Tensor, Tensor]:
        if not self._shares_features:
            return super().predict(images_NHWC)
        with self._placement.training():
            self._train()
            features_NF = self.model.features(images_NHWC)
            with torch.no_grad():
                return features_NF, self.model.head(features_NF)

    def _train(self) -> None:
        """Put the network into training mode."""
        if not self.model.training:  # otherwise `train` would set the mode of each layer again
            self.model.train()

    def kept_logits(self, logits: Callable[[], Tensor]) -> Tensor | None:
        if not self.stores_logits:
            return None
        kept = logits().float().clone()
        kept[:, self._fresh_rows + self._silent_rows] = torch.nan  # the logits of these rows mean nothing
        return kept

    def learn(self, batch: TrainingBatch) -> Trained:
        """Take `learning.steps_per_batch` steps. If a step is not finite, undo it and stop."""
        learning = self._settings.learning
        for group in self._optimizer.param_groups:
            group["lr"] = batch.learning_rate_factor * learning.learning_rate
        loss_sum = 0.0
        for step in range(learning.steps_per_batch):
            shares_features = self._shares_features and step == 0  # a step changes the network
            loss = self._step(batch.portions, shares_features)
            if not math.isfinite(loss):
                return Trained(step, loss_sum, finite=False)
            loss_sum += loss
        return Trained(learning.steps_per_batch, loss_sum)

    def _drawn(self, portion: Portion, shares_features: bool) -> Step:
        """Return a shard's input of a step. Draw its replay and augmentations."""
        stream, replay = portion.stream, None
        if portion.samples:
            with portion.drawing():
                stream = self._augmented(stream)
                if self.replays:
                    replay = self._augmented(portion.replay())
        if replay is None:
            replay = stream.at(slice(0))
        teacher = self._average.model if self._average else None
        return Step(self.model, teacher, stream, replay, portion.features_NF() if shares_features else None)

    def _augmented(self, minibatch: Minibatch) -> Minibatch:
        images_NHWC = minibatch.images_NHWC
        for augment in self._augmentations:
            images_NHWC = augment(images_NHWC)
        return minibatch._replace(images_NHWC=images_NHWC)

    def _step(self, portions: Sequence[Portion], shares_features: bool) -> float:
        """Take one step and return the loss. Return NaN, and change nothing, if the loss or a gradient was not finite.

        With `shares_features`, the portions' features are those that the network computes in this step.
        """
        self._train()
        mean, kept = self._weighted_loss.mean, self._strategy.state_dict()
        self._optimizer.zero_grad()
        steps = [self._drawn(portion, shares_features) for portion in portions]
        self._begin_strategy(steps)
        parameters = self._optimizer.param_groups[0]["params"]  # those of the network, without a walk over its layers
        passes = Passes(parameters, self.model.buffers(), self._weighted_loss, self._parallel)
        for shard, (portion, step) in enumerate(zip(portions, steps, strict=True)):
            if portion.samples:
                with portion.drawing(), self._placement.training():
                    losses = self._losses(step)
                passes.learn(shard, losses)
        loss = passes.total()
        norms = torch._foreach_norm(passes.gradients)  # pyright: ignore[reportPrivateImportUsage]
        value = float(loss + 0 * torch.stack(norms).sum())
        if not math.isfinite(value):
            passes.restore_buffers()
            self._weighted_loss.mean = mean
            self._strategy.load_state_dict(kept)
            return math.nan
        if self._fresh_rows:
            start_moments(self._optimizer, self.model.head, self._fresh_rows)
            self._fresh_rows = []
        if isinstance(self._optimizer, Muon):
            self._optimizer.share = self._weighted_loss.share
        self._optimizer.step()
        self._keep_silent()
        if self._average:
            self._average.update(self.model)
        return value

    @torch.no_grad()
    def _begin_strategy(self, steps: Sequence[Step]) -> None:
        """Give the strategy its sums over all shards. Raises UsageError when its sums of two shards do not match."""
        sums = [found for step in steps if (found := self._strategy.sums(step)) is not None]
        if sums and (len(sums) < len(steps) or any(found.shape != sums[0].shape for found in sums)):
            raise UsageError(
                f"learning.strategy = {self._settings.learning.strategy!r} gives sums for some shards only, or sums of "
                "several shapes; `sums` must return a tensor of one shape for every step, also for an empty one"
            )
        if sums:
            self._strategy.begin(self._parallel.summed(torch.stack(sums)))

    def _losses(self, step: Step) -> Losses:
        """Return the strategy's losses. Raises UsageError when they are not one loss per sample."""
        losses, weights = self._strategy.losses(step)
        if losses.ndim != 1 or losses.shape != weights.shape:
            raise UsageError(
                f"learning.strategy = {self._settings.learning.strategy!r} gives losses of shape {list(losses.shape)} "
                f"and weights of shape {list(weights.shape)}; both must be [N], one value per sample (reduction='none')"
            )
        return Losses(losses, weights)

    # -- classes

    def _grow(self, classes: int) -> None:
        self._fresh_rows += range(self.model.head.out_features, classes)
        grow_head(self.model, self._optimizer, classes)
        if self._average:
            self._average.grow(self.model.head)

    def _retire(self, source: int, target: int | None) -> None:
        """Silence a row. If no step has trained the target's row, first copy the source's row to it.

        So a renamed class loses nothing.
        """
        if target in self._fresh_rows and source not in self._fresh_rows:
            take_over(self.model.head, self._optimizer, source, target)
            if self._average:
                take_over(self._average.model.head, None, source, target)
            self._fresh_rows.remove(target)
        if source in self._fresh_rows:
            self._fresh_rows.remove(source)
        self._strategy.retire(source, target)
        self._keep_silent()

    def _revive(self, row: int) -> None:
        averages = [self._average.model.head] if self._average else []
        begin_again([self.model.head, *averages], self._optimizer, row)
        self._fresh_rows.append(row)

    def _keep_silent(self) -> None:
        if self._silent_rows:
            keep_silent(self.model.head, self._optimizer, self._silent_rows)
            if self._average:
                keep_silent(self._average.model.head, None, self._silent_rows)

    # -- state

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict() | {
            "loss_normaliser": self._weighted_loss.mean,
            "fresh_rows": list(self._fresh_rows),
        }
        if self._average:
            state["averaged_steps"] = self._average.steps
            state |= prefixed("average", copies(self._average.model.state_dict()))
        state |= prefixed("optimizer", moments(self._optimizer))
        return state | prefixed("strategy", copies(self._strategy.state_dict()))

    @torch.no_grad()
    def load_state_dict(self, state: StateDict, classes: int) -> None:
        super().load_state_dict(state, classes)
        stored = parse(state, Stored)
        self._weighted_loss.mean = stored.loss_normaliser
        self._fresh_rows = stored.fresh_rows
        if self._average:
            with part("average"):
                load_parameters(self._average.model, under("average", state))
            self._average.steps = stored.averaged_steps
        with part("optimizer"):
            load_moments(self._optimizer, under("optimizer", state))
        with part("strategy"):
            self._strategy.load_state_dict(under("strategy", state))


def _optimizer(model: models.ImageClassifier, learning: LearningSettings) -> Optimizer:
    rate, decay = learning.learning_rate, learning.weight_decay
    if learning.optimizer == "sgd":
        return PlainSGD(model.parameters(), rate, learning.momentum, weight_decay=decay, fused=True)
    if learning.optimizer == "muon":
        return Muon(model.parameters(), matrices_of(model.body), rate, learning.momentum, decay)
    return PlainAdam(model.parameters(), rate, weight_decay=decay, fused=True)
