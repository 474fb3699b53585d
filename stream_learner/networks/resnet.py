"""A small ResNet for small images."""

from torch import Tensor, nn
from torch.nn import functional as F

from stream_learner.networks.classifier import ImageClassifier, require


class ResNet18Slim(ImageClassifier):
    """ResNet-18 (He et al. 2016) with 20 initial filters and a 3x3 stem, as in GEM (Lopez-Paz and Ranzato 2017)."""

    def __init__(self, classes: int, height: int, width: int, channels: int, mean: list[float], std: list[float]):
        # With one smaller image in a batch, batch normalisation would get a single value per channel.
        require(9, height, width)
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
