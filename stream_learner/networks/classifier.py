"""Base class of all networks: a body and a linear head that can grow."""

from typing import Self

import torch
from torch import Tensor, nn

from stream_learner.errors import UsageError
from stream_learner.networks.random_features import RandomFeatures


class ImageClassifier(nn.Module):
    """Normalisation, a body and a linear head that can grow: uint8 images [N, H, W, C] to logits [N, classes].

    `body` maps float images [N, C, H, W] to features [N, F]. `expansion` maps these features to other features,
    or is the identity. In training mode, `head_dropout` sets some of the result to 0. `head` maps the result to logits.
    """

    convolutional = True
    """Whether channels_last makes the network faster, and bf16 on hardware made for it."""
    uses_threads = True
    """Whether several threads make a step faster. If not, `learning.threads = 0` takes one."""
    same_in_training = False
    """Whether `features` is the same function in training mode and in evaluation mode. It is not if the body has
    dropout or batch normalisation. If it is, a step may use the features from the prediction before the step."""

    head_dropout: nn.Module
    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, features: int, classes: int, mean: list[float], std: list[float]):
        super().__init__()
        self.body = body
        self.expansion: nn.Module = nn.Identity()
        self.head_dropout = nn.Identity()
        self.head = head(features, classes)
        self.frozen = False
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def features(self, images_NHWC: Tensor) -> Tensor:
        """Return the features that the head receives for uint8 images: float [N, F]."""
        return self.expansion(self.body((images_NHWC.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std))

    def logits(self, features_NF: Tensor) -> Tensor:
        """Return the logits [N, classes] of features."""
        return self.head(self.head_dropout(features_NF))

    def forward(self, images_NHWC: Tensor) -> Tensor:
        return self.logits(self.features(images_NHWC))

    def expand(self, width: int) -> None:
        """Insert `width` random features between the body and a new head."""
        self.expansion = RandomFeatures(self.head.in_features, width)
        self.head = head(width, self.head.out_features)

    def freeze(self) -> None:
        """Freeze the body, so that from now on only the head learns.

        The body needs no gradients, so its forward pass costs as much as inference. Body and dropout stay in evaluation
        mode, so that batch normalisation keeps its statistics.
        """
        self.frozen = True
        self.body.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.frozen:
            self.body.eval()
            self.head_dropout.eval()
        return self


def head(features: int, classes: int) -> nn.Linear:
    """Return a linear layer. With 0 classes the layer has no rows, so it needs no initial values."""
    if classes:
        return nn.Linear(features, classes)
    layer = nn.Linear(features, 1)
    layer.weight = nn.Parameter(torch.empty(0, features))
    layer.bias = nn.Parameter(torch.empty(0))
    layer.out_features = 0
    return layer


def require(pixels: int, height: int, width: int) -> None:
    """Raise UsageError when height or width is less than `pixels`."""
    if min(height, width) < pixels:
        raise UsageError(
            f"model.height and model.width must be at least {pixels} for this model, not {height} x {width}"
        )
