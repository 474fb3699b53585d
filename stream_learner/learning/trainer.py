"""The network, and everything that an optimizer step changes."""

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from msgspec import Struct
from torch import Tensor, nn

from stream_learner import networks as models
from stream_learner.config import Settings
from stream_learner.contract.manifest import ModelSpec
from stream_learner.errors import UsageError
from stream_learner.learning.averaging import Average
from stream_learner.learning.growth import grow_head, start_moments
from stream_learner.learning.heads import Accumulator, silence
from stream_learner.learning.muon import Muon, matrices_of
from stream_learner.learning.optimizers import PlainAdam, PlainSGD
from stream_learner.learning.placement import Placement
from stream_learner.learning.rows import begin_again, keep_silent, take_over
from stream_learner.learning.spec import spec_of
from stream_learner.learning.state_dict import StateDict, copied, copies, prefixed, under
from stream_learner.learning.stored import Count, NonNegative, parse, part
from stream_learner.learning.strategies import Minibatch, Step, Strategy, strategy
from stream_learner.learning.weighting import WeightedLoss
from stream_learner.networks.tensors import load_weights, tensor
from stream_learner.networks.weights import load_body
from stream_learner.registry import HEADS

MOMENTUM = frozenset({"momentum_buffer"})  # of SGD, and of Muon's matrices
ADAM = frozenset({"step", "exp_avg", "exp_avg_sq"})


class Stored(Struct):
    loss_normaliser: NonNegative
    fresh_rows: list[Count]
    silent_rows: list[Count]
    averaged_steps: Count


