"""How a batch is learned: a registry from name to class. Each is one `loss`, on one screen, with its paper."""

from stream_learner.learning.strategies.er import ExperienceReplay
from stream_learner.learning.strategies.finetune import FineTune
from stream_learner.learning.strategies.step import Minibatch, Step, Strategy

STRATEGIES: dict[str, type[Strategy]] = {"finetune": FineTune, "er": ExperienceReplay}

__all__ = ["STRATEGIES", "Minibatch", "Step", "Strategy"]
