"""The base class of record formats: an extension point."""

from abc import abstractmethod

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from stream_learner.config import InputSettings
from stream_learner.errors import UsageError
from stream_learner.formats.record import Fields, Record, Rows
from stream_learner.registry import FORMATS


class Format(BaseModel):
    """Base class of record formats. The fields of a subclass are its settings.

    The settings are read from `[input.format_settings]` and validated when the worker starts. A subclass without fields
    has no settings. Keep clients and caches in private attributes (pydantic's `PrivateAttr`). Connect at the first
    `read`, because a format may be built only to check its settings. `plain.py` is the smallest example.

    For each record, `read` has one of three outcomes:

    1. It returns the record's `Fields`. The worker checks image, label, weight and split afterwards. If the message
       holds many records, `read` returns their `Rows`: the fields of each, and a function that makes a message of one
       of them, for its dead letter. Limit their number, and the time that reading them takes.
    2. It raises `RejectError` if the record does not have this form, normally with `Reason.BAD_ENVELOPE`. The record
       becomes a dead letter.
    3. It raises `RetryLaterError` if something outside is at fault, such as a schema registry or a bucket that does not
       answer. The worker waits and reads the same record again. It neither loses nor rejects the record. After
       `kafka.give_up_s` the process ends with code 17. Never raise this error for a fault of the record itself: no
       restart would get past that record.

    Any other exception is a bug and ends the process.

    The same record must always give the same fields, because a resumed or rebuilt run reads it again. If a record
    refers to something outside, that content must never change. One thread calls `read`. Meanwhile the worker neither
    learns nor stops, so limit each wait to a few seconds.

    >>> import json
    >>> from base64 import b64decode
    >>> from stream_learner.formats import Fields, Format, Reason, Record, RejectError
    >>> class Envelope(Format):
    ...     label_field: str = "label"
    ...
    ...     def read(self, record: Record) -> Fields:
    ...         try:
    ...             envelope = json.loads(record.value or b"")
    ...             return Fields(b64decode(envelope["image"]), envelope[self.label_field])
    ...         except (ValueError, KeyError, TypeError, RecursionError) as error:
    ...             raise RejectError(Reason.BAD_ENVELOPE, f"no image and label in JSON: {error!r}") from None
    >>> envelope = Envelope(label_field="class")
    >>> envelope.read(Record("images", 0, 0, 0, None, b'{"image": "/9j/4A==", "class": "cat"}', [])).label
    'cat'
    >>> envelope.read(Record("images", 0, 1, 0, None, b"{}", []))
    Traceback (most recent call last):
    stream_learner.formats.record.RejectError: no image and label in JSON: KeyError('image')
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @abstractmethod
    def read(self, record: Record) -> Fields | Rows:
        """Return the fields of a record, or the rows of a message that holds many records.

        Raises RejectError, RetryLaterError.
        """


def build(settings: InputSettings) -> Format:
    """Build the format that `input.format` names.

    Raises UsageError when the name is unknown or not a Format, or when `input.format_settings` do not fit the format.
    """
    kind = FORMATS.lookup(settings.format)
    if not (isinstance(kind, type) and issubclass(kind, Format)):
        raise UsageError(
            f"input.format: {settings.format} is not a subclass of stream_learner.Format; docs/extending.md "
            "has an example"
        )
    try:
        return kind.model_validate(settings.format_settings)
    except ValidationError as error:
        raise UsageError("; ".join(_explain(kind, problem) for problem in error.errors())) from None


def _explain(kind: type[Format], problem: ErrorDetails) -> str:
    name = ".".join(["input.format_settings", *map(str, problem["loc"])])
    if problem["type"] == "extra_forbidden" and len(problem["loc"]) == 1:
        return f"unknown setting {name}; known here: {', '.join(kind.model_fields) or 'none'}"
    return f"{name}: {problem['msg'].removeprefix('Value error, ')}"
