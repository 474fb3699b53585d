"""Networks: a registry from name to class. Each takes uint8 images [N, H, W, C] and gives logits [N, classes]."""

import inspect
from collections.abc import Callable

from stream_learner.errors import UsageError
from stream_learner.learning.models.classifier import ImageClassifier, head
from stream_learner.learning.models.foreign import ResNet18, ResNet50, Timm
from stream_learner.learning.models.resnet import ResNet18Slim
from stream_learner.learning.models.rnn import RNN
from stream_learner.learning.models.small import CNN, MLP
from stream_learner.records.manifest import ModelSpec
from stream_learner.registry import lookup

MODELS: dict[str, type[ImageClassifier]] = {
    "mlp": MLP,
    "cnn": CNN,
    "rnn": RNN,
    "resnet18_slim": ResNet18Slim,
    "resnet18": ResNet18,
    "resnet50": ResNet50,
}

__all__ = [
    "CNN",
    "MLP",
    "MODELS",
    "RNN",
    "ImageClassifier",
    "ResNet18",
    "ResNet18Slim",
    "ResNet50",
    "build",
    "factory",
    "head",
]


def factory(name: str) -> Callable[..., ImageClassifier]:
    """What makes the network called `name`: a class of the registry, `timm:NETWORK`, or a user's
    `package.module:factory`; called with the arguments of a ModelSpec. Raises UsageError when there is none."""
    if name.startswith("timm:"):
        return Timm(name.removeprefix("timm:"))
    return lookup(MODELS, name, "model.name")


def build(spec: ModelSpec) -> ImageClassifier:
    """The network that a manifest describes, freshly initialised. Raises UsageError when its name is unknown or makes
    something else, or its images are too small."""
    arguments = dict(spec.arguments)
    random_features = arguments.pop("random_features", 0)
    make = factory(spec.name)
    try:
        inspect.signature(make).bind(**arguments)
    except TypeError as error:
        raise UsageError(f"model.name = {spec.name!r} is called with {', '.join(arguments)}: {error}") from None
    except ValueError:  # there is no telling: a function of C's
        pass
    model = make(**arguments)
    if not isinstance(model, ImageClassifier):
        raise UsageError(f"model.name = {spec.name!r} makes no {__name__}.ImageClassifier, as it is to")
    if random_features:
        model.expand(random_features)
    return model
