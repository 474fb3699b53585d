"""Words that documents and headers use: labels, splits, reasons to reject."""

from enum import StrEnum
from typing import Annotated

from msgspec import Meta

Label = Annotated[str, Meta(max_length=256)] | Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


class Split(StrEnum):
    """Use of a sample: learned, or held out to decide releases (validation) or to report accuracy (test)."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


class Reason(StrEnum):
    """Reason why a record cannot be used."""

    # The docstring of each member is its line in the documentation.
    UNREADABLE_RECORD = "unreadable_record"
    """The bytes in Kafka are not a readable record: a header name that is not UTF-8, a malformed record or batch, or a
    batch that decompresses to more than its limit."""
    NO_IMAGE = "no_image"
    """The record holds no image bytes."""
    UNDECODABLE_IMAGE = "undecodable_image"
    """The bytes are not a JPEG or PNG, or the image is incomplete or damaged."""
    OVERSIZED_IMAGE = "oversized_image"
    """The record is larger than `input.max_record_bytes`, or the image exceeds `input.max_image_pixels` or another
    limit on images."""
    NO_LABEL = "no_label"
    """There is no label, or the label has no text."""
    BAD_LABEL = "bad_label"
    """The label is not UTF-8 text of at most 256 bytes (in Unicode NFC), contains a control or formatting character, or
    is an integer of more than 64 bits."""
    LABEL_NOT_ALLOWED = "label_not_allowed"
    """The label is not in `labels.allowed`."""
    RARE_LABEL = "rare_label"
    """The label is new, and fewer than `labels.min_records` records have carried it."""
    BAD_WEIGHT = "bad_weight"
    """The weight is not a number, or is negative, NaN or infinite."""
    UNKNOWN_SPLIT = "unknown_split"
    """The split is not train, validation or test."""
    UNTRUSTED_HELD_OUT = "untrusted_held_out"
    """The split is validation or test, and the record's topic is not in `split.held_out_from`."""
    BAD_ENVELOPE = "bad_envelope"
    """The record does not have the form that `input.format` names."""
    TOO_MANY_CLASSES = "too_many_classes"
    """The label is new, and `model.max_classes` are known already, or all labels would take more than 512 KiB."""
    POISON = "poison"
    """Decoding or learning the record ended the process three times or more, so it was set aside."""
    NON_FINITE_STEP = "non_finite_step"
    """Learning the record's batch gave a loss or gradient that is not finite. The step was undone."""
