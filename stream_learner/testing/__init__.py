"""Checks that registry entries and your own code keep the contract that the program relies on.

There is one function for each extension point of docs/extending.md. It returns if the object keeps the contract.
Otherwise it raises AssertionError with a message that says what is wrong. The checks need no Kafka, no data set and no
test framework. They make their images and features from a fixed seed, and leave torch's default generator unchanged.
Run only one check at a time in a process, because each check registers the object until the check ends.
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
