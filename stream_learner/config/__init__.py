"""Every setting: defined, read, validated and documented once.

The docstring under a field is its documentation. `stream-learner config --schema` and `docs/settings.md` repeat it.
"""

from stream_learner.config.fields import MIB
from stream_learner.config.learning import LearningSettings, ModelSettings, WeightsSettings
from stream_learner.config.loading import load, load_follower, schema, usage_error
from stream_learner.config.operating import (
    KafkaSettings,
    MonitoringSettings,
    RejectsSettings,
    RunSettings,
    ServeSettings,
)
from stream_learner.config.publishing import MAX_RELEASES, CheckpointSettings, ReleaseSettings, TopicsSettings
from stream_learner.config.reading import BatchSettings, InputSettings, LabelsSettings, ServedSettings, SplitSettings
from stream_learner.config.settings import (
    ENV_PREFIX,
    MAX_SEGMENTS,
    AnySettings,
    FollowSettings,
    ReaderSettings,
    Settings,
)

__all__ = [
    "ENV_PREFIX",
    "MAX_RELEASES",
    "MAX_SEGMENTS",
    "MIB",
    "AnySettings",
    "BatchSettings",
    "CheckpointSettings",
    "FollowSettings",
    "InputSettings",
    "KafkaSettings",
    "LabelsSettings",
    "LearningSettings",
    "ModelSettings",
    "MonitoringSettings",
    "ReaderSettings",
    "RejectsSettings",
    "ReleaseSettings",
    "RunSettings",
    "ServeSettings",
    "ServedSettings",
    "Settings",
    "SplitSettings",
    "TopicsSettings",
    "WeightsSettings",
    "load",
    "load_follower",
    "schema",
    "usage_error",
]
