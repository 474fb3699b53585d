"""How a batch is learned: a registry from name to class. Each is one `losses`, on one screen, with its paper."""

from stream_learner.learning.strategies.derpp import DarkExperienceReplay
from stream_learner.learning.strategies.er import ExperienceReplay
from stream_learner.learning.strategies.er_ace import AsymmetricCrossEntropy
from stream_learner.learning.strategies.er_la import LogitAdjustedReplay
from stream_learner.learning.strategies.finetune import FineTune
from stream_learner.learning.strategies.mkd import MomentumDistillation
from stream_learner.learning.strategies.step import Losses, Minibatch, Step, Strategy

STRATEGIES: dict[str, type[Strategy]] = {
    "finetune": FineTune,
    "er": ExperienceReplay,
    "er_ace": AsymmetricCrossEntropy,
    "er_la": LogitAdjustedReplay,
    "derpp": DarkExperienceReplay,
    "mkd": MomentumDistillation,
}

__all__ = ["STRATEGIES", "Losses", "Minibatch", "Step", "Strategy"]
