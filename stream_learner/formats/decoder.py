"""Turn a record into a sample, with all checks that do not need the model."""

import hashlib
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stream_learner.config import Settings
from stream_learner.contract.vocabulary import Reason, Split
from stream_learner.formats import images, splits
from stream_learner.formats.format import Format, build
from stream_learner.formats.labels import LabelRules, parse_label
from stream_learner.formats.record import MAX_ROWS, Fields, Record, RejectError, Rows, Sample

SPLITS = {split.value: split for split in Split}
"""Splits by name. An enumeration looks its members up ten times slower."""


@dataclass(frozen=True)
class Decoder:
    """Turns records into samples of one size. Stateless: the same record gives the same sample anywhere."""

    format: Format
    rules: LabelRules
    skips_tombstones: bool
    height: int
    width: int
    channels: int
    max_record_bytes: int
    max_image_pixels: int
    validation: float
    test: float
    split_by: Literal["id", "key"]
    held_out_from: list[str] | None

    @classmethod
    def from_settings(cls, settings: Settings) -> "Decoder":
        """Build the decoder. Raises UsageError when the settings of the format or of `[labels]` do not fit."""
        return cls(
            format=build(settings.input),
            rules=LabelRules.from_settings(settings.labels),
            skips_tombstones=settings.input.tombstones == "skip",
            height=settings.model.height,
            width=settings.model.width,
            channels=settings.model.channels,
            max_record_bytes=settings.input.max_record_bytes,
            max_image_pixels=settings.input.max_image_pixels,
            validation=settings.split.validation,
            test=settings.split.test,
            split_by=settings.split.by,
            held_out_from=settings.split.held_out_from,
        )

    def __call__(self, record: Record) -> Sample | Rows | None:
        """Return the sample, or None for a deletion marker to skip. Return the rows of a message that has rows.

        Raises RejectError when the record cannot be used, RetryLaterError when it cannot be read now.
        """
        if record.rows:
            return self._sample(record, record.rows.fields[record.row])
        if record.unreadable is not None:
            raise RejectError(Reason.UNREADABLE_RECORD, record.unreadable)
        if record.value is None and record.key is not None and self.skips_tombstones:
            return None
        self._check_size(record.value)
        fields = self.format.read(record)
        if not isinstance(fields, Rows):
            return self._sample(record, fields)
        if not 0 < len(fields.fields) <= MAX_ROWS:
            raise RejectError(Reason.BAD_ENVELOPE, f"the message has {len(fields.fields) or 'no'} rows")
        return fields

    def _sample(self, record: Record, fields: Fields) -> Sample:
        image = fields.image
        if image is None or not len(image):
            raise RejectError(Reason.NO_IMAGE, "the record holds no image")
        self._check_size(image)  # the format may have fetched or decompressed the image
        label = self.rules.apply(parse_label(fields.label))
        weight = parse_weight(fields.weight)
        split = parse_split(fields.split)
        if self.held_out_from is not None and record.topic not in self.held_out_from:
            if split in (Split.VALIDATION, Split.TEST):
                message = f"{record.topic} is not in split.held_out_from, so its records cannot be {split} samples"
                raise RejectError(Reason.UNTRUSTED_HELD_OUT, message)
            split = Split.TRAIN
        group = 0
        if split is not Split.TRAIN:
            identity = self._identity(record, fields.id, image)
            split = split or splits.assign(identity, self.validation, self.test)
            group = splits.group(identity)
        size = self.height, self.width, self.channels, self.max_image_pixels
        if isinstance(image, bytes):
            pixels_HWC, encoded = images.decode(image, *size), image
        else:
            pixels_HWC, encoded = images.fit(image, *size), b""
        timestamp_ms = record.timestamp_ms if fields.timestamp_ms is None else fields.timestamp_ms
        return Sample(record.place, label, pixels_HWC, encoded, timestamp_ms, weight, split, group, fields.id or b"")

    def _check_size(self, data: bytes | np.ndarray | None) -> None:
        size = data.nbytes if isinstance(data, np.ndarray) else len(data or b"")
        if size > self.max_record_bytes:
            message = f"{size} bytes are over input.max_record_bytes = {self.max_record_bytes}"
            raise RejectError(Reason.OVERSIZED_IMAGE, message)

    def _identity(self, record: Record, id_: bytes | None, image: bytes | np.ndarray) -> bytes:
        """Return the identity that determines the split. Records with the same identity are in the same split."""
        key = record.key if self.split_by == "key" else None
        if given := key or id_:
            return given
        return hashlib.sha256(image if isinstance(image, bytes) else image.tobytes()).digest()


def parse_weight(raw: float | bytes | None) -> float:
    """Parse a weight: a finite number of at least 0. Return 1 for None. Raises RejectError (`bad_weight`)."""
    if raw is None:
        return 1.0
    try:
        weight = float(raw)
        if isinstance(raw, bytes) and b"_" in raw:  # float() accepts 1_000, other languages do not
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        weight = math.nan
    if not math.isfinite(weight) or weight < 0:
        raise RejectError(Reason.BAD_WEIGHT, f"the weight {raw!r:.80} is not a finite number of at least 0")
    return weight


def parse_split(raw: str | bytes | None) -> Split | None:
    """Parse a split. Return None for None. Raises RejectError (`unknown_split`)."""
    if raw is None:
        return None
    try:
        return SPLITS[raw.decode() if isinstance(raw, bytes) else raw]
    except (KeyError, TypeError, UnicodeDecodeError):
        raise RejectError(Reason.UNKNOWN_SPLIT, f"the split {raw!r:.80} is not one of {', '.join(Split)}") from None
