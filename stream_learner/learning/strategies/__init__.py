"""How a batch is learned. Each strategy is one `losses`, on one screen, with its paper."""

from stream_learner.errors import UsageError
from stream_learner.learning.strategies.step import Losses, Minibatch, Step, Strategy
from stream_learner.registry import STRATEGIES


def strategy(name: str) -> type[Strategy]:
    """The strategy of that name, or a user's own. Raises UsageError when there is none."""
    found = STRATEGIES.lookup(name)
    if not (isinstance(found, type) and issubclass(found, Strategy)):
        raise UsageError(f"learning.strategy = {name!r} is no class derived from {__name__}.Strategy, as it is to be")
    return found


__all__ = ["Losses", "Minibatch", "Step", "Strategy", "strategy"]
