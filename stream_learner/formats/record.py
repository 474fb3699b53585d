"""Types of the input: records as read from Kafka, and samples as learned."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from stream_learner.contract.vocabulary import Label, Reason, Split

# Approximate memory of a record and of a header, without their contents.
RECORD_BYTES = 500
HEADER_BYTES = 200


class Record(NamedTuple):
    """One Kafka message, unchanged. `timestamp_ms` is in milliseconds since 1970, UTC.

    `unreadable` is None, or the reason why the message cannot be read. Then only the place of the message is known.
    """

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]
    unreadable: str | None = None

    @property
    def place(self) -> str:
        """Topic, partition and offset in one string."""
        return f"{self.topic}/{self.partition}/{self.offset}"

    @property
    def nbytes(self) -> int:
        """Approximate bytes in memory."""
        headers = sum(HEADER_BYTES + len(name) + len(value or b"") for name, value in self.headers)
        return RECORD_BYTES + len(self.key or b"") + len(self.value or b"") + headers


class Gap(NamedTuple):
    """Offsets without records. Reading continues at `next_offset`.

    `lost` is true if retention deleted the records, or if their batch is damaged on the brokers' disks. It is false for
    control records and for records that compaction removed.
    """

    topic: str
    partition: int
    next_offset: int
    lost: bool = False


class Fields(NamedTuple):
    """Fields of a record before any check; None for a missing field."""

    image: bytes | None
    label: Label | bytes | None
    weight: float | bytes | None = None
    split: str | bytes | None = None
    id: bytes | None = None


class Sample(NamedTuple):
    """An image, as received and decoded. `pixels_HWC` is uint8 of the model's height, width and channels.

    `key` identifies the sample in its run. A memory chooses the samples that it keeps by a hash of this key. `image` is
    the encoded image, empty if there are only pixels. `timestamp_ms` is the event time, milliseconds since 1970, UTC;
    -1 if unknown. `group` is a hash (int64) of the identity that determines the split, so samples of one group are
    always in one split. `group` is 0 for training samples whose split was given and not drawn. `id` is the record's id,
    empty if it has none.
    """

    key: str
    label: Label
    pixels_HWC: np.ndarray
    image: bytes = b""
    timestamp_ms: int = -1
    weight: float = 1.0
    split: Split = Split.TRAIN
    group: int = 0
    id: bytes = b""


class Rejection(NamedTuple):
    """A record that cannot be used, and the reason. `stage` is `decode` or `learn`."""

    record: Record
    reason: Reason
    stage: str
    message: str


class RejectError(Exception):
    """Raised when a record cannot be used, with the reason and a message for its producer."""

    def __init__(self, reason: Reason, message: str):
        super().__init__(message)
        self.reason = reason
        self.message = message


class RetryLaterError(Exception):
    """Raised when a record cannot be read now because something outside is at fault. The record is read again later.

    The message says in one line what is at fault.
    """
