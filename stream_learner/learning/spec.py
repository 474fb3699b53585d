"""The spec of the network that the settings choose, as manifests hold it."""

from stream_learner.config import ModelSettings
from stream_learner.contract.manifest import ModelArguments, ModelSpec
from stream_learner.registry import HEADS


def spec_of(settings: ModelSettings, classes: int) -> ModelSpec:
    """Return the spec of the network that the settings choose. Raises UsageError when the head does not exist."""
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
