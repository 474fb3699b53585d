"""Strategies of learning a batch. Each one is a function `losses` that fits on a screen, with its paper."""

from stream_learner.errors import UsageError
from stream_learner.learning.strategies.step import Losses, Minibatch, Step, Strategy
from stream_learner.registry import STRATEGIES


def strategy(name: str) -> type[Strategy]:
    """Return the strategy with this name, or a user's own. Raises UsageError when there is none."""
    found = STRATEGIES.lookup(name)
    if not (isinstance(found, type) and issubclass(found, Strategy)):
        raise UsageError(f"learning.strategy = {name!r} is not a class derived from stream_learner.Strategy")
    return found


__all__ = ["Losses", "Minibatch", "Step", "Strategy", "strategy"]
