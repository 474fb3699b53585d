"""Networks: a registry from name to class. Each takes uint8 images [N, H, W, C] and gives logits [N, classes]."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stream_learner.errors import UsageError
from stream_learner.records.manifest import ModelSpec
from stream_learner.registry import lookup


class ImageClassifier(nn.Module):
    """Normalisation, a body and a linear head that can grow.

    `body` maps float images [N, C, H, W] to features [N, features]; `head` maps these to logits [N, classes].
    """

    convolutional = True
    """Whether channels_last and bf16 are worth it."""

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, features: int, classes: int, mean: list[float], std: list[float]):
        super().__init__()
        self.body = body
        self.head = head(features, classes)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, images_NHWC: Tensor) -> Tensor:
        x_NCHW = (images_NHWC.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        return self.head(self.body(x_NCHW))


def head(features: int, classes: int) -> nn.Linear:
    """A linear layer; without classes it has no rows yet, and nothing to initialise."""
    if classes:
        return nn.Linear(features, classes)
    layer = nn.Linear(features, 1)
    layer.weight = nn.Parameter(torch.empty(0, features))
    layer.bias = nn.Parameter(torch.empty(0))
    layer.out_features = 0
    return layer


class MLP(ImageClassifier):
    """Two hidden layers of 64."""

    convolutional = False

    def __init__(self, classes: int, height: int, width: int, channels: int, mean: list[float], std: list[float]):
        body = nn.Sequential(
            nn.Flatten(), nn.Linear(height * width * channels, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()
        )
        super().__init__(body, 64, classes, mean, std)


class CNN(ImageClassifier):
    """Convolution 32 of 3x3, max-pool 2, dense 128, dropout 0.2."""

    def __init__(self, classes: int, height: int, width: int, channels: int, mean: list[float], std: list[float]):
        _require(4, height, width)
        flat = 32 * ((height - 2) // 2) * ((width - 2) // 2)
        body = nn.Sequential(
            nn.Conv2d(channels, 32, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(flat, 128),
            nn.ReLU(),
            nn.Dropout(0.2),
        )
        super().__init__(body, 128, classes, mean, std)


class ResNet18Slim(ImageClassifier):
    """ResNet-18 (He et al. 2016) with 20 filters first and a 3x3 stem: the one of GEM (Lopez-Paz and Ranzato 2017)."""

    def __init__(self, classes: int, height: int, width: int, channels: int, mean: list[float], std: list[float]):
        _require(9, height, width)  # or batch normalisation could meet a single value, in a batch of one
        filters = 20
        blocks: list[nn.Module] = []
        before = filters
        for after, stride in ((filters, 1), (2 * filters, 2), (4 * filters, 2), (8 * filters, 2)):
            blocks += [BasicBlock(before, after, stride), BasicBlock(after, after, 1)]
            before = after
        body = nn.Sequential(
            nn.Conv2d(channels, filters, 3, padding=1, bias=False),
            nn.BatchNorm2d(filters),
            nn.ReLU(),
            *blocks,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        super().__init__(body, before, classes, mean, std)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016)."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return F.relu(self.residual(x_NCHW) + self.shortcut(x_NCHW))


def _require(pixels: int, height: int, width: int) -> None:
    if min(height, width) < pixels:
        raise UsageError(
            f"model.height and model.width must be at least {pixels} for this model, not {height} x {width}"
        )


MODELS: dict[str, type[ImageClassifier]] = {"mlp": MLP, "cnn": CNN, "resnet18_slim": ResNet18Slim}


def build(spec: ModelSpec) -> ImageClassifier:
    """The network that a manifest describes, freshly initialised. Raises UsageError when its name is unknown, or its
    images are too small."""
    return lookup(MODELS, spec.name, "model.name")(**spec.arguments)
