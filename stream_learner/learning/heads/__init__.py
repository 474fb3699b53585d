"""Classifiers of features, by `model.head`.

The strategy trains `linear` together with the rest of the network. The other heads are never trained. They sum
statistics of the features of a frozen body, and solve the rows of the linear layer from the sums.
"""

from stream_learner.learning.heads.statistics import StatisticsHead, silence

__all__ = ["StatisticsHead", "silence"]
