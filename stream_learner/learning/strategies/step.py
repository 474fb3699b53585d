"""Input and output of a strategy for one step."""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Minibatch(NamedTuple):
    """Images uint8 [N, H, W, C], class indices int64 [N] and weights float32 [N], on the learner's device.

    `logits`, float32 [N, classes], are the logits that were predicted when the samples arrived. For classes that no
    step had trained by then, they are NaN or have no column. `logits` is None unless the strategy `stores_logits`.
    """

    images_NHWC: Tensor
    labels: Tensor
    weights: Tensor
    logits: Tensor | None = None

    def joined(self, other: "Minibatch") -> "Minibatch":
        """Return both minibatches as one, without logits."""
        return Minibatch(*(torch.cat(pair) for pair in zip(self[:3], other[:3], strict=True)))

    def at(self, samples: slice) -> "Minibatch":
        """Return some of the samples."""
        images_NHWC, labels, weights, logits = self
        return Minibatch(
            images_NHWC[samples], labels[samples], weights[samples], None if logits is None else logits[samples]
        )


class Step(NamedTuple):
    """A shard's input of one optimizer update: network, average, the stream's samples, and samples of the memory.

    The network is in training mode. `average` is None if no average is kept. `replay` is empty while the memory is
    empty, and for a strategy that does not replay. `features_NF` are the network's features of the stream's samples,
    with their gradients, if they were computed before.
    """

    model: nn.Module
    average: nn.Module | None
    stream: Minibatch
    replay: Minibatch
    features_NF: Tensor | None = None

    @property
    def classes(self) -> int:
        """Number of the network's classes, including retired ones."""
        return self.model.head.out_features  # pyright: ignore[reportAttributeAccessIssue, reportReturnType]

    def stream_logits(self) -> Tensor:
        """Return the network's logits [N, classes] of the stream's samples. Compute only what is not known yet."""
        if self.features_NF is None:
            return self.model(self.stream.images_NHWC)
        return self.model.logits(self.features_NF)  # pyright: ignore[reportCallIssue]


class Losses(NamedTuple):
    """Each sample's loss and weight, float32 [N]."""

    losses: Tensor
    weights: Tensor


class Strategy:
    """Base class of strategies. A strategy that keeps nothing between steps defines only `losses`.

    Each shard's samples make a `Step` of their own. Facts about the samples of all shards, and everything that the
    strategy keeps between steps, come from `sums`.
    """

    replays: ClassVar[bool] = True
    """Whether the strategy replays samples from a memory."""
    stores_logits: ClassVar[bool] = False
    """Whether the memory keeps logits with its samples."""
    distils: ClassVar[bool] = False
    """Whether the strategy needs the average as a teacher."""

    def losses(self, step: Step) -> Losses:
        """Return the losses and weights whose weighted mean is minimised. Change nothing."""
        raise NotImplementedError

    def sums(self, step: Step) -> Tensor | None:
        """Return sums over a shard's samples, of a shape that does not depend on them, or None.

        The shard may have no samples. Draw no random numbers, and do not use the network.
        """
        del step

    def begin(self, totals: Tensor) -> None:
        """Note the `sums` of all shards, added up. Called before the `losses` of a step, unless `sums` gives None."""

    def retire(self, source: int, target: int | None) -> None:
        """Note that class `source` retired. Its samples now belong to class `target`, or to no class (None).

        From now on, the logits of `source` are -1e30, and no sample has this label.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of the state that is kept between steps."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore a state from `state_dict`."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of each sample, float32 [N]. Logits [N, classes] have any float type, labels are int64 [N]."""
    return F.cross_entropy(logits.float(), labels, reduction="none")
