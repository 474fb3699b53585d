"""Networks of other libraries. A library is imported only when `model.name` names one of its networks."""

import difflib
import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar

import torch
from torch import nn
from torch.func import functional_call

from stream_learner.errors import UsageError
from stream_learner.networks.classifier import ImageClassifier


class TorchvisionResNet(ImageClassifier):
    """A network of torchvision without its last layer `fc`. For grey images its first layer is also replaced.

    The network reduces each side of an image 32-fold and is made for sides of 224 pixels. To learn from a batch of one
    image, it needs sides of at least 33 pixels. For small images, set `model.height` and `model.width` larger than the
    images, which are then enlarged to this size.
    """

    network: ClassVar[str]

    def __init__(self, classes: int, height: int, width: int, channels: int, mean: list[float], std: list[float]):
        torchvision = _library("torchvision", "vision", self.network)
        body = getattr(torchvision.models, self.network)()
        body.fc = nn.Identity()
        if channels != 3:
            body.conv1 = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(body.conv1.weight, mode="fan_out", nonlinearity="relu")
        features = _feature_count(body, self.network, height, width, channels)
        super().__init__(body, features, classes, mean, std)


class ResNet18(TorchvisionResNet):
    """ResNet-18 (He et al. 2016): 11 million parameters, 512 features."""

    network = "resnet18"


class ResNet50(TorchvisionResNet):
    """ResNet-50 (He et al. 2016): 24 million parameters, 2,048 features."""

    network = "resnet50"


@dataclass(frozen=True)
class Timm:
    """`timm:NETWORK`: any network of timm, without its last layer.

    Networks that are made for one image size are set to the size in the model's settings.
    """

    network: str
    convolutional: ClassVar[bool] = True

    def __call__(
        self, classes: int, height: int, width: int, channels: int, mean: list[float], std: list[float]
    ) -> ImageClassifier:
        name = f"timm:{self.network}"
        timm = _library("timm", "timm", name)
        if not timm.is_model(self.network):
            near = difflib.get_close_matches(self.network, timm.list_models(), n=1)
            hint = f"; did you mean timm:{near[0]}?" if near else ""
            raise UsageError(f"model.name = {name!r}: timm {timm.__version__} has no such network{hint}")
        body = timm.create_model(self.network, pretrained=False, num_classes=0, in_chans=channels)
        if hasattr(body, "set_input_size"):
            body.set_input_size(img_size=(height, width))
        return ImageClassifier(body, _feature_count(body, name, height, width, channels), classes, mean, std)


def _library(module: str, extra: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"model.name = {name!r} needs {module}, which cannot be imported ({error}): "
            f'pip install "stream-learner[{extra}]"'
        ) from None


_counted: dict[tuple[str, int, int, int], int] = {}


def _feature_count(body: nn.Module, name: str, height: int, width: int, channels: int) -> int:
    """Return the result of `_count_features`. Compute it only once, which takes a second for a large network."""
    key = name, height, width, channels
    if key not in _counted:
        _counted[key] = _count_features(body, *key)
    return _counted[key]


@torch.no_grad()
def _count_features(body: nn.Module, name: str, height: int, width: int, channels: int) -> int:
    """Return the number of features of the body, from a forward pass of one image in training mode.

    The pass runs on the device `meta`, which computes only shapes. Raises UsageError when the network cannot learn from
    a batch of one image of this size.
    """
    shapes = {key: tensor.to("meta") for key, tensor in (*body.named_parameters(), *body.named_buffers())}
    image = torch.empty(1, channels, height, width, device="meta")
    try:
        return functional_call(body, shapes, image).shape[1]
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"{name} cannot learn from images of {height} x {width}; choose another model.height and model.width: "
            f"{str(error).splitlines()[0]}"
        ) from None
