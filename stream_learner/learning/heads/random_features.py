from typing import ClassVar

from stream_learner.learning.heads.ridge import Ridge


class RandomFeaturesRidge(Ridge):
    """Ridge regression on random features. They can separate more classes than the network's own features.

    RanPAC (McDonnell et al. 2023, "RanPAC: Random Projections and Pre-trained Models for Continual Learning", NeurIPS).
    """

    expands: ClassVar[bool] = True
