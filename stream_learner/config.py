"""Every setting: defined, read, validated and documented once.

Sources, strongest first: `--set section.key=value`, environment (`STREAM_LEARNER_SECTION__KEY`), one TOML file. The
docstring under a field is its documentation: `stream-learner config --schema` and `docs/settings.md` come from it.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PlainSerializer,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    SecretStr,
    StrictInt,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, InitSettingsSource, SettingsConfigDict, SettingsError

from stream_learner.contract.manifest import MAX_CLASSES, MAX_RANDOM_FEATURES, MAX_SIDE_PIXELS
from stream_learner.contract.signatures import Ed25519PrivateKey, Verifier, read_signing_key, read_verify_key
from stream_learner.contract.topics import OUTPUTS
from stream_learner.errors import UsageError
from stream_learner.registry import AUGMENTATIONS, FORMATS, HEADS, MODELS, STRATEGIES, WEIGHTS
from stream_learner.text import without_credentials

MIB = 1024 * 1024
ENV_PREFIX = "STREAM_LEARNER_"
# Bytes of the names of all input topics, which manifests and windows repeat: 600 long names fit.
MAX_TOPIC_NAMES_BYTES = 150_000
# Kafka's time-outs are int32, in milliseconds.
MAX_KAFKA_S = (2**31 - 1) // 1000
# Variables that Kubernetes sets beside a Service called stream-learner, or stream-learner-x.
SERVICE = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT=\w+://.*|PORT_\d+_\w+(_PROTO|_PORT|_ADDR)?)(=|$)")
# What pydantic calls the error of a default that depends on a value with an error of its own.
CONSEQUENCE = "default_factory_not_called"


def _not_a_parent(text: str) -> str:
    if text in (".", ".."):
        raise ValueError("'.' and '..' are folders' names for themselves and their parents, which Kafka refuses too")
    return text


# Kafka's own rule for topic names; run ids and prefixes become parts of them, and run ids name folders.
KafkaName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9._-]{1,200}$"), AfterValidator(_not_a_parent)]
KAFKA_NAME = "takes 1 to 200 letters (a to z, A to Z), digits, dots, hyphens and underscores"


def _servers(text: str) -> str:
    if not re.fullmatch(r"[^,\s@/]+:\d+(\s*,\s*[^,\s@/]+:\d+)*", text):
        raise ValueError("needs host:port, several separated by commas; credentials have settings of their own")
    return text


def _fit_in_manifests(topics: list[str]) -> list[str]:
    if sum(map(len, topics)) > MAX_TOPIC_NAMES_BYTES:
        raise ValueError(f"the names of all topics take more than {MAX_TOPIC_NAMES_BYTES} bytes")
    return topics


def _as_shown(path: Path) -> str:
    return str(path) if path.is_file() else "***"  # a password may have been put where a file name belongs


FileName = Annotated[Path, PlainSerializer(_as_shown, when_used="json")]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class RunSettings(Section):
    id: KafkaName
    """Identity of one model's life: key of its manifests, folder of its objects."""
    seed: NonNegativeInt = 0
    """Seed of the first weights, of dropout and of what the memory keeps."""
    stop_deadline_s: PositiveFloat = 60.0
    """Seconds a stop (SIGTERM) may take, the last save included; then the process ends with code 10."""
    on_conflict: Literal["standby", "take_over", "exit"] = "standby"
    """What a worker does that starts while another of its run lives: wait, warm, until that one stops or dies; replace
    it; or end with code 14. A worker that was replaced comes back as a standby whatever is set here."""
    session_timeout_s: Annotated[PositiveFloat, Field(le=MAX_KAFKA_S)] = 10.0
    """Seconds of silence after which the brokers take the active worker for dead and a standby takes over; within the
    brokers' `group.min.session.timeout.ms` and `group.max.session.timeout.ms`."""


