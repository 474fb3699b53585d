"""Classifiers of features, by `model.head`.

`linear` is trained with the rest of the network, by the strategy. The others are never trained: under a frozen body
they add up statistics of the features, from which the linear layer's rows are solved.
"""

from stream_learner.learning.heads.accumulator import Accumulator
from stream_learner.learning.heads.statistics import StatisticsHead, silence

__all__ = ["Accumulator", "StatisticsHead", "silence"]
