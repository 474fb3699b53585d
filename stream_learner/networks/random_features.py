"""A layer that is drawn once and never trained."""

import torch
from torch import Tensor, nn


class RandomFeatures(nn.Module):
    """relu(h P): features [N, features] become [N, width]. P is Gaussian, drawn once and never trained; a buffer, so
    that it travels with the weights."""

    projection: Tensor

    def __init__(self, features: int, width: int):
        super().__init__()
        # Over the square root: the random features are as large as the features.
        self.register_buffer("projection", torch.randn(features, width) / features**0.5)

    def forward(self, features_NF: Tensor) -> Tensor:
        return torch.relu(features_NF @ self.projection)
