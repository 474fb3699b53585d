"""Networks. Each takes uint8 images [N, H, W, C] and gives logits [N, classes]."""

import inspect
from collections.abc import Callable

import msgspec

from stream_learner.config import ModelSettings
from stream_learner.contract.manifest import ModelArguments, ModelSpec
from stream_learner.errors import StateError, UsageError
from stream_learner.networks.classifier import ImageClassifier, head
from stream_learner.networks.foreign import Timm
from stream_learner.registry import HEADS, MODELS

__all__ = ["ImageClassifier", "build", "factory", "head", "spec_of"]

TIMM = "timm:"


def factory(name: str) -> Callable[..., ImageClassifier]:
    """What makes the network called `name`: a class of the registry, `timm:NETWORK`, or a user's
    `package.module:factory`; called with the arguments of a ModelSpec. Raises UsageError when there is none."""
    if name.startswith(TIMM):
        return Timm(name.removeprefix(TIMM))
    return MODELS.lookup(name)


def spec_of(settings: ModelSettings, classes: int) -> ModelSpec:
    """Describe the network that the settings ask for. Raises UsageError when there is no such head."""
    head_class = HEADS.lookup(settings.head)
    arguments = ModelArguments(
        classes=classes,
        height=settings.height,
        width=settings.width,
        channels=settings.channels,
        mean=settings.mean,
        std=settings.std,
        random_features=settings.random_features if head_class and head_class.expands else 0,
    )
    return ModelSpec(settings.name, arguments)


def build(spec: ModelSpec, own: str | None = None) -> ImageClassifier:
    """Build the network that a manifest describes, freshly initialised.

    A manifest may come from anybody, so its name is imported only if it equals `own`: the `package.module:name` from
    the caller's own settings. Raises StateError for any other name outside the registry, UsageError when the name makes
    something else or the images are too small.
    """
    if spec.name not in MODELS and not spec.name.startswith(TIMM) and spec.name != own:
        raise StateError(
            f"the network {spec.name!r} is not one of this program's ({', '.join(MODELS)}, {TIMM}NETWORK), so nothing "
            "is imported for it; if it is your own, pass its name: build(spec, own='package.module:name')"
        )
    arguments = msgspec.structs.asdict(spec.arguments)
    random_features = arguments.pop("random_features")
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
