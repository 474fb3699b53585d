"""A random layer that is never trained."""

import torch
from torch import Tensor, nn


class RandomFeatures(nn.Module):
    """relu(h P): features [N, features] become [N, width].

    P is drawn once from a Gaussian distribution and never trained. It is a buffer, so it is stored with the weights.
    """

    projection: Tensor

    def __init__(self, features: int, width: int):
        super().__init__()
        # Divided by the square root of the number of features, so that random features have the scale of the features.
        self.register_buffer("projection", torch.randn(features, width) / features**0.5)

    def forward(self, features_NF: Tensor) -> Tensor:
        return torch.relu(features_NF @ self.projection)
