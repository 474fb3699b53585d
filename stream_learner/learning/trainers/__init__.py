"""Trainers: what changes the network. One takes optimizer steps, the other solves the head from sums."""

from stream_learner.config import Settings
from stream_learner.learning.placement import Placement
from stream_learner.learning.trainers.base import Trained, Trainer, TrainingBatch
from stream_learner.learning.trainers.steps import StepTrainer
from stream_learner.learning.trainers.sums import SumTrainer
from stream_learner.registry import HEADS


def trainer_for(settings: Settings, placement: Placement) -> Trainer:
    """Build the trainer that `model.head` needs.

    Raises UsageError for a model, head, strategy or augmentation that does not exist, images too small for the model,
    weights of another network, or a strategy that needs an average while none is kept.
    """
    head = HEADS.lookup(settings.model.head)
    return SumTrainer(settings, placement, head) if head else StepTrainer(settings, placement)


__all__ = ["Trained", "Trainer", "TrainingBatch", "trainer_for"]