class KafkaSettings(Section):
    bootstrap_servers: Annotated[str, AfterValidator(_servers)] = "127.0.0.1:9092"
    """Brokers to start from, `host:port` separated by commas."""
    client_id: str = "stream-learner"
    """Name under which the brokers see this program."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """How connections are protected."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    """SASL mechanism, for the two SASL protocols."""
    sasl_username: str | None = None
    """SASL user."""
    sasl_password: SecretStr | None = None
    """SASL password. Better: `sasl_password_file`."""
    sasl_password_file: FileName | None = None
    """File that holds the SASL password (a trailing newline is dropped)."""
    ssl_cafile: FileName | None = None
    """Certificates of the authorities to trust, PEM; the system's when unset."""
    ssl_certfile: FileName | None = None
    """Client certificate, PEM, where the brokers ask for one."""
    ssl_keyfile: FileName | None = None
    """Key of the client certificate, PEM."""
    ssl_key_password_file: FileName | None = None
    """File that holds the password of `ssl_keyfile`."""
    ssl_check_hostname: bool = True
    """Whether the broker's certificate must name the host that was dialled."""
    request_timeout_s: PositiveFloat = 30.0
    """Seconds until a request to a broker is given up, and without any answer until the worker is no longer ready."""
    give_up_s: PositiveFloat = 600.0
    """Seconds without any answer from Kafka after which the worker ends with code 3, so that a supervisor restarts it.
    At least `request_timeout_s`."""

    @model_validator(mode="after")
    def _sasl_is_whole(self) -> "KafkaSettings":
        wants_sasl = self.security_protocol.startswith("SASL")
        if wants_sasl and not (self.sasl_mechanism and self.sasl_username and self.password() is not None):
            raise ValueError(f"{self.security_protocol} needs sasl_mechanism, sasl_username and sasl_password_file")
        unused = [name for name in type(self).model_fields if name.startswith("sasl_") and getattr(self, name)]
        if unused and not wants_sasl:
            raise ValueError(
                f"security_protocol = {self.security_protocol} does not use {', '.join(unused)}; set it to SASL_SSL or "
                "SASL_PLAINTEXT, or leave them out"
            )
        return self

    @model_validator(mode="after")
    def _gives_up_last(self) -> "KafkaSettings":
        if self.give_up_s < self.request_timeout_s:
            raise ValueError(
                f"give_up_s = {self.give_up_s:g} is below request_timeout_s = {self.request_timeout_s:g}: one slow "
                "answer would end the worker"
            )
        return self

    def password(self) -> str | None:
        """Return the SASL password, read from its file where one is named.

        Raises ValueError when the file cannot be read.
        """
        if self.sasl_password_file is not None:
            return read_secret(self.sasl_password_file, "sasl_password_file")
        return self.sasl_password.get_secret_value() if self.sasl_password else None

    def key_password(self) -> str | None:
        """Return the password of the client certificate's key. Raises ValueError when its file cannot be read."""
        return read_secret(self.ssl_key_password_file, "ssl_key_password_file") if self.ssl_key_password_file else None


class InputSettings(Section):
    topics: Annotated[list[KafkaName], Field(min_length=1), AfterValidator(_fit_in_manifests)]
    """Topics to learn from; every partition of each is read."""
    format: Annotated[str, AfterValidator(FORMATS.known)] = "plain"
    """How a record carries an image: a name from `stream_learner.registry.FORMATS`, or `package.module:name`."""
    max_record_bytes: PositiveInt = 8 * MIB
    """Largest record taken; a larger one goes to the dead letters as `oversized_image`, its value left out."""
    max_image_pixels: PositiveInt = 4096 * 4096
    """Largest image decoded, height x width in pixels (those of 16 bits count twice); a larger one becomes a dead
    letter as `oversized_image`. It bounds the time and memory that one record can take."""
    tombstones: Literal["skip", "reject"] = "skip"
    """What to do with deletion markers, which are records with a key and a null value in a compacted topic: count and
    skip them, or send them to the dead letters as `no_image`. What was learned of the key is not unlearned."""
    on_lost: Literal["stop", "continue"] = "stop"
    """What to do when records have fallen off the topic's retention before they were read, or are damaged on the
    brokers' disks: end with code 7, or continue behind them, and say so in the metrics topic, the manifest and
    `stream_learner_records_lost_total`."""


