"""Strategies, which compute the loss of each sample in a step. Each one is a short file that names its paper."""

from stream_learner.errors import UsageError
from stream_learner.learning.strategies.step import Losses, Minibatch, Step, Strategy
from stream_learner.registry import STRATEGIES


def strategy(name: str) -> type[Strategy]:
    """Return the strategy with this name, or the user's own class. Raises UsageError when it does not exist."""
    found = STRATEGIES.lookup(name)
    if not (isinstance(found, type) and issubclass(found, Strategy)):
        raise UsageError(f"learning.strategy = {name!r} is not a class derived from stream_learner.Strategy")
    return found


__all__ = ["Losses", "Minibatch", "Step", "Strategy", "strategy"]
