"""The samples that a shard keeps: its memory for replay, and its held-out sets."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stream_learner.config import Settings
from stream_learner.learning.memory import BalancedMemory, Replay, held_out_sets, replay_memory
from stream_learner.learning.predicted import Predicted
from stream_learner.learning.state_dict import StateDict
from stream_learner.learning.stored import part
from stream_learner.learning.trainers import Trainer
from stream_learner.learning.weighting import Weighed, Weights


class Shard:
    """A memory, held-out sets of validation and test samples, and replay from the memory."""

    def __init__(self, settings: Settings, trainer: Trainer, weights: Weights, device: torch.device, number: int):
        """Begin without samples. `weights` are only read. `number` is the shard's, from 0."""
        self.memory = replay_memory(settings, number, replays=trainer.replays, stores_logits=trainer.stores_logits)
        self.held_out = held_out_sets(settings, number)
        self.replay = Replay(settings, self.memory, weights, device, with_logits=trainer.stores_logits)

    @property
    def _memories(self) -> dict[str, BalancedMemory]:
        return {"memory": self.memory} | {split.value: held_out for split, held_out in self.held_out.items()}

    def remember(self, predicted: Predicted, weighed: Weighed, records: int, logits: Tensor | None) -> None:
        """Offer learned samples to the memory, except samples of weight 0.

        `records` is the number of input records that were read before their batch. `logits` [N, classes] are kept with
        the samples, if they are given.
        """
        rows = logits.cpu().numpy() if logits is not None else [None] * len(predicted.samples)
        columns = predicted.labels.tolist(), weighed.stored.tolist(), weighed.timestamps_ms.tolist(), rows
        for sample, label, weight, timestamp_ms, row in zip(predicted.samples, *columns, strict=True):
            if weight > 0:
                dated = sample if sample.timestamp_ms == timestamp_ms else sample._replace(timestamp_ms=timestamp_ms)
                self.memory.add(dated, label, weight, records, row)

    def retire(self, source: int, target: int | None) -> None:
        """Move the samples of class `source` to class `target`, or drop the samples if `target` is None."""
        for memory in self._memories.values():
            memory.retire(source, target)

    @property
    def parts(self) -> dict[str, bytes]:
        """Immutable parts of the state, by digest (`sha256:` and 64 hex digits)."""
        return {digest: data for memory in self._memories.values() for digest, data in memory.parts.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return copies of the memories' state dicts, by name."""
        return {name: memory.state_dict() for name, memory in self._memories.items()}

    def load_state_dict(self, state: StateDict, parts: Mapping[str, bytes], classes: int) -> None:
        """Restore a state of a learner that knows `classes` classes. Raises ValueError when it is malformed."""
        for name, memory in self._memories.items():
            with part(name):
                memory.load_state_dict(state.get(name, {}), parts, classes)
