"""What a strategy is given to compute one step's loss."""

from collections.abc import Callable
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from stream_learner.learning.weighting import WeightedLoss


class Minibatch(NamedTuple):
    """Images uint8 [N, H, W, C], class indices int64 [N] and weights float32 [N], on the learner's device."""

    images_NHWC: Tensor
    labels: Tensor
    weights: Tensor

    def joined(self, other: "Minibatch") -> "Minibatch":
        return Minibatch(*(torch.cat(pair) for pair in zip(self, other, strict=True)))


class Step(NamedTuple):
    """One optimizer update: the model in training mode, the stream's samples, and a draw from the memory.

    `replay()` gives fresh samples each time; none while the memory is empty.
    """

    model: nn.Module
    stream: Minibatch
    replay: Callable[[], Minibatch]
    weighted_loss: WeightedLoss


class Strategy(Protocol):
    replays: ClassVar[bool]
    """Whether a memory is kept for it."""

    def loss(self, step: Step) -> Tensor:
        """The scalar to minimise."""
        ...
