"""Memories of samples, for replay and for the held-out sets."""

from stream_learner.learning.memory.balanced import BalancedMemory

__all__ = ["BalancedMemory"]
