"""Types of the input: records as read from Kafka, and samples as learned."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from stream_learner.contract.documents import Count
from stream_learner.contract.spans import Offset, Partition, Topic
from stream_learner.contract.vocabulary import Label, Reason, Split

# Approximate memory of a record and of a header, without their contents.
RECORD_BYTES = 500
HEADER_BYTES = 200
# Largest key of a message that is kept for its single rows, in bytes. Otherwise a message with a long key and many bad
# rows would make dead letters of many times its size.
MAX_ROW_KEY_BYTES = 1000
# Largest number of rows in a message. Each row costs memory and time, even if it has no bytes.
MAX_ROWS = 65_536


class Place(NamedTuple):
    """Place of a record: topic, partition, offset, and its row if the message holds many records."""

    topic: Topic
    partition: Partition
    offset: Offset
    row: Count | None = None


class Record(NamedTuple):
    """One Kafka message, unchanged. `timestamp_ms` is in milliseconds since 1970, UTC.

    `unreadable` is None, or the reason why the message cannot be read. Then only the place of the message is known.
    `row` is the index of a record in a message that holds many, and `rows` are the records of this message. Both are
    None for a whole message. A row has no `value` until `encoded` makes a message with only this row.
    """

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]
    unreadable: str | None = None
    row: int | None = None
    rows: Any = None  # Rows or None, which the type does not say, because msgspec cannot check it

    def at_row(self, row: int, rows: "Rows") -> "Record":
        """Return a row of this message. It has no headers, because those of a message belong to no single row."""
        key = self.key and self.key[:MAX_ROW_KEY_BYTES]
        return Record(self.topic, self.partition, self.offset, self.timestamp_ms, key, None, (), None, row, rows)

    def encoded(self) -> "Record":
        """Return a message with only this row. Return any other record itself."""
        return self._replace(value=self.rows.encode(self.rows.fields[self.row]), rows=None) if self.rows else self

    @property
    def place(self) -> str:
        """Topic, partition and offset in one string, and the row if it has one."""
        return f"{self.topic}/{self.partition}/{self.offset}" + ("" if self.row is None else f"/{self.row}")

    @property
    def at(self) -> Place:
        return Place(self.topic, self.partition, self.offset, self.row)

    @property
    def nbytes(self) -> int:
        """Approximate bytes in memory."""
        content = self.rows.fields[self.row].image if self.rows else self.value
        size = RECORD_BYTES + len(self.key or b"")
        size += content.nbytes if isinstance(content, np.ndarray) else len(content or b"")
        for name, value in self.headers:
            size += HEADER_BYTES + len(name) + len(value or b"")
        return size


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
    """Fields of a record before any check; None for a missing field.

    `image` is encoded, or pixels: uint8 [H, W], [H, W, 1 or 3], or flat in the order of the model's [H, W, C].
    `timestamp_ms` is the event time, in milliseconds since 1970, UTC; None for the time of the message.
    """

    image: bytes | np.ndarray | None
    label: Label | bytes | None
    weight: float | bytes | None = None
    split: str | bytes | None = None
    id: bytes | None = None
    timestamp_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Rows:
    """The records in a message that holds many, an *envelope*. Their order in `fields` must always be the same."""

    fields: Sequence[Fields]
    encode: Callable[[Fields], bytes]
    """Returns a message that holds a single row. It is the value of the row's dead letter."""


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
    """A record that cannot be used, and the reason. `stage` is `decode` or `learn`.

    `rows_read` rows of the message were learned or rejected before it was rejected as a whole.
    """

    record: Record
    reason: Reason
    stage: str
    message: str
    rows_read: int = 0


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
