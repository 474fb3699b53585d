"""What classifies features: a registry from `model.head` to class.

`linear` is trained with the rest of the network, by the strategy. The others are never trained: under a frozen body
they add up statistics of the features, from which the linear layer's rows are solved.
"""

from stream_learner.learning.heads.accumulator import Accumulator
from stream_learner.learning.heads.prototype import Prototype
from stream_learner.learning.heads.random_features import RandomFeaturesRidge
from stream_learner.learning.heads.ridge import Ridge
from stream_learner.learning.heads.statistics import StatisticsHead, silence

HEADS: dict[str, type[StatisticsHead] | None] = {
    "linear": None,
    "prototype": Prototype,
    "ridge": Ridge,
    "random_features": RandomFeaturesRidge,
}

__all__ = ["HEADS", "Accumulator", "StatisticsHead", "silence"]
