"""Checks of the contract that the program relies on, for every registry entry and for code of your own.

There is one function for each extension point of docs/extending.md. It returns if the object keeps the contract, and
raises AssertionError otherwise, with a message that says what is wrong. The checks need no Kafka, no data set and no
test framework. They make their images and features from a fixed seed, and leave torch's default generator as it was. A
process runs one check at a time, because a check puts the object into a registry while it lasts.
"""

from stream_learner.testing.augmentations import check_augmentation
from stream_learner.testing.formats import check_format
from stream_learner.testing.heads import check_head
from stream_learner.testing.networks import check_model
from stream_learner.testing.policies import check_weight_policy
from stream_learner.testing.strategies import check_strategy

__all__ = [
    "check_augmentation",
    "check_format",
    "check_head",
    "check_model",
    "check_strategy",
    "check_weight_policy",
]