class Trainer:
    """Takes optimizer steps with a strategy, or accumulates samples for a solved head.

    Its state is exactly what a step changes: the network's weights and buffers, their average, the optimizer's moments,
    the strategy's state, the loss's normaliser and the head's sums.
    """

    def __init__(self, settings: Settings, placement: Placement):
        """Build the trainer. Raises UsageError when a setting does not fit.

        That is a model, head or strategy that does not exist, images too small for the model, weights of another
        network, or a strategy that needs an average while none is kept.
        """
        self._settings = settings
        self._placement = placement
        learning = settings.learning
        self._head = HEADS.lookup(settings.model.head)
        chosen = strategy(learning.strategy)
        # A head that is solved takes no steps: nothing of a strategy's is kept or saved.
        self.strategy = Strategy() if self._head else chosen()
        if self.strategy.distils and not learning.average_decay:
            raise UsageError(
                f"learning.strategy = {learning.strategy!r} uses the average as teacher; "
                "set learning.average_decay above 0"
            )
        model = self._build(classes=0)
        if settings.model.weights:
            load_body(model, settings.model.weights)
        self._begin(model)

    def _begin(self, model: models.ImageClassifier) -> None:
        self.model = model
        self._accumulator = self._head and Accumulator(self._head(model.head.in_features, self._placement.device))
        decay = 0 if self._head else self._settings.learning.average_decay
        self._average = Average(model, decay) if decay else None
        self._optimizer = self._build_optimizer()
        self._weighted_loss = WeightedLoss(mean=float(self._settings.batch.size))
        self._fresh_rows: list[int] = []  # which no step has seen
        self._silent_rows: list[int] = []  # of retired classes

    @property
    def evaluated(self) -> models.ImageClassifier:
        """The network that predicts and is released: the average, if one is kept."""
        return self._average.model if self._average else self.model

    @property
    def accumulates(self) -> bool:
        """Whether samples are accumulated instead of taking steps."""
        return self._accumulator is not None

    @property
    def replays(self) -> bool:
        """Whether a memory is kept."""
        return self.strategy.replays and not self.accumulates

    @property
    def mute_rows(self) -> list[int]:
        """Rows of the head whose logits have no meaning: those without a step, and those of retired classes."""
        return self._fresh_rows + self._silent_rows

    def set_classes(self, classes: int, retired: Mapping[int, int | None]) -> None:
        """Extend the head to `classes` rows, and silence exactly the `retired` ones.

        `retired` holds indices in the order of retiring, each with the index that took over its samples, or None.
        """
        self._grow(classes)
        for row in [row for row in self._silent_rows if row not in retired]:
            self._revive(row)
        for source, target in retired.items():
            if source not in self._silent_rows:
                self._retire(source, target)

    def _grow(self, classes: int) -> None:
        rows = self.model.head.out_features
        if classes <= rows:
            return
        grow_head(self.model, self._optimizer, classes)
        if self._average:
            self._average.grow(self.model.head)
        if self._accumulator:
            silence(self.model.head, [*range(rows, classes)])
        else:
            self._fresh_rows += range(rows, classes)

    def _retire(self, source: int, target: int | None) -> None:
        """Silence a row. If no step has learned the target, it takes the row over, so that renaming loses nothing."""
        if target in self._fresh_rows and source not in self._fresh_rows:
            take_over(self.model.head, self._optimizer, source, target)
            if self._average:
                take_over(self._average.model.head, None, source, target)
            self._fresh_rows.remove(target)
        if source in self._fresh_rows:
            self._fresh_rows.remove(source)
        self._silent_rows.append(source)
        self.strategy.retire(source, target)
        if self._accumulator:
            self._accumulator.retire(source, target, self.model.head)
        self._keep_silent()

    def _revive(self, row: int) -> None:
        self._silent_rows.remove(row)
        if self._accumulator:
            return  # solved once it has samples
        averages = [self._average.model.head] if self._average else []
        begin_again([self.model.head, *averages], self._optimizer, row)
        self._fresh_rows.append(row)

    def _keep_silent(self) -> None:
        if self._silent_rows:
            keep_silent(self.model.head, self._optimizer, self._silent_rows)
            if self._average:
                keep_silent(self._average.model.head, None, self._silent_rows)

    def scale_learning_rate(self, factor: float) -> None:
        """Scale the learning rate. Call again after `load_state_dict`."""
        for group in self._optimizer.param_groups:
            group["lr"] = factor * self._settings.learning.learning_rate

    def step(self, stream: Minibatch, replay: Callable[[], Minibatch]) -> float:
        """Take one step and return the loss. Return NaN, and change nothing, if the loss or a gradient was not finite.

        Raises UsageError when the strategy does not return one loss per sample.
        """
        self.model.train()
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        normaliser, kept = copy.copy(self._weighted_loss), self.strategy.state_dict()
        self._optimizer.zero_grad()
        teacher = self._average.model if self._average else None
        with self._placement.training():
            losses, weights = self.strategy.losses(Step(self.model, teacher, stream, replay))
        if losses.ndim != 1 or losses.shape != weights.shape:
            raise UsageError(
                f"learning.strategy = {self._settings.learning.strategy!r} gives losses of shape {list(losses.shape)}, "
                f"weights of {list(weights.shape)}; both must be [N], one value per sample (reduction='none')"
            )
        loss = self._weighted_loss(losses, weights)
        loss.backward()
        norm = nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        value = float(loss.detach() + 0 * norm)
        if not math.isfinite(value):
            for buffer, before in zip(self.model.buffers(), buffers, strict=True):
                buffer.copy_(before)
            self._weighted_loss = normaliser
            self.strategy.load_state_dict(kept)
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

    def accumulate(self, features_NF: Tensor, stream: Minibatch) -> bool:
        """Add samples with these features. Return False, and change nothing, if one was not finite."""
        assert self._accumulator
        return self._accumulator.add(features_NF, stream.labels, stream.weights, self.model.head)

    def solved(self) -> models.ImageClassifier:
        """Return the network as a release would have it now: a copy where its head has to be solved first."""
        if not self._accumulator:
            return self.evaluated
        network = copy.deepcopy(self.evaluated)
        self._accumulator.solve(network.head)
        return network

    def solve(self) -> None:
        """Solve the head from all added samples, if it is a solved head."""
        if self._accumulator:
            self._accumulator.solve(self.model.head)

    # -- state

    def state_dict(self) -> dict[str, Any]:
        """Return copies of the state's tensors, on the CPU, and the rest of the state, as JSON."""
        state: dict[str, Any] = {
            "loss_normaliser": self._weighted_loss.mean,
            "fresh_rows": list(self._fresh_rows),
            "silent_rows": list(self._silent_rows),
            "averaged_steps": self._average.steps if self._average else 0,
        }
        state |= prefixed("model", copies(self.model.state_dict()))
        if self._average:
            state |= prefixed("average", copies(self._average.model.state_dict()))
        if self._accumulator:
            state |= prefixed("head", self._accumulator.state_dict())
        for index, parameter in enumerate(self._optimizer.param_groups[0]["params"]):
            for key, moment in self._optimizer.state.get(parameter, {}).items():
                if moment is not None:
                    state[f"optimizer/{index}/{key}"] = copied(moment)
        return state | prefixed("strategy", copies(self.strategy.state_dict()))

    @torch.no_grad()
    def load_state_dict(self, state: StateDict, classes: int) -> None:
        """Take over what `state_dict` gave, of a network with `classes` classes. Raises ValueError for any other."""
        stored = parse(state, Stored)
        with part("model"):
            weights = under("model", state)
            tensor(weights, "head.bias", torch.float32, classes)
            self._begin(self._build(classes))
            load_weights(self.model, weights)
        if self._average:
            with part("average"):
                load_weights(self._average.model, under("average", state))
            self._average.steps = stored.averaged_steps
        if self._accumulator:
            with part("head"):
                self._accumulator.load_state_dict(under("head", state), classes)
        with part("optimizer"):
            self._restore_moments(under("optimizer", state))
        with part("strategy"):
            self.strategy.load_state_dict(under("strategy", state))
        self._weighted_loss.mean = stored.loss_normaliser
        rows = stored.fresh_rows + stored.silent_rows
        if len(set(rows)) < len(rows) or max(rows, default=-1) >= classes:
            raise ValueError(f"fresh_rows and silent_rows are no rows of a head of {classes}, each once")
        self._fresh_rows, self._silent_rows = stored.fresh_rows, stored.silent_rows

    def check(self, state: StateDict, classes: int) -> None:
        """Raise ValueError if `load_state_dict` would. Change nothing."""
        with torch.random.fork_rng(devices=[]):
            twin = copy.copy(self)
            twin.strategy = copy.deepcopy(self.strategy)
            twin.load_state_dict(state, classes)

    def _restore_moments(self, tensors: dict[str, Tensor]) -> None:
        moments_of: dict[str, set[str]] = {}
        for name in tensors:
            index, _, key = name.partition("/")
            moments_of.setdefault(index, set()).add(key)
        parameters = {str(i): p for i, p in enumerate(self._optimizer.param_groups[0]["params"])}
        if surplus := moments_of.keys() - parameters.keys():
            raise ValueError(f"moments of parameter {min(surplus)} belong to another network")
        for index, keys in moments_of.items():
            parameter = parameters[index]
            if keys != (wanted := self._moments(parameter)):
                raise ValueError(f"parameter {index} has {', '.join(sorted(keys))}, not {', '.join(sorted(wanted))}")
            for key in sorted(keys):
                shape = () if key == "step" else parameter.shape
                found = tensor(tensors, f"{index}/{key}", torch.float32, *shape)
                if key in ("step", "exp_avg_sq") and (found < 0).any():
                    raise ValueError(f"tensor {index}/{key} holds negative numbers")
                # Moments take their parameter's device and memory layout; Adam's step count is a scalar of its own.
                moment = torch.empty_like(parameter) if shape else torch.empty_like(found, device=parameter.device)
                self._optimizer.state[parameter][key] = moment.copy_(found)

    def _moments(self, parameter: nn.Parameter) -> frozenset[str]:
        """Return the names of the moments that the optimizer keeps for a parameter."""
        if isinstance(self._optimizer, Muon):
            return MOMENTUM if any(parameter is matrix for matrix in self._optimizer.matrices) else ADAM
        return MOMENTUM if isinstance(self._optimizer, torch.optim.SGD) else ADAM

    # -- building

    def spec(self) -> ModelSpec:
        """Return the spec of the network as it is now."""
        return spec_of(self._settings.model, self.model.head.out_features)

    def _build(self, classes: int) -> models.ImageClassifier:
        model = models.build(spec_of(self._settings.model, classes), own=self._settings.model.name)
        if self._settings.model.frozen:
            model.freeze()
        return model.to(self._placement.device, memory_format=self._placement.memory_format)  # pyright: ignore

    def _build_optimizer(self) -> torch.optim.Optimizer:
        learning = self._settings.learning
        parameters = self.model.parameters()
        if learning.optimizer == "sgd":
            return PlainSGD(
                parameters, learning.learning_rate, learning.momentum, weight_decay=learning.weight_decay, fused=True
            )
        if learning.optimizer == "muon":
            matrices = matrices_of(self.model.body)
            return Muon(parameters, matrices, learning.learning_rate, learning.momentum, learning.weight_decay)
        return PlainAdam(parameters, learning.learning_rate, weight_decay=learning.weight_decay, fused=True)
