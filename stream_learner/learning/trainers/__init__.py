"""Trainers, which change the network. One takes optimizer steps, the other solves the head from sums."""

from stream_learner.config import Settings
from stream_learner.learning.parallel import Parallel
from stream_learner.learning.placement import Placement
from stream_learner.learning.strategies import strategy
from stream_learner.learning.trainers.base import Portion, Trained, Trainer, TrainingBatch
from stream_learner.learning.trainers.steps import StepTrainer
from stream_learner.learning.trainers.sums import SumTrainer
from stream_learner.registry import AUGMENTATIONS, HEADS


def trainer_for(settings: Settings, placement: Placement, parallel: Parallel) -> Trainer:
    """Build the trainer that `model.head` needs.

    Raises UsageError when a model, head, strategy or augmentation does not exist, the images are too small for the
    model, the pretrained weights do not fit it, or the strategy needs an average and none is kept.
    """
    head, learning = HEADS.lookup(settings.model.head), settings.learning
    chosen = strategy(learning.strategy)
    augmentations = [AUGMENTATIONS.lookup(name) for name in learning.augment]
    if head:
        return SumTrainer(settings, placement, parallel, head)
    return StepTrainer(settings, placement, parallel, chosen, augmentations)


__all__ = ["Portion", "Trained", "Trainer", "TrainingBatch", "trainer_for"]
