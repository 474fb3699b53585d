"""What a strategy is given for one step, and what it gives."""

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Minibatch(NamedTuple):
    """Images uint8 [N, H, W, C], class indices int64 [N] and weights float32 [N], on the learner's device.

    `logits` float32 [N, classes] are what the network said of the samples when they arrived, NaN for classes that it
    had taken no step with, for which columns may lack as well; only for a strategy that `stores_logits`.
    """

    images_NHWC: Tensor
    labels: Tensor
    weights: Tensor
    logits: Tensor | None = None

    def joined(self, other: "Minibatch") -> "Minibatch":
        """Both, without logits."""
        return Minibatch(*(torch.cat(pair) for pair in zip(self[:3], other[:3], strict=True)))


class Step(NamedTuple):
    """One optimizer update: the network in training mode, its average (None where none is kept), the stream's samples
    and a draw from the memory.

    `replay()` gives fresh samples each time; none while the memory is empty.
    """

    model: nn.Module
    average: nn.Module | None
    stream: Minibatch
    replay: Callable[[], Minibatch]


class Losses(NamedTuple):
    """Each sample's loss and weight, float32 [N]."""

    losses: Tensor
    weights: Tensor


class Strategy:
    """How the loss of a step comes about. One that keeps nothing between steps only says `losses`."""

    replays: ClassVar[bool] = True
    """Whether a memory is kept for it."""
    stores_logits: ClassVar[bool] = False
    """Whether logits are kept with the samples in the memory."""
    distils: ClassVar[bool] = False
    """Whether the average teaches it."""

    def losses(self, step: Step) -> Losses:
        """What is minimised: their weighted mean."""
        raise NotImplementedError

    def retire(self, source: int, target: int | None) -> None:
        """Note that class `source` retired, and that its samples are those of class `target` now; None: of no class.

        Its logits are -1e30 from here on, and no sample has it for a label.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of what it keeps between steps."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes over what `state_dict()` gave."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Of each sample, float32 [N]; logits [N, classes] of any float type, labels int64 [N]."""
    return F.cross_entropy(logits.float(), labels, reduction="none")