class TopicsSettings(Section):
    prefix: KafkaName | None = None
    """Prefix of the names of the output topics; `run.id` when unset. It also names the transactional id and the
    groups, so one run at a time can use it: topics belong to one run."""
    replication_factor: int = -1
    """Replicas of the output topics; -1 takes the cluster's default."""


INT64 = Field(ge=-(2**63), lt=2**63)
Label = str | Annotated[StrictInt, INT64]


class LabelsSettings(Section):
    allowed: Annotated[list[Label], Field(min_length=1)] | Path | None = None
    """Labels to learn, as a list, or as a text file (UTF-8) with one label a line; all when unset. Records with another
    label become dead letters. A class that exists already and is not among them retires: it is never predicted again,
    and its samples are dropped from the memory and the held-out sets."""
    aliases: dict[str, Label] = {}
    """Other names of labels, as `{ "kitty" = "cat" }`: a record labelled `kitty` is learned as `cat`. A class `kitty`
    that exists already retires, and its samples become those of `cat`. An alias cannot stand for another alias."""
    min_records: PositiveInt = 1
    """Records of a new label after which it becomes a class. The earlier ones become dead letters (`rare_label`), so an
    occasional misspelling is no class. The circuit breaker does not count them."""


class SplitSettings(Section):
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the records held out to decide releases."""
    test: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the records held out for the reported accuracy."""
    by: Literal["id", "key"] = "id"
    """What the split is drawn from: `id` is the `id` header, or else the image's bytes. `key` is the record's key
    first: records with the same key are in the same split. Choose it where keys name groups whose images resemble one
    another (a patient, a camera), so that no group is both learned and tested on."""
    held_out_from: Annotated[list[KafkaName], Field(min_length=1)] | None = None
    """Input topics whose records may be held out; all when unset. Name those of trusted producers, and no other can
    make the gate take a bad model for a good one. Records of other topics are training samples; one whose header says
    otherwise becomes a dead letter."""

    @model_validator(mode="after")
    def _something_is_left_to_learn(self) -> "SplitSettings":
        if self.validation + self.test >= 1:
            raise ValueError("validation + test must be below 1, or nothing is left to learn")
        return self


class BatchSettings(Section):
    size: PositiveInt = 32
    """Training samples in a full batch."""
    linger_s: PositiveFloat = 1.0
    """Seconds an open batch waits for more samples."""
    max_span: PositiveInt = 10_000
    """Records after which a batch closes even if few of them were training samples."""


class ModelSettings(Section):
    name: Annotated[str, AfterValidator(MODELS.known)] = "cnn"
    """Network: a name from `stream_learner.registry.MODELS`, `timm:NETWORK` (one of timm's), or
    `package.module:factory`."""
    weights: Path | None = None
    """A pretrained backbone to begin with: a file of safetensors whose names are those of the network's state dict, or
    of its body's as torchvision and timm have them; a head in it is ignored. A run stays with one file, by digest."""
    freeze: bool | None = None
    """Whether the backbone stays as it is, batch normalisation included, and only the head learns. When unset it does
    under a head that is solved, which needs that, and learns under another."""
    head: Annotated[str, AfterValidator(HEADS.known)] = "linear"
    """What classifies the backbone's features: `linear`, trained by the strategy, or a head that is solved from sums
    over all samples and forgets nothing, under a frozen backbone: `prototype` (nearest class mean), `ridge` (ridge
    regression), `random_features` (ridge regression on random features, RanPAC); or `package.module:name`. A solved
    head uses neither strategy nor optimizer nor replay memory."""
    random_features: Annotated[PositiveInt, Field(le=MAX_RANDOM_FEATURES)] = 2_000
    """Random features under the head `random_features`; the state holds 8 bytes for each pair of them."""
    height: Annotated[PositiveInt, Field(le=MAX_SIDE_PIXELS)] = 32
    """Height in pixels to which images are resized."""
    width: Annotated[PositiveInt, Field(le=MAX_SIDE_PIXELS)] = 32
    """Width in pixels to which images are resized."""
    channels: Literal[1, 3] = 3
    """1 for grey, 3 for RGB."""
    mean: list[float] = [0.5]
    """Mean subtracted from pixels in 0..1: one for all channels or one for each."""
    std: list[PositiveFloat] = [0.25]
    """Standard deviation that pixels are divided by: one for all channels or one for each."""
    max_classes: Annotated[PositiveInt, Field(le=MAX_CLASSES)] = 1000
    """Classes that may exist at a time; records with a label beyond become dead letters. It may be raised later; a
    worker does not start with fewer than its run has. Retired classes do not count."""

    @model_validator(mode="after")
    def _constants_fit_the_channels(self) -> "ModelSettings":
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, self.channels):
                raise ValueError(f"{name} needs 1 or {self.channels} values")
        return self

    @model_validator(mode="after")
    def _a_solved_head_has_a_frozen_backbone(self) -> "ModelSettings":
        if self.head != "linear" and self.freeze is False:
            raise ValueError(
                f'head = "{self.head}" adds up features, which a backbone that learns would change behind it: leave '
                'freeze out (and set weights to a pretrained backbone), or set head = "linear"'
            )
        return self

    @property
    def frozen(self) -> bool:
        """Whether the backbone stays as it is."""
        return self.freeze or self.head != "linear"


