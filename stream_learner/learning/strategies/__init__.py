"""How a batch is learned: a registry from name to class. Each is one `losses`, on one screen, with its paper."""

from stream_learner.errors import UsageError
from stream_learner.learning.strategies.derpp import DarkExperienceReplay
from stream_learner.learning.strategies.er import ExperienceReplay
from stream_learner.learning.strategies.er_ace import AsymmetricCrossEntropy
from stream_learner.learning.strategies.er_la import LogitAdjustedReplay
from stream_learner.learning.strategies.finetune import FineTune
from stream_learner.learning.strategies.mkd import MomentumDistillation
from stream_learner.learning.strategies.step import Losses, Minibatch, Step, Strategy
from stream_learner.registry import lookup

STRATEGIES: dict[str, type[Strategy]] = {
    "finetune": FineTune,
    "er": ExperienceReplay,
    "er_ace": AsymmetricCrossEntropy,
    "er_la": LogitAdjustedReplay,
    "derpp": DarkExperienceReplay,
    "mkd": MomentumDistillation,
}


def strategy(name: str) -> type[Strategy]:
    """The strategy of that name, or a user's own. Raises UsageError when there is none."""
    found = lookup(STRATEGIES, name, "learning.strategy")
    if not (isinstance(found, type) and issubclass(found, Strategy)):
        raise UsageError(f"learning.strategy = {name!r} is no class derived from {__name__}.Strategy, as it is to be")
    return found


__all__ = ["STRATEGIES", "Losses", "Minibatch", "Step", "Strategy", "strategy"]
