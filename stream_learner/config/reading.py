"""Settings of the input: topics, labels, splits, batches."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, StrictInt, model_validator

from stream_learner.config.fields import MIB, KafkaName, Section
from stream_learner.registry import FORMATS

# Limit on the bytes of all input topics' names, because every manifest and window lists them. 600 long names fit.
MAX_TOPIC_NAMES_BYTES = 150_000


def _fit_in_manifests(topics: list[str]) -> list[str]:
    if sum(map(len, topics)) > MAX_TOPIC_NAMES_BYTES:
        raise ValueError(
            f"the names of all topics take more than {MAX_TOPIC_NAMES_BYTES} bytes; use fewer topics or shorter names"
        )
    return topics


class InputSettings(Section):
    topics: Annotated[list[KafkaName], Field(min_length=1), AfterValidator(_fit_in_manifests)]
    """Topics to learn from. Every partition of each topic is read."""
    format: Annotated[str, AfterValidator(FORMATS.known)] = "plain"
    """Format of the records: a name from `stream_learner.registry.FORMATS`, or `package.module:Class`."""
    format_settings: dict[str, Any] = {}
    """Settings of the format, which its class defines; `plain` and `arrow` have none. They are printed like all other
    settings, so give names of files instead of secrets."""
    max_record_bytes: PositiveInt = 8 * MIB
    """Largest record to accept. A larger record becomes a dead letter (`oversized_image`) without its value."""
    max_image_pixels: PositiveInt = 4096 * 4096
    """Largest image to decode: height x width in pixels, where 16-bit pixels count twice. A larger image becomes a
    dead letter (`oversized_image`). This limit bounds the time and memory that one record can take."""
    tombstones: Literal["skip", "reject"] = "skip"
    """Handling of deletion markers, which are records with a key and a null value in a compacted topic. `skip`: count
    and skip them. `reject`: send them to the dead letters as `no_image`. In both cases the model does not forget
    earlier images with this key."""
    on_lost: Literal["stop", "continue"] = "stop"
    """Handling of records that retention deleted before they were read, or that are damaged on the brokers' disks.
    `stop`: exit with code 7. `continue`: continue after them, and report them in the metrics topic, the manifest and
    `stream_learner_records_lost_total`."""


INT64 = Field(ge=-(2**63), lt=2**63)
Label = str | Annotated[StrictInt, INT64]


class LabelsSettings(Section):
    allowed: Annotated[list[Label], Field(min_length=1)] | Path | None = None
    """Labels to learn, as a list or as a text file (UTF-8) with one label per line; all labels when unset. Records with
    another label become dead letters. An existing class that is not listed retires: it is never predicted again, and
    its samples are removed from the memory and the held-out sets."""
    aliases: dict[str, Label] = {}
    """Other names of labels, as `{ "kitty" = "cat" }`: a record labelled `kitty` is learned as `cat`. An existing class
    `kitty` retires, and its samples become samples of `cat`. An alias cannot stand for another alias."""
    min_records: PositiveInt = 1
    """Number of records with a new label that make it a class. All of these records but the last become dead letters
    (`rare_label`), so that an occasional misspelling does not become a class. The circuit breaker does not count these
    dead letters."""


class SplitSettings(Section):
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the records held out to decide about releases."""
    test: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the records held out to compute the reported accuracy."""
    by: Literal["id", "key"] = "id"
    """Source of the split. `id`: the `id` header, or the image's bytes if there is no such header. `key`: the record's
    key, so that records with the same key are in the same split; records without a key are split as with `id`. Choose
    `key` where keys name groups of similar images (a patient, a camera), so that no group is both learned and tested
    on."""
    held_out_from: Annotated[list[KafkaName], Field(min_length=1)] | None = None
    """Input topics whose records may be held out; all when unset. If you name only topics of trusted producers, no
    other producer can make the gate accept a bad model. Records of all other topics are training samples. If the header
    of such a record names another split, it becomes a dead letter."""

    @model_validator(mode="after")
    def _something_is_left_to_learn(self) -> "SplitSettings":
        if self.validation + self.test >= 1:
            raise ValueError("validation + test must be below 1, or no record is left to learn")
        return self


class ServedSettings(Section):
    evaluate: bool = False
    """Whether the worker reads the topic `<prefix>.predictions`, which servers write, and compares each prediction with
    the label of the record that arrives later with the same `id`. Predictions are never learned."""
    keep_s: PositiveFloat = 7 * 24 * 3600.0
    """Seconds that a prediction waits for its label, by the timestamps of the records."""
    max_bytes: Annotated[int, Field(ge=MIB, le=1024 * MIB)] = 32 * MIB
    """Memory for the predictions that wait, about 400 bytes each. The oldest ones are dropped first."""


class BatchSettings(Section):
    size: PositiveInt = 32
    """Training samples in a full batch."""
    linger_s: PositiveFloat = 1.0
    """Seconds that an open batch waits for more samples."""
    max_span: PositiveInt = 10_000
    """Records after which a batch closes even if it has few training samples."""
