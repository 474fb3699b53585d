"""Settings of what is read, from a record to a batch."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, StrictInt, model_validator

from stream_learner.config.fields import MIB, KafkaName, Section
from stream_learner.registry import FORMATS

# Bytes of the names of all input topics, which manifests and windows repeat: 600 long names fit.
MAX_TOPIC_NAMES_BYTES = 150_000


def _fit_in_manifests(topics: list[str]) -> list[str]:
    if sum(map(len, topics)) > MAX_TOPIC_NAMES_BYTES:
        raise ValueError(f"the names of all topics take more than {MAX_TOPIC_NAMES_BYTES} bytes")
    return topics


class InputSettings(Section):
    topics: Annotated[list[KafkaName], Field(min_length=1), AfterValidator(_fit_in_manifests)]
    """Topics to learn from; every partition of each is read."""
    format: Annotated[str, AfterValidator(FORMATS.known)] = "plain"
    """How a record carries an image: a name from `stream_learner.registry.FORMATS`, or `package.module:Class`."""
    format_settings: dict[str, Any] = {}
    """Settings of the format, which its class defines; `plain` has none. They are printed like all others: give names
    of files instead of secrets."""
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
