"""A random layer that is never trained."""

import torch
from torch import Tensor, nn


class RandomFeatures(nn.Module):
    """relu(h P): features [N, features] become [N, width].

    P is Gaussian, drawn once and never trained. It is a buffer, so that it is stored with the weights.
    """

    projection: Tensor

    def __init__(self, features: int, width: int):
        super().__init__()
        # Divided by the square root, so that the random features are as large as the features.
        self.register_buffer("projection", torch.randn(features, width) / features**0.5)

    def forward(self, features_NF: Tensor) -> Tensor:
        return torch.relu(features_NF @ self.projection)