def _by_steps(value: Callable[[int], Any]) -> Any:
    """A field that, left out, has its value by `steps_per_batch`."""
    return Field(default_factory=lambda earlier: value(earlier["steps_per_batch"]))


class LearningSettings(Section):
    strategy: Annotated[str, AfterValidator(STRATEGIES.known)] = "er_la"
    """How a batch is learned: a name from `stream_learner.registry.STRATEGIES`, or `package.module:name`."""
    steps_per_batch: PositiveInt = 1
    """Optimizer updates made with each batch. More of them learn more from it, each costing as much as one; what is
    left out of `augment`, `average_decay` and `learning_rate` follows."""
    augment: list[Annotated[str, AfterValidator(AUGMENTATIONS.known)]] = _by_steps(
        lambda steps: ["crop", "flip", *(["color_jitter", "cutout"] if steps > 1 else [])]
    )
    """How images are varied each time they are learned, in this order: names from
    `stream_learner.registry.AUGMENTATIONS`, or `package.module:name`. Leave `flip` out where left and
    right mean something, as in text. Left out, several steps per batch add `color_jitter` and `cutout`."""
    average_decay: Annotated[float, Field(ge=0, lt=1)] = _by_steps(lambda steps: 0.997 ** (1 / steps))
    """Decay per step of the moving average of weights and buffers that predicts and is released; 0 keeps none. Left
    out, it averages over as many batches whatever the number of steps for each."""
    optimizer: Literal["muon", "adam", "sgd"] = "muon"
    """Optimizer: Muon (Jordan et al. 2024), Adam (Kingma and Ba 2015) or SGD."""
    learning_rate: PositiveFloat = _by_steps(lambda steps: 0.005 / steps**0.5)
    """Learning rate. Muon and Adam take rates of one size, SGD greater ones; a pretrained network wants less. Left out,
    it is divided by the square root of the steps per batch."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of Muon and SGD; Adam ignores it."""
    weight_decay: NonNegativeFloat = 0.0
    """L2 penalty of Adam and SGD; decoupled decay of Muon."""
    on_drift: Literal["none", "boost"] = "none"
    """What a drift changes, beside being reported: nothing, or rate and replay for a while, as `[drift]` says."""
    device: str = "auto"
    """`auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the training steps; `auto` is what is faster for the model on the device."""
    channels_last: Literal["auto"] | bool = "auto"
    """Memory layout of images; `auto` is what is faster for the model."""
    threads: NonNegativeInt = 0
    """Threads of the arithmetic; 0 is one per core. Equal results need equal numbers."""


