"""Networks. Each maps uint8 images [N, H, W, C] to logits [N, classes]."""

import inspect
from collections.abc import Callable

import msgspec

from stream_learner.contract.manifest import ModelSpec
from stream_learner.errors import StateError, UsageError
from stream_learner.networks.classifier import ImageClassifier, head
from stream_learner.networks.foreign import Timm
from stream_learner.networks.tensors import STORED
from stream_learner.registry import MODELS

__all__ = ["ImageClassifier", "build", "factory", "head"]

TIMM = "timm:"


def factory(name: str) -> Callable[..., ImageClassifier]:
    """Return the factory of the network called `name`. Call the factory with the arguments of a ModelSpec.

    `name` is in the registry, or is `timm:NETWORK` or a user's `package.module:factory`. Raises UsageError when there
    is no such factory.
    """
    if name.startswith(TIMM):
        return Timm(name.removeprefix(TIMM))
    return MODELS.lookup(name)


def build(spec: ModelSpec, own: str | None = None) -> ImageClassifier:
    """Build the network that a manifest describes, with random initial parameters.

    A manifest is not trusted. So a name outside the registry is imported only if it equals `own`, the
    `package.module:name` from the caller's settings. Raises StateError for other names outside the registry. Raises
    UsageError when the factory returns no ImageClassifier, or when the images are too small.
    """
    if spec.name not in MODELS and not spec.name.startswith(TIMM) and spec.name != own:
        raise StateError(
            f"the network {spec.name!r} is not part of this program ({', '.join(MODELS)}, {TIMM}NETWORK), so it is "
            "not imported; if it is your own, pass its name: build(spec, own='package.module:name')"
        )
    arguments = msgspec.structs.asdict(spec.arguments)
    random_features = arguments.pop("random_features")
    make = factory(spec.name)
    try:
        inspect.signature(make).bind(**arguments)
    except TypeError as error:
        raise UsageError(f"model.name = {spec.name!r} cannot be called with {', '.join(arguments)}: {error}") from None
    except ValueError:  # a function in C, whose parameters are unknown
        pass
    model = make(**arguments)
    if not isinstance(model, ImageClassifier):
        raise UsageError(f"model.name = {spec.name!r} must return a stream_learner.ImageClassifier")
    if random_features:
        model.expand(random_features)
    for part, tensor in model.state_dict().items():
        if tensor.dtype not in STORED:
            raise UsageError(
                f"model.name = {spec.name!r}: {part} is {tensor.dtype}, which a saved state cannot hold; use float32"
            )
    return model
