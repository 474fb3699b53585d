"""Replay: minibatches drawn from the memory."""

import torch

from stream_learner.config import Settings
from stream_learner.learning.memory.balanced import BalancedMemory
from stream_learner.learning.placement import filled
from stream_learner.learning.strategies import Minibatch
from stream_learner.learning.weighting import Times, Weights


class Replay:
    """Draws a shard's minibatches from its memory (`BalancedMemory.draw`), with the current weights of the samples."""

    def __init__(
        self, settings: Settings, memory: BalancedMemory, weights: Weights, device: torch.device, *, with_logits: bool
    ):
        """Take the memory and the weights, which are only read. With `with_logits`, the memory stores logits."""
        self._size = settings.replay_size // settings.run.shards
        self._memory = memory
        self._weights = weights
        self._device = device
        self._with_logits = with_logits

    def draw(self, factor: float) -> Minibatch:
        """Draw a minibatch of `factor` times the shard's replay size. It is empty if the memory is empty."""
        memory = self._memory
        slots = memory.draw(round(self._size * factor))
        times = Times(memory.admitted[slots], memory.timestamps_ms[slots])
        weights = self._weights.replayed(memory.weights[slots], times)
        drawn = [memory.labels[slots], weights]
        if self._with_logits:
            drawn.append(memory.logits[slots])
        images_NHWC = filled((len(slots), *memory.shape), lambda out: memory.pixels_NHWC(slots, out), self._device)
        return Minibatch(images_NHWC, *(torch.from_numpy(array).to(self._device) for array in drawn))