class WeightsSettings(Section):
    policies: list[Annotated[str, AfterValidator(WEIGHTS.known)]] = ["record"]
    """Factors of a sample's weight, which are multiplied: names from `stream_learner.registry.WEIGHTS`
    (`record`, `class_balance`, `recency`, `novelty`, `hardness`), or `package.module:name`."""
    max_weight: PositiveFloat = 10.0
    """Sample weights above are clipped to this."""
    half_life_records: PositiveFloat | None = None
    """`recency`: input records after which a sample counts half."""
    half_life_s: PositiveFloat | None = None
    """`recency`, instead: seconds of event time (the records' timestamps) after which a sample counts half."""
    class_balance_beta: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    """`class_balance`: a class's effective number of samples goes to 1 / (1 - beta). Nearer to 1 is nearer to inverse
    frequency; classes with many more samples than that weigh the same, however rare one is beside the other."""

    @model_validator(mode="after")
    def _policies_fit(self) -> "WeightsSettings":
        if len(set(self.policies)) < len(self.policies):
            raise ValueError("policies names one twice")
        if "recency" in self.policies and (self.half_life_records is None) == (self.half_life_s is None):
            raise ValueError("recency needs half_life_records or half_life_s, and not both")
        return self


class DriftSettings(Section):
    delta: Annotated[float, Field(gt=0, lt=1)] = 0.002
    """Confidence of the detector (ADWIN, Bifet and Gavalda 2007): the lower, the fewer false alarms and the later the
    true ones."""
    boost_records: PositiveInt = 2_000
    """Input records after a drift during which learning is boosted, where `learning.on_drift` is `boost`."""
    boost_learning_rate: PositiveFloat = 1.5
    """What the learning rate is multiplied by meanwhile. Muon's default rate bears little more: at 2 a CNN ended lower
    than without, at 3 its units died."""
    boost_replay: PositiveFloat = 1.0
    """What the replay size is multiplied by meanwhile: above 1 guards what was known, which helps where new classes
    arrive; below 1 unlearns it sooner, which helps where labels have changed their meaning."""


# Objects that one manifest may name: it has to fit in a record of Kafka's.
MAX_SEGMENTS = 4096


class MemorySettings(Section):
    max_items: NonNegativeInt = 10_000
    """Samples kept for replay, over all classes; of small images far fewer than `max_bytes` would hold. With more
    classes than that, those that came first keep none."""
    max_bytes: NonNegativeInt = 256 * MIB
    """Bytes of the encoded images kept for replay, over all classes; those given up take as much again at
    most."""
    segment_bytes: Annotated[PositiveInt, Field(le=1024 * MIB)] = 16 * MIB
    """Bytes of images after which a checkpoint writes them into an object of their own, once; what is newer is written
    with each checkpoint. Also for the held-out sets."""
    replay_size: PositiveInt | None = None
    """Samples replayed in each step; three times `batch.size` when unset. With as many as are new, a stream that stays
    with one class would tell the model in half of each step that there is no other."""


class HeldOutSettings(Section):
    max_items: PositiveInt = 2_000
    """Samples in each held-out set (validation, test), over all classes."""
    max_bytes: PositiveInt = 64 * MIB
    """Bytes of the pixels in each held-out set."""


