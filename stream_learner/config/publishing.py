"""Settings of the output: topics, releases, checkpoints, signatures."""

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PlainSerializer,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    field_validator,
    model_validator,
)

from stream_learner.config.fields import MIB, FileName, KafkaName, Section
from stream_learner.contract.signatures import Ed25519PrivateKey, Verifier, read_signing_key, read_verify_key
from stream_learner.text import without_credentials


class TopicsSettings(Section):
    prefix: KafkaName | None = None
    """Prefix of the output topics' names; `run.id` when unset. It also names the transactional id and the groups, so
    only one run at a time can use it. Topics belong to one run."""
    replication_factor: int = -1
    """Replicas of the output topics. -1 takes the cluster's default."""


# A manifest lists the releases that are kept, so their number is limited.
MAX_RELEASES = 100


class ReleaseSettings(Section):
    every_records: PositiveInt = 5_000
    """Input records between two release decisions."""
    rule: Literal["max_drop", "not_worse", "better"] = "max_drop"
    """Condition for a release, by mean recall on the same validation samples. `max_drop`: at most `max_drop` below the
    last release. `not_worse`: not significantly worse. `better`: significantly better. The test is McNemar's exact
    test, one-sided, at 0.05."""
    max_drop: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Mean recall (0..1) that a candidate may lose against the last release under the rule `max_drop`."""
    max_old_class_drop: Annotated[float, Field(ge=0, le=1)] | None = None
    """Mean recall (0..1) that a candidate may lose over the classes of the last release, under any rule; no limit when
    unset. Gains on new classes do not offset this loss."""
    patience: PositiveInt | None = 5
    """Number of refusals after which training goes back to the last release. Only candidates that were worse than that
    release count. Each time, the learning rate is halved, but it stays at least a tenth of the setting. The next
    release resets it. When unset, training never goes back."""
    min_held_out: NonNegativeInt = 100
    """Validation samples below which the gate abstains: the candidate is released, and the manifest records this."""
    inline_max_bytes: NonNegativeInt = 8 * MIB
    """Largest release that is also published in the weights topic."""
    formats: list[Literal["safetensors", "onnx"]] = ["safetensors", "onnx"]
    """Formats of each release. `safetensors` holds the parameters and is always there. `onnx` adds the network as a
    graph, so that readers need no PyTorch. When the number of classes has changed, a separate process exports the
    graph, which takes up to 2 GB of memory."""
    format_wait_s: NonNegativeFloat = 15.0
    """Seconds that a release may wait for the export of its graph. After that it is published without a graph, and the
    export continues for the next release."""
    keep: Annotated[PositiveInt, Field(le=MAX_RELEASES)] = 10
    """Number of newest releases, including the last one, whose objects stay in the store."""
    keep_days: Annotated[float, Field(gt=0, le=3650)] | None = None
    """Days after which the objects of a release may be deleted. Until then they stay too, for at most 100 releases in
    all. When unset, only `keep` decides."""

    @field_validator("formats")
    @classmethod
    def _safetensors_is_there(cls, formats: list[str]) -> list[str]:
        if "safetensors" not in formats:
            raise ValueError("must contain safetensors, which holds the parameters")
        return formats


class CheckpointSettings(Section):
    store: Annotated[str, PlainSerializer(without_credentials, when_used="json")] = ".stream-learner/objects"
    """Place of the objects: a folder, or a URL (`file://`, `s3://`, `gs://`, `az://`)."""
    every_records: PositiveInt | None = None
    """Input records between two saves, in addition to `every_s`."""
    every_s: PositiveFloat = 30.0
    """Seconds between two saves."""
    keep: Annotated[PositiveInt, Field(le=1000)] = 3
    """Number of newest states to keep. The last release before the oldest of these states is kept too, because that
    state cannot be resumed without the release. Manifests name all objects of these states, so more states need a
    larger `memory.segment_bytes`."""
    max_unsaved_records: PositiveInt = 100_000
    """Input records that may wait for a save while the store fails. At this number the worker stops reading."""
    max_pending_bytes: PositiveInt = 64 * MIB
    """Bytes of metric windows and dead letters that may wait for a save. At this number the worker saves early."""
    timeout_s: PositiveFloat = 30.0
    """Seconds that a publication's transaction may take. Each MiB of `max_pending_bytes` and `release.inline_max_bytes`
    adds one second. After that the process ends, and a restart recovers. The sum must be within the brokers'
    `transaction.max.timeout.ms` (15 minutes by default)."""


class RecoverySettings(Section):
    timeout_s: PositiveFloat = 180.0
    """Seconds for reading the checkpoints topic to its end. Must be longer than a transaction may stay open."""


class SecuritySettings(Section):
    signing_key_file: FileName | None = None
    """Ed25519 private key (PEM, not encrypted) that signs each manifest and window; unsigned when unset."""
    verify_key_files: list[FileName] = []
    """Ed25519 public keys (PEM). If there are any, every command refuses a manifest or window unless one of these
    keys verifies its signature."""

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
                "the public key of signing_key_file is not in verify_key_files, so the run would refuse its own "
                "manifests; add it to verify_key_files"
            )
        return self

    @property
    def signer(self) -> Ed25519PrivateKey | None:
        """Return the signing key, read when the settings were loaded."""
        return self._signer

    @property
    def verifier(self) -> Verifier | None:
        """Return the verifier with the verify keys, read when the settings were loaded. None if there are no keys."""
        return self._verifier
