"""Registries of the classes and functions that settings choose by name. Each maps a name to `package.module:name`.

An entry is imported when it is first looked up, so that a name can be checked without importing torch. Users name their
own code in the same form.
"""

import difflib
import importlib
from collections import UserDict
from collections.abc import Mapping
from typing import Any

from stream_learner.errors import UsageError


class Registry(UserDict[str, Any]):
    """The names that one setting accepts, each with its class or function."""

    def __init__(self, setting: str, places: Mapping[str, str | None]):
        super().__init__(places)
        self.setting = setting

    def __getitem__(self, name: str) -> Any:
        found = super().__getitem__(name)
        if isinstance(found, str):
            found = self[name] = _imported(found)
        return found

    def lookup(self, name: str) -> Any:
        """Return the entry called `name`, or import the user's own object. Raises UsageError that names the setting."""
        if name in self:
            return self[name]
        try:
            return _imported(self.known(name))
        except ValueError as error:
            raise UsageError(f"{self.setting}: {error}") from None
        except (ImportError, AttributeError) as error:
            raise UsageError(f"{self.setting} = {name!r} cannot be imported: {error}") from None

    def known(self, name: str) -> str:
        """Return `name` if it is in the registry, or has the form `package.module:name`. Import nothing.

        Raises ValueError for any other name. The message suggests the most similar known name.
        """
        module, colon, attribute = name.partition(":")
        if name in self or (module and colon and attribute and not module.startswith(".")):
            return name
        if colon:
            raise ValueError(f"{name!r} is not of the form `package.module:name`")
        near = difflib.get_close_matches(name, self, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(self))}"
        raise ValueError(f"{name!r} is unknown; {hint}")


def _imported(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)


FORMATS = Registry(
    "input.format",
    {"plain": "stream_learner.formats.plain:Plain", "arrow": "stream_learner.formats.arrow:Arrow"},
)

MODELS = Registry(
    "model.name",
    {
        "mlp": "stream_learner.networks.small:MLP",
        "cnn": "stream_learner.networks.small:CNN",
        "rnn": "stream_learner.networks.rnn:RNN",
        "resnet18_slim": "stream_learner.networks.resnet:ResNet18Slim",
        "resnet18": "stream_learner.networks.foreign:ResNet18",
        "resnet50": "stream_learner.networks.foreign:ResNet50",
    },
)

HEADS = Registry(
    "model.head",
    {
        "linear": None,  # trained with the rest of the network
        "prototype": "stream_learner.learning.heads.prototype:Prototype",
        "ridge": "stream_learner.learning.heads.ridge:Ridge",
        "random_features": "stream_learner.learning.heads.random_features:RandomFeaturesRidge",
    },
)

STRATEGIES = Registry(
    "learning.strategy",
    {
        "finetune": "stream_learner.learning.strategies.finetune:FineTune",
        "er": "stream_learner.learning.strategies.er:ExperienceReplay",
        "er_ace": "stream_learner.learning.strategies.er_ace:AsymmetricCrossEntropy",
        "er_la": "stream_learner.learning.strategies.er_la:LogitAdjustedReplay",
        "derpp": "stream_learner.learning.strategies.derpp:DarkExperienceReplay",
        "mkd": "stream_learner.learning.strategies.mkd:MomentumDistillation",
    },
)

AUGMENTATIONS = Registry(
    "learning.augment",
    {name: f"stream_learner.learning.augmentation:{name}" for name in ("crop", "flip", "color_jitter", "cutout")},
)

WEIGHTS = Registry(
    "weights.policies",
    {
        "record": "stream_learner.learning.weighting.policies:RecordWeight",
        "class_balance": "stream_learner.learning.weighting.policies:ClassBalance",
        "recency": "stream_learner.learning.weighting.policies:Recency",
        "novelty": "stream_learner.learning.weighting.policies:Novelty",
        "hardness": "stream_learner.learning.weighting.policies:Hardness",
    },
)