class ReleaseSettings(Section):
    every_records: PositiveInt = 5_000
    """Input records between two decisions to release."""
    rule: Literal["max_drop", "not_worse", "better"] = "max_drop"
    """What a candidate must be to be released, by mean recall on the same validation samples: at most `max_drop` below
    the last release; not significantly worse; significantly better (McNemar's exact test, one-sided, at 0.05)."""
    max_drop: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Mean recall (0..1) that a candidate may lack of the last release under the rule `max_drop`."""
    max_old_class_drop: Annotated[float, Field(ge=0, le=1)] | None = None
    """Mean recall (0..1) that a candidate may lack of the last release over the classes that the latter knows, whatever
    the rule; any when unset. What new classes gain does not make up for it."""
    patience: PositiveInt | None = 5
    """Refusals since the last release, of candidates that were worse, after which training goes back to it at half the
    learning rate (down to a tenth, until a model is released); unset, it never does."""
    min_held_out: NonNegativeInt = 100
    """Validation samples below which the gate abstains: the candidate is released, and the manifest says so."""
    inline_max_bytes: NonNegativeInt = 8 * MIB
    """Releases up to this size also travel in the weights topic."""


class CheckpointSettings(Section):
    store: Annotated[str, PlainSerializer(without_credentials, when_used="json")] = ".stream-learner/objects"
    """Where objects live: a folder, or a URL (`file://`, `s3://`, `gs://`, `az://`)."""
    every_records: PositiveInt | None = None
    """Input records between two saves, beside those of the clock."""
    every_s: PositiveFloat = 30.0
    """Seconds between two saves."""
    keep: Annotated[PositiveInt, Field(le=1000)] = 3
    """Newest states that are kept, beside the last release before the oldest of them, which is needed to resume that
    one. Manifests name all objects of these states, so more states need a larger `memory.segment_bytes`."""
    max_unsaved_records: PositiveInt = 100_000
    """Input records that may wait for a save when the store is failing; then reading stops."""
    max_pending_bytes: PositiveInt = 64 * MIB
    """Bytes of metric windows and dead letters that force a save."""
    timeout_s: PositiveFloat = 30.0
    """Seconds a publication's transaction may take, beside one for each MiB of `max_pending_bytes` and
    `release.inline_max_bytes`; then the process ends, and a restart recovers. The sum must be within the brokers'
    `transaction.max.timeout.ms` (15 minutes by default)."""


class RecoverySettings(Section):
    timeout_s: PositiveFloat = 180.0
    """Seconds for reading the checkpoints topic to its end; longer than an open transaction may live."""


class RejectsSettings(Section):
    max_share: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Share of rejected records among the last `window` that stops the worker."""
    window: PositiveInt = 1_000
    """Records over which the share is taken, once the process has read that many."""
    max_in_a_row: PositiveInt = 200
    """Rejected records in a row, over all topics, that stop the worker, however few it has read. Deletion markers and
    rare labels do not count."""


class SecuritySettings(Section):
    signing_key_file: FileName | None = None
    """Ed25519 private key (PEM, not encrypted) that signs each manifest and window; unsigned when unset."""
    verify_key_files: list[FileName] = []
    """Ed25519 public keys (PEM). Once there is one, every command refuses a manifest or window that none of these keys
    signed."""

    _signer: Ed25519PrivateKey | None = PrivateAttr(None)
    _verifier: Verifier | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _keys_are_read(self) -> "SecuritySettings":
        if self.signing_key_file:
            self._signer = read_signing_key(self.signing_key_file)
        if self.verify_key_files:
            self._verifier = Verifier(map(read_verify_key, self.verify_key_files))
        if self._signer and self._verifier and not self._verifier.knows(self._signer):
            raise ValueError(
                "the public half of signing_key_file is not among verify_key_files, so the run would refuse its own "
                "manifests; add it there"
            )
        return self

    @property
    def signer(self) -> Ed25519PrivateKey | None:
        """The signing key, as its file was when the settings were read."""
        return self._signer

    @property
    def verifier(self) -> Verifier | None:
        """The verify keys, as their files were when the settings were read; None without any."""
        return self._verifier


class MonitoringSettings(Section):
    host: str = "127.0.0.1"
    """Address of `/metrics` and the health pages; loopback unless you choose otherwise."""
    port: Annotated[int, Field(ge=0, le=65535)] = 9464
    """Port of `/metrics` and the health pages; 0 takes a free one and logs it. So does the port of another worker of
    the run on the same host."""
    live_timeout_s: PositiveFloat = 120.0
    """Seconds without a turn of the loop after which `/livez` fails."""


