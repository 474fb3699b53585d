"""All settings of a worker, checks across sections, and names derived from the settings."""

from pydantic import model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from stream_learner.config.fields import MAX_KAFKA_S, MIB, Section
from stream_learner.config.learning import (
    DriftSettings,
    HeldOutSettings,
    LearningSettings,
    MemorySettings,
    ModelSettings,
    PrequentialSettings,
    WeightsSettings,
)
from stream_learner.config.operating import (
    FollowerSettings,
    KafkaSettings,
    LogSettings,
    MonitoringSettings,
    RejectsSettings,
    RunSettings,
    ServeSettings,
)
from stream_learner.config.publishing import (
    CheckpointSettings,
    RecoverySettings,
    ReleaseSettings,
    SecuritySettings,
    TopicsSettings,
)
from stream_learner.config.reading import BatchSettings, InputSettings, LabelsSettings, ServedSettings, SplitSettings
from stream_learner.contract.topics import BESIDE, OUTPUTS, Names

ENV_PREFIX = "STREAM_LEARNER_"
# Largest number of objects that one manifest may name. The manifest must fit in a Kafka record.
MAX_SEGMENTS = 4096


class Settings(BaseSettings):
    """All settings of a worker."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    run: RunSettings
    """Identity of the run, and how a worker starts and stops."""
    input: InputSettings
    """Topics to read, and limits on their records."""
    kafka: KafkaSettings = KafkaSettings()
    """Connection to Kafka, the same for every client of the program."""
    topics: TopicsSettings = TopicsSettings()
    """Topics to write."""
    labels: LabelsSettings = LabelsSettings()
    """Labels to learn, and their names."""
    split: SplitSettings = SplitSettings()
    """Shares of the splits, for records without a `split` header."""
    batch: BatchSettings = BatchSettings()
    """Size of a mini-batch, and when it closes."""
    model: ModelSettings = ModelSettings()
    """The network and its input."""
    learning: LearningSettings = LearningSettings()
    """Training on a batch."""
    weights: WeightsSettings = WeightsSettings()
    """Weights of the samples."""
    prequential: PrequentialSettings = PrequentialSettings()
    """Predictions of the training samples before they are learned."""
    drift: DriftSettings = DriftSettings()
    """Detection of a rise in the prequential error, and the boost after it (`learning.on_drift`)."""
    memory: MemorySettings = MemorySettings()
    """Samples kept for replay."""
    held_out: HeldOutSettings = HeldOutSettings()
    """Samples kept for evaluation and never learned."""
    release: ReleaseSettings = ReleaseSettings()
    """Decisions to release a model: when, and by which rule."""
    checkpoint: CheckpointSettings = CheckpointSettings()
    """Saves of the state: when, and where."""
    recovery: RecoverySettings = RecoverySettings()
    """Recovery at a start."""
    served: ServedSettings = ServedSettings()
    """Delayed evaluation of the predictions that servers made."""
    rejects: RejectsSettings = RejectsSettings()
    """Circuit breaker for bad input."""
    security: SecuritySettings = SecuritySettings()
    """Signatures of manifests and windows."""
    monitoring: MonitoringSettings = MonitoringSettings()
    """Prometheus metrics and health pages."""
    log: LogSettings = LogSettings()
    """Logs."""
    follow: FollowerSettings = FollowerSettings()
    """Programs that follow the releases."""
    serve: ServeSettings = ServeSettings()
    """The server of `stream-learner serve`."""

    @model_validator(mode="after")
    def _trusted_topics_are_read(self) -> "Settings":
        for topic in self.split.held_out_from or []:
            if topic not in self.input.topics:
                raise ValueError(f"split.held_out_from: {topic} is not in input.topics")
        return self

    @model_validator(mode="after")
    def _no_output_is_read(self) -> "Settings":
        for topic in (f"{self.prefix}.{output}" for output in OUTPUTS + BESIDE):
            if topic in self.input.topics:
                raise ValueError(
                    f"input.topics: {topic} is an output topic of this run, so it holds no input records; remove it, "
                    "or set another topics.prefix"
                )
        return self

    @model_validator(mode="after")
    def _shards_have_equal_shares(self) -> "Settings":
        shards = self.run.shards
        sizes = {"batch.size": self.batch.size, "memory.replay_size": self.replay_size}
        for name, size in sizes.items():
            if size % shards:
                raise ValueError(f"{name} must be a multiple of run.shards = {shards}, not {size}")
        image_bytes = self.model.height * self.model.width * self.model.channels
        limits = {
            "held_out.max_items": (self.held_out.max_items, 1),
            "held_out.max_bytes": (self.held_out.max_bytes, image_bytes),
            "memory.max_items": (self.memory.max_items or shards, 1),  # 0 is a run without a memory
        }
        for name, (limit, one) in limits.items():
            if shards > 1 and limit < shards * one:
                raise ValueError(f"{name} must be at least {shards * one}, so that each of {shards} shards has a share")
        return self

    @model_validator(mode="after")
    def _segments_fit_in_a_manifest(self) -> "Settings":
        most = 2 * (self.memory.max_bytes + 2 * self.held_out.max_bytes)
        states = self.checkpoint.keep + 1
        if most * states > MAX_SEGMENTS * self.memory.segment_bytes:
            raise ValueError(
                f"memory.segment_bytes must be at least {-(-most * states // MAX_SEGMENTS)} with these values of "
                "memory.max_bytes, held_out.max_bytes and checkpoint.keep"
            )
        return self

    @model_validator(mode="after")
    def _kafka_can_express_the_time_out(self) -> "Settings":
        if self.transaction_timeout_s > MAX_KAFKA_S:
            raise ValueError(
                "checkpoint.timeout_s, plus one second for each MiB of checkpoint.max_pending_bytes and "
                f"release.inline_max_bytes, must be at most {MAX_KAFKA_S} s"
            )
        return self

    @model_validator(mode="after")
    def _served_predictions_meet_all_samples(self) -> "Settings":
        if self.served.evaluate and self.run.shards > 1:
            raise ValueError("served.evaluate needs run.shards = 1; set one of them to its default")
        return self

    @property
    def prefix(self) -> str:
        """Return the prefix of the output topics' names."""
        return self.topics.prefix or self.run.id

    @property
    def predictions_topic(self) -> str | None:
        """Return the topic of served predictions if the worker reads it, otherwise None."""
        return Names.under(self.prefix).predictions if self.served.evaluate else None

    @property
    def topics_read(self) -> list[str]:
        """Return the topics whose positions are part of the state: the input, and the predictions if they are read."""
        return [*self.input.topics, *filter(None, [self.predictions_topic])]

    @property
    def transactional_id(self) -> str:
        """Return the transactional id of the active worker. It also names the group that mirrors the positions.

        It does not contain the run's id, so two runs with the same prefix fence each other.
        """
        return f"stream-learner.{self.prefix}.worker"

    @property
    def standby_group(self) -> str:
        """Return the group in which the workers with the same output topics elect the active one."""
        return f"stream-learner.{self.prefix}.standby"

    @property
    def transaction_timeout_s(self) -> float:
        """Return the seconds after which the brokers abort a transaction; see `checkpoint.timeout_s`."""
        return self.checkpoint.timeout_s + (self.checkpoint.max_pending_bytes + self.release.inline_max_bytes) / MIB

    @property
    def replay_size(self) -> int:
        """Return the number of samples replayed in each step."""
        return self.memory.replay_size or 3 * self.batch.size


