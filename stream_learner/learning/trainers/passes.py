"""Forward and backward passes of the shards in one step, and the sums of their results over all shards."""

from collections.abc import Iterable, Iterator
from functools import reduce

import torch
from torch import Tensor, nn

from stream_learner.learning.parallel import Parallel
from stream_learner.learning.strategies import Losses
from stream_learner.learning.weighting import WeightedLoss


class Passes:
    """Passes of the local shards in one step. Each shard begins with the same buffers.

    The gradients become those of the weighted loss of all shards. Buffers that changed, such as the running statistics
    of batch normalisation, become the mean over the shards, weighted by numbers of samples. With one shard, they are
    what its passes leave in the network.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        buffers: Iterable[Tensor],
        weighted_loss: WeightedLoss,
        parallel: Parallel,
    ):
        """Begin a step of a network. The sum of the weights goes to `weighted_loss` as soon as it is known."""
        self._weighted_loss = weighted_loss
        self._parallel = parallel
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._buffers = list(buffers)
        self._before = [buffer.clone() for buffer in self._buffers]
        self._loss = torch.zeros(())
        self._divisor = weighted_loss.mean
        if parallel.shards > 1:
            values = [*self._parameters, *self._buffers]
            learned, averaged = (sum(value.numel() for value in part) for part in (self._parameters, self._buffers))
            # Of each shard: its weight, its number of samples, whether a value is present, its loss and gradients, and
            # its buffers times its number of samples.
            self._sizes = [2, len(values), 1 + learned, averaged]
            dtype = reduce(torch.promote_types, (value.dtype for value in values), torch.float32)
            self._rows = torch.zeros(len(parallel.local), sum(self._sizes), dtype=dtype, device=values[0].device)

    def learn(self, shard: int, losses: Losses) -> None:
        """Add the gradients of a local shard, from its forward pass. A shard without samples has none."""
        if self._parallel.shards == 1:
            self._weighted_loss.begin(float(losses.weights.detach().sum()))
            self._loss = self._weighted_loss(*losses)
            self._loss.backward()
            return
        # The sum of all shards' weights is still unknown. So divide by the mean of earlier sums. `total` corrects it.
        loss = (losses.weights * losses.losses).sum() / self._divisor
        loss.backward()
        totals, present, learned, averaged = self._rows[shard].split(self._sizes)
        samples = len(losses.weights)
        totals[0], totals[1], learned[0] = losses.weights.detach().sum(), samples, loss.detach()
        flags = []
        for parameter, part in zip(self._parameters, self._gradients(learned), strict=True):
            flags.append(parameter.grad is not None)
            if parameter.grad is not None:
                part.copy_(parameter.grad)
                parameter.grad = None
        for buffer, before, part in zip(self._buffers, self._before, self._means(averaged), strict=True):
            flags.append(not torch.equal(before, buffer))
            # Multiplied in the dtype of the row, because a buffer of float16 would overflow.
            part.copy_(buffer if _is_continuous(buffer) else buffer.long() - before.long()).mul_(samples)
        present.copy_(torch.tensor(flags))
        self.restore_buffers()

    def total(self) -> Tensor:
        """Set the gradients and buffers, and return the loss of all shards' samples, a scalar."""
        if self._parallel.shards == 1:
            return self._loss.detach()
        totals, present, learned, averaged = self._parallel.summed(self._rows).split(self._sizes)
        self._weighted_loss.begin(float(totals[0].real))
        learned *= self._divisor / self._weighted_loss.normaliser
        averaged /= totals[1]
        flags = iter(present.tolist())
        for parameter, part in zip(self._parameters, self._gradients(learned), strict=True):
            parameter.grad = _in(part, parameter.dtype) if next(flags) else None
        for buffer, part in zip(self._buffers, self._means(averaged), strict=True):
            if next(flags):
                buffer.copy_(_in(part, buffer.dtype) if _is_continuous(buffer) else buffer + part.real.round().long())
        return learned[0].real

    @property
    def gradients(self) -> list[Tensor]:
        """The gradients that the parameters have."""
        return [parameter.grad for parameter in self._parameters if parameter.grad is not None]

    def restore_buffers(self) -> None:
        """Set the buffers to their values before the step."""
        for buffer, before in zip(self._buffers, self._before, strict=True):
            buffer.data.copy_(before)  # through `data`, because autograd must not see that a buffer changed

    def _gradients(self, learned: Tensor) -> Iterator[Tensor]:
        """Yield views of a shard's gradients, in the memory layouts of the parameters, which fused optimizers need."""
        parts = learned[1:].split([parameter.numel() for parameter in self._parameters])
        for parameter, part in zip(self._parameters, parts, strict=True):
            yield part.as_strided(parameter.shape, torch.empty_like(parameter, device="meta").stride())

    def _means(self, averaged: Tensor) -> Iterator[Tensor]:
        """Yield views of a shard's buffers."""
        parts = averaged.split([buffer.numel() for buffer in self._buffers])
        for buffer, part in zip(self._buffers, parts, strict=True):
            yield part.view(buffer.shape)


def _in(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return values in a dtype. A buffer of complex numbers makes all values of the sum complex."""
    return (values if dtype.is_complex else values.real).to(dtype)


def _is_continuous(buffer: Tensor) -> bool:
    return buffer.is_floating_point() or buffer.is_complex()