class LogSettings(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level that is written."""
    format: Literal["console", "json"] = "console"
    """`console` for people, `json` for collectors (one object a line, on standard error)."""


class Settings(BaseSettings):
    """The whole configuration of a worker."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    run: RunSettings
    """The run's identity."""
    input: InputSettings
    """What is read."""
    kafka: KafkaSettings = KafkaSettings()
    """How Kafka is reached; the same for every client of the program."""
    topics: TopicsSettings = TopicsSettings()
    """The topics that are written."""
    labels: LabelsSettings = LabelsSettings()
    """Which labels are learned, and under which names."""
    split: SplitSettings = SplitSettings()
    """Shares of the splits, for records without a `split` header."""
    batch: BatchSettings = BatchSettings()
    """When a mini-batch closes."""
    model: ModelSettings = ModelSettings()
    """The network and its input."""
    learning: LearningSettings = LearningSettings()
    """How a batch is learned."""
    weights: WeightsSettings = WeightsSettings()
    """What a sample counts."""
    drift: DriftSettings = DriftSettings()
    """How a rise of the prequential error is noticed, and what `learning.on_drift` does about it."""
    memory: MemorySettings = MemorySettings()
    """What is kept for replay."""
    held_out: HeldOutSettings = HeldOutSettings()
    """What is kept for evaluation and never learned."""
    release: ReleaseSettings = ReleaseSettings()
    """When a model is released, and the gate."""
    checkpoint: CheckpointSettings = CheckpointSettings()
    """When state is saved, and where."""
    recovery: RecoverySettings = RecoverySettings()
    """Starting again."""
    rejects: RejectsSettings = RejectsSettings()
    """The circuit breaker for bad input."""
    security: SecuritySettings = SecuritySettings()
    """Who may publish for the run: signatures of manifests and windows."""
    monitoring: MonitoringSettings = MonitoringSettings()
    """Prometheus and health pages."""
    log: LogSettings = LogSettings()
    """Logs."""

    @model_validator(mode="after")
    def _trusted_topics_are_read(self) -> "Settings":
        for topic in self.split.held_out_from or []:
            if topic not in self.input.topics:
                raise ValueError(f"split.held_out_from: {topic} is not in input.topics")
        return self

    @model_validator(mode="after")
    def _no_output_is_read(self) -> "Settings":
        for topic in (f"{self.prefix}.{output}" for output in OUTPUTS):
            if topic in self.input.topics:
                raise ValueError(
                    f"input.topics: {topic} is a topic that this run writes, so it would read its own output; leave "
                    "it out, or set another topics.prefix"
                )
        return self

    @model_validator(mode="after")
    def _segments_fit_in_a_manifest(self) -> "Settings":
        most = 2 * (self.memory.max_bytes + 2 * self.held_out.max_bytes)
        states = self.checkpoint.keep + 1
        if most * states > MAX_SEGMENTS * self.memory.segment_bytes:
            raise ValueError(
                f"memory.segment_bytes has to be {-(-most * states // MAX_SEGMENTS)} at least, for memory.max_bytes, "
                "held_out.max_bytes and checkpoint.keep as they are"
            )
        return self

    @model_validator(mode="after")
    def _a_transaction_has_a_time_out_of_kafkas(self) -> "Settings":
        if self.transaction_timeout_s > MAX_KAFKA_S:
            raise ValueError(
                "checkpoint.timeout_s, and a second for each MiB of checkpoint.max_pending_bytes and "
                f"release.inline_max_bytes, may be {MAX_KAFKA_S} s at most"
            )
        return self

    @property
    def prefix(self) -> str:
        """What the output topics' names start with."""
        return self.topics.prefix or self.run.id

    @property
    def transactional_id(self) -> str:
        """Transactional id of whoever writes the output topics, and the group under which the positions are mirrored.

        It has no part of the run's id: two runs that share a prefix fence each other.
        """
        return f"stream-learner.{self.prefix}.worker"

    @property
    def standby_group(self) -> str:
        """Group in which the workers that share the output topics elect the active one."""
        return f"stream-learner.{self.prefix}.standby"

    @property
    def transaction_timeout_s(self) -> float:
        """Seconds until the brokers abort a transaction: `checkpoint.timeout_s`, and a second for each MiB in it."""
        return self.checkpoint.timeout_s + (self.checkpoint.max_pending_bytes + self.release.inline_max_bytes) / MIB

    @property
    def replay_size(self) -> int:
        """Samples replayed in each step."""
        return self.memory.replay_size or 3 * self.batch.size


def read_secret(path: Path, setting: str) -> str:
    """Return the text of a secret file without its trailing newline.

    Raises ValueError when it cannot be read. The message names `setting`, not the path: it may be the secret itself.
    """
    try:
        return path.read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        raise ValueError(f"cannot read the file that {setting} names: {error.strerror}") from None
    except ValueError:  # not UTF-8, or NUL in the name
        raise ValueError(f"the file that {setting} names is not UTF-8 text") from None


def load(path: Path | None, overrides: list[str] | None = None) -> Settings:
    """Read, merge and validate the settings.

    `path` is the TOML file, or None for the environment alone; `overrides` are `section.key=value`, the value in
    TOML notation (bare words are strings). Raises UsageError, which names the field and what would be right.
    """
    if path is not None and not path.is_file():
        named = path if path.suffix == ".toml" else "of that name"  # which may be a password
        raise UsageError(f"there is no settings file {named}; deploy/worker.example.toml is one to start from")

    document: dict[str, Any] = {}

    class Merged(Settings):
        @classmethod
        def settings_customise_sources(cls, settings_cls, init_settings, env_settings, **_):  # pyright: ignore
            return init_settings, env_settings, InitSettingsSource(settings_cls, document)

    try:
        if path is not None:
            document |= tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors begin with a BOM
        settings = Merged(**_nested(overrides or []))
        _reject_unknown_environment()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except SettingsError as error:
        raise UsageError(
            f'the environment holds a setting that cannot be read; a list is written as ["a", "b"]: {error}'
        ) from None
    except ValidationError as error:
        raise UsageError("; ".join(_explain(e) for e in error.errors() if e["type"] != CONSEQUENCE)) from None
    return settings


def schema() -> dict[str, Any]:
    """JSON Schema of the settings file."""
    return Settings.model_json_schema()


def _nested(overrides: list[str]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for override in overrides:
        path, separator, text = override.partition("=")
        *sections, key = path.strip().split(".")
        if not separator or len(sections) != 1:
            raise UsageError(f"--set {_named(path.strip())} is not of the form section.key=value")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        document.setdefault(sections[0], {})[key] = value
    return document


def _named(path: str) -> str:
    """Return the name of a setting, or `***` for anything else: it may be a secret."""
    known = {*Settings.model_fields, *(key for name in Settings.model_fields for key in _section(name))}
    return path if set(path.split(".")) <= known else "***"


def _reject_unknown_environment() -> None:
    # pydantic-settings looks up the names it knows and never sees a misspelt section.
    for name, value in os.environ.items():
        section, nested, _ = name.removeprefix(ENV_PREFIX).lower().partition("__")
        if not name.startswith(ENV_PREFIX) or SERVICE.search(f"{name}={value}"):
            continue
        if not nested or section not in Settings.model_fields:
            raise UsageError(f"unknown setting {name} in the environment{_nearest(section, Settings.model_fields)}")


def _explain(error: ErrorDetails) -> str:
    """One validation error as a sentence that names the field and, for an unknown one, its nearest relative."""
    location = [str(part) for part in error["loc"]]
    name = ".".join(location)
    if error["type"] == "extra_forbidden":
        fields = _section(location[0]) if len(location) > 1 else Settings.model_fields
        return f"unknown setting {name}{_elsewhere(location[-1]) or _nearest(location[-1], fields)}"
    if error["type"] == "string_pattern_mismatch":
        return f"{name}: {KAFKA_NAME}"
    if error["type"] == "missing":
        names = [f"{name}.{key}" for key, field in _section(name).items() if field.is_required()] or [name]
        return f"{', '.join(names)} is required"
    message = error["msg"].removeprefix("Value error, ")
    return f"{name}: {message}" if name else message  # one that spans sections names its field itself


def _section(name: str) -> dict[str, FieldInfo]:
    """Fields of the section called `name`; none when there is no such section."""
    section = Settings.model_fields[name].annotation if name in Settings.model_fields else None
    return section.model_fields if isinstance(section, type) and issubclass(section, BaseModel) else {}


def _elsewhere(key: str) -> str:
    found = [f"{section}.{key}" for section in Settings.model_fields if key in _section(section)]
    return f"; did you mean {' or '.join(found)}?" if found else ""


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(sorted(known))}"
