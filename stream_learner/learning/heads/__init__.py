"""Classifiers of features, which `model.head` chooses.

The strategy trains the head `linear` together with the rest of the network. The other heads are solved: they sum
statistics of the features of a frozen body, and compute the rows of the linear layer from the sums.
"""

from stream_learner.learning.heads.statistics import StatisticsHead, silence

__all__ = ["StatisticsHead", "silence"]
