"""Memories of samples, for replay and for the held-out sets."""

from stream_learner.learning.memory.balanced import BalancedMemory
from stream_learner.learning.memory.build import held_out_sets, replay_memory
from stream_learner.learning.memory.replay import Replay

__all__ = ["BalancedMemory", "Replay", "held_out_sets", "replay_memory"]
