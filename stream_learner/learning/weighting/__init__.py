"""Policies, which determine a sample's weight alpha, and the weighted loss."""

from stream_learner.learning.weighting.loss import WeightedLoss
from stream_learner.learning.weighting.policies import Arrivals, Policy, Times
from stream_learner.learning.weighting.weights import Weighed, Weights

__all__ = ["Arrivals", "Policy", "Times", "Weighed", "WeightedLoss", "Weights"]
