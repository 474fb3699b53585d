"""Trains an image classifier on a Kafka stream, each record exactly once, and publishes releases of the model.

The names in `__all__` and in `stream_learner.testing` are the public API; docs/api.md lists them. Before 1.0 they may
change in a minor version, with a note in the changelog; from 1.0 on only in a major version. Everything else may change
at any time.

A name is imported when it is first used, so `import stream_learner` is fast and imports neither torch nor Kafka.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stream_learner.program import VERSION

if TYPE_CHECKING:
    from stream_learner.config import KafkaSettings, Settings, WeightsSettings, load
    from stream_learner.errors import (
        DependencyError,
        KafkaUnavailableError,
        NoReleaseError,
        StateError,
        StoreError,
        StreamLearnerError,
        TopicsError,
        UsageError,
    )
    from stream_learner.follow.follower import Follower, Following
    from stream_learner.follow.reading import read_release
    from stream_learner.follow.releases import Release
    from stream_learner.formats import Fields, Format, Reason, Record, RejectError, RetryLaterError, Rows
    from stream_learner.formats.record import Sample, Split
    from stream_learner.inference.predictions import Predictions
    from stream_learner.learning.heads.prototype import Prototype
    from stream_learner.learning.heads.statistics import NEVER, StatisticsHead
    from stream_learner.learning.learner import Learner
    from stream_learner.learning.process import set_up_torch
    from stream_learner.learning.strategies import Losses, Minibatch, Step, Strategy
    from stream_learner.learning.weighting import Arrivals, Policy, Times
    from stream_learner.networks import ImageClassifier

__version__ = VERSION

__all__ = [
    "NEVER",
    "Arrivals",
    "DependencyError",
    "Fields",
    "Follower",
    "Following",
    "Format",
    "ImageClassifier",
    "KafkaSettings",
    "KafkaUnavailableError",
    "Learner",
    "Losses",
    "Minibatch",
    "NoReleaseError",
    "Policy",
    "Predictions",
    "Prototype",
    "Reason",
    "Record",
    "RejectError",
    "Release",
    "RetryLaterError",
    "Rows",
    "Sample",
    "Settings",
    "Split",
    "StateError",
    "StatisticsHead",
    "Step",
    "StoreError",
    "Strategy",
    "StreamLearnerError",
    "Times",
    "TopicsError",
    "UsageError",
    "WeightsSettings",
    "load",
    "read_release",
    "set_up_torch",
]

_MODULE_OF = {
    "KafkaSettings": "config",
    "Settings": "config",
    "WeightsSettings": "config",
    "load": "config",
    "DependencyError": "errors",
    "KafkaUnavailableError": "errors",
    "NoReleaseError": "errors",
    "StateError": "errors",
    "StoreError": "errors",
    "StreamLearnerError": "errors",
    "TopicsError": "errors",
    "UsageError": "errors",
    "Follower": "follow.follower",
    "Following": "follow.follower",
    "read_release": "follow.reading",
    "Release": "follow.releases",
    "Fields": "formats",
    "Format": "formats",
    "Reason": "formats",
    "Record": "formats",
    "RejectError": "formats",
    "RetryLaterError": "formats",
    "Rows": "formats",
    "Sample": "formats.record",
    "Split": "formats.record",
    "Predictions": "inference.predictions",
    "Prototype": "learning.heads.prototype",
    "NEVER": "learning.heads.statistics",
    "StatisticsHead": "learning.heads.statistics",
    "Learner": "learning.learner",
    "set_up_torch": "learning.process",
    "Losses": "learning.strategies",
    "Minibatch": "learning.strategies",
    "Step": "learning.strategies",
    "Strategy": "learning.strategies",
    "Arrivals": "learning.weighting",
    "Policy": "learning.weighting",
    "Times": "learning.weighting",
    "ImageClassifier": "networks",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
