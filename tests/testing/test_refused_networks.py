"""`check_model` refuses networks that break their contract, and says why."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stream_learner.networks import ImageClassifier
from stream_learner.networks.small import CNN, MLP
from stream_learner.testing import check_model


def not_a_classifier(**arguments: Any) -> nn.Module:
    return nn.Linear(arguments["height"], 3)


class OtherArguments(MLP):
    def __init__(self, classes: int):
        super().__init__(classes, 9, 9, 1, [0.5], [0.25])


class OfThreeClasses(MLP):
    def __init__(self, classes: int, **arguments: Any):
        super().__init__(3, **arguments)
        del classes


class Probabilities(MLP):
    def forward(self, images_NHWC: Tensor) -> Tensor:
        return super().forward(images_NHWC).softmax(1)


class AlwaysDrops(MLP):
    def features(self, images_NHWC: Tensor) -> Tensor:
        return F.dropout(super().features(images_NHWC), 0.5)


class Reads32Pixels(CNN):
    def features(self, images_NHWC: Tensor) -> Tensor:
        return super().features(images_NHWC[:, :5])


class Together(MLP):
    """Compares images with the mean of their batch."""

    def features(self, images_NHWC: Tensor) -> Tensor:
        features = super().features(images_NHWC)
        return features - features.mean(0)


class NeedsTwo(ImageClassifier):
    def __init__(self, classes: int, height: int, width: int, channels: int, mean: list[float], std: list[float]):
        body = nn.Sequential(nn.Flatten(), nn.Linear(height * width * channels, 8), nn.BatchNorm1d(8))
        super().__init__(body, 8, classes, mean, std)


class Pinned(nn.Module):
    """Sets the first feature, by an operation that autocast does not convert."""

    def forward(self, features_NF: Tensor) -> Tensor:
        return features_NF.index_put((torch.arange(len(features_NF)), torch.tensor(0)), torch.ones(()))


class AlwaysFloat32(MLP):
    convolutional = True

    def __init__(self, classes: int, **arguments: Any):
        super().__init__(classes, **arguments)
        assert isinstance(self.body, nn.Sequential)
        self.body.append(Pinned())


class Counts(MLP):
    """Counts steps outside the state dict."""

    steps = 0

    def features(self, images_NHWC: Tensor) -> Tensor:
        self.steps += self.training
        return super().features(images_NHWC) * (1 + self.steps)


class Unused(MLP):
    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        self.body.register_parameter("spare", nn.Parameter(torch.ones(1)))


class Mask(nn.Module):
    """Mixes features by a softmax over a buffer with infinities, as attention does."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.full((64, 64), -torch.inf).triu(1))

    def forward(self, features_NF: Tensor) -> Tensor:
        return features_NF @ self.get_buffer("mask").softmax(1).T


class Masked(MLP):
    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        assert isinstance(self.body, nn.Sequential)
        self.body.append(Mask())


class OfNaN(MLP):
    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        self.body.register_buffer("unknown", torch.full((2,), torch.nan))


class DenseAlwaysFloat32(AlwaysFloat32):
    convolutional = False


class Outside(MLP):
    """Has a parameter that is not in the body."""

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        self.scale = nn.Parameter(torch.ones(1))

    def features(self, images_NHWC: Tensor) -> Tensor:
        return self.scale * super().features(images_NHWC)


class FromNumPy(MLP):
    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        self.mean += float(np.random.default_rng().random())


class DropsInTraining(MLP):
    """Says that its features are the same in training, as its base does."""

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        assert isinstance(self.body, nn.Sequential)
        self.body.append(nn.Dropout(0.5))


class InPlace(MLP):
    def features(self, images_NHWC: Tensor) -> Tensor:
        images_NHWC[:] = 255 - images_NHWC
        return super().features(images_NHWC)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (not_a_classifier, "return a stream_learner.ImageClassifier"),
        (OtherArguments, "building it for 0 classes raised UsageError: .* called with classes, height"),
        (OfThreeClasses, r"logits of 1 images in evaluation mode with 0 classes are torch.float32 \[1, 3\]"),
        (Probabilities, r"logits are not head\(features\(images\)\)"),
        (
            AlwaysDrops,
            r"logits are not head\(features\(images\)\)|in evaluation mode it predicts differently each time",
        ),
        (Reads32Pixels, "1 images in evaluation mode with 0 classes raised RuntimeError"),
        (Together, "in evaluation mode an image's logits depend on the other images of the batch"),
        (NeedsTwo, "1 images in training mode with 0 classes raised ValueError: Expected more than 1 value"),
        (AlwaysFloat32, "a step in bfloat16 with channels_last raised RuntimeError: Index put requires the source"),
        (Counts, "a network that loads its state predicts differently; keep all that is learned"),
        (OfNaN, "resuming a Learner from its saved state raised ValueError: .*that are not finite"),
        (Outside, r"a step after freeze\(\) changes scale; put all layers except the head into `body`"),
        (FromNumPy, "it starts with other weights for the same seed; draw only from torch's default generator"),
        (DropsInTraining, r"features\(\) differs in training mode; set same_in_training to False"),
        (InPlace, "it changes the images that it gets"),
    ],
)
def test_it_is_refused(wrong, why):
    with pytest.raises(AssertionError, match=f"(?s)^{wrong.__name__}: .*({why})"):
        check_model(wrong, height=9, width=9, channels=1)


@pytest.mark.parametrize("right", [Unused, Masked, DenseAlwaysFloat32])
def test_it_passes(right):
    check_model(right, height=9, width=9, channels=1)
