"""Forward and backward passes of the shards in one step, and the sums of their results over all shards."""

import math
from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from stream_learner.learning.parallel import Parallel
from stream_learner.learning.strategies import Losses
from stream_learner.learning.weighting import WeightedLoss
from stream_learner.networks import ImageClassifier


class Pass(NamedTuple):
    """Losses and weights of a shard's samples, and the network's buffers after its forward pass."""

    losses: Tensor
    weights: Tensor
    buffers: list[Tensor]


class Passes:
    """Passes of the local shards in one step. Each shard begins with the same buffers.

    The gradients become the sums over all shards. Buffers that changed, such as the running statistics of batch
    normalisation, become the mean over the shards, weighted by numbers of samples. With one shard, they are what its
    passes leave in the network.
    """

    def __init__(self, model: ImageClassifier, parallel: Parallel):
        self._model = model
        self._parallel = parallel
        self._buffers = list(model.buffers())
        self._before = [buffer.clone() for buffer in self._buffers]
        self._passes: list[Pass | None] = []
        self._shares = np.ones(1)  # of the shards in the samples

    def skip(self) -> None:
        """Skip the next local shard, which has no samples."""
        self._passes.append(None)

    def forward(self, losses: Callable[[], Losses]) -> None:
        """Compute the losses of the next local shard."""
        if self._passes:
            self.restore_buffers()
        found = losses()
        after = [buffer.clone() for buffer in self._buffers] if self._parallel.shards > 1 else []
        self._passes.append(Pass(*found, after))

    def restore_buffers(self) -> None:
        """Set the buffers to their values before the step."""
        self._set_buffers(self._before)

    def _set_buffers(self, values: list[Tensor]) -> None:
        for buffer, value in zip(self._buffers, values, strict=True):
            buffer.data.copy_(value)  # through `data`, because autograd must not see that a buffer changed

    def total_weight(self) -> float:
        """Return the sum of the weights of all shards' samples. Call it after the forward passes.

        The sum is NaN if weights are not finite or too large to be added.
        """
        if self._parallel.shards == 1:
            (only,) = self._passes
            assert only
            return float(only.weights.sum())
        rows = [(0.0, 0) if one is None else (float(one.weights.sum()), len(one.weights)) for one in self._passes]
        weights, counts = self._parallel.gathered(np.array(rows)).T
        self._shares = counts / counts.sum()
        try:
            return math.fsum(weights)
        except (ValueError, OverflowError):  # infinities of both signs, or a sum above the largest number
            return math.nan

    def backward(self, weighted_loss: WeightedLoss) -> Tensor:
        """Compute the gradients, and return the loss of all shards' samples, a scalar."""
        if self._parallel.shards == 1:
            (only,) = self._passes
            assert only
            loss = weighted_loss(only.losses, only.weights)
            loss.backward()
            return loss.detach()
        learning = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        values = [*learning, *self._buffers]
        sizes = [1, len(values), *(value.numel() for value in values)]
        dtype = reduce(torch.promote_types, (value.dtype for value in values), torch.float32)
        rows = torch.zeros(len(self._passes), sum(sizes), dtype=dtype, device=values[0].device)
        for shard, row, one in zip(self._parallel.local, rows, self._passes, strict=True):
            if one:
                self._set_buffers(one.buffers)  # a backward pass may read the buffers of its forward pass
                loss = weighted_loss(one.losses, one.weights)
                loss.backward()
                present, parts = _taken(learning)
                for before, after in zip(self._before, one.buffers, strict=True):
                    present.append(not torch.equal(before, after))
                    parts.append(float(self._shares[shard]) * _difference(before, after))
                flags = torch.tensor(present, dtype=dtype, device=row.device)
                torch.cat([loss.detach()[None], flags, *(part.flatten() for part in parts)], out=row)
        loss, present, *parts = self._parallel.summed(rows).split(sizes)
        parts = [
            part.view(value.shape) if some else None
            for value, some, part in zip(values, present.tolist(), parts, strict=True)
        ]
        for parameter, part in zip(learning, parts, strict=False):
            # In the parameter's memory layout, which fused optimizers need.
            parameter.grad = None if part is None else torch.empty_like(parameter).copy_(part)
        self.restore_buffers()
        for buffer, part in zip(self._buffers, parts[len(learning) :], strict=True):
            if part is not None:
                buffer.copy_(part if _is_continuous(buffer) else buffer + part.round().long())
        return loss[0]


def _taken(parameters: list[nn.Parameter]) -> tuple[list[bool], list[Tensor]]:
    """Take the gradients off the parameters. Return which parameters have one, and the gradients, 0 for the others."""
    present = [parameter.grad is not None for parameter in parameters]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    return present, gradients


def _is_continuous(buffer: Tensor) -> bool:
    return buffer.is_floating_point() or buffer.is_complex()


def _difference(before: Tensor, after: Tensor) -> Tensor:
    """Return the value to average over the shards: the new value, or the growth of an integer."""
    return after if _is_continuous(after) else after.long() - before.long()
