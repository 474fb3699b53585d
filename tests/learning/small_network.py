from torch import nn

from stream_learner.networks import ImageClassifier


class Normalised(ImageClassifier):
    """The smallest network with batch normalisation: takes a tenth of the time of `resnet18_slim`."""

    def __init__(self, classes: int, height: int, width: int, channels: int, mean: list[float], std: list[float]):
        del height, width  # any will do
        body = nn.Sequential(
            nn.Conv2d(channels, 16, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )
        super().__init__(body, 64, classes, mean, std)
