"""What is kept of the samples seen: for replay, and for the held-out sets."""

from stream_learner.learning.memory.balanced import BalancedMemory

__all__ = ["BalancedMemory"]