class ReaderSettings(Section):
    """The settings that another program needs to read the topics of a run."""

    run: RunSettings
    kafka: KafkaSettings = KafkaSettings()
    topics: TopicsSettings = TopicsSettings()
    security: SecuritySettings = SecuritySettings()
    recovery: RecoverySettings = RecoverySettings()

    @property
    def prefix(self) -> str:
        """Prefix of the names of the output topics."""
        return self.topics.prefix or self.run.id


class FollowSettings(BaseSettings):
    """The settings of a program that follows a run. They have the names that they have in a worker's settings."""

    model_config = Settings.model_config

    run: RunSettings
    kafka: KafkaSettings = KafkaSettings()
    topics: TopicsSettings = TopicsSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    security: SecuritySettings = SecuritySettings()
    recovery: RecoverySettings = RecoverySettings()
    log: LogSettings = LogSettings()
    follow: FollowerSettings = FollowerSettings()
    serve: ServeSettings = ServeSettings()

    @property
    def prefix(self) -> str:
        """Return the prefix of the names of the output topics."""
        return self.topics.prefix or self.run.id

    @property
    def store(self) -> str | None:
        """Return `checkpoint.store`, None when it is not set: most releases are in the weights topic."""
        return self.checkpoint.store if "store" in self.checkpoint.model_fields_set else None


AnySettings = Settings | ReaderSettings | FollowSettings
