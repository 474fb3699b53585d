"""Records as they were read, samples as they are learned."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from stream_learner.contract.vocabulary import Label, Reason, Split

# What a record and a header take in memory beside their bytes, roughly.
RECORD_BYTES = 500
HEADER_BYTES = 200


class Record(NamedTuple):
    """One Kafka message, to the byte. `timestamp_ms` is milliseconds since 1970, UTC. `unreadable` says why only its
    offset is known; None for a record that was read."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]
    unreadable: str | None = None

    @property
    def nbytes(self) -> int:
        """Bytes in memory, roughly."""
        headers = sum(HEADER_BYTES + len(name) + len(value or b"") for name, value in self.headers)
        return RECORD_BYTES + len(self.key or b"") + len(self.value or b"") + headers


class Gap(NamedTuple):
    """Offsets that give no record: reading continues at `next_offset`. They never held one (control records,
    compaction), or it is `lost`: it fell off retention, or its batch is damaged on the brokers' disks."""

    topic: str
    partition: int
    next_offset: int
    lost: bool = False


class Fields(NamedTuple):
    """What a record says, before any of it is checked. None: it does not say."""

    image: bytes | None
    label: Label | bytes | None
    weight: float | bytes | None = None
    split: str | bytes | None = None
    id: bytes | None = None


class Sample(NamedTuple):
    """An image, as received and decoded. `pixels_HWC` is uint8 of the model's height, width and channels.

    `group` is a hash (int64) of what the split is drawn from, shared by samples that are always in one split; 0 for
    records that say `train` themselves.
    """

    record: Record
    image: bytes
    pixels_HWC: np.ndarray
    label: Label
    weight: float
    split: Split
    group: int


class Rejection(NamedTuple):
    """A record that cannot be used, and why. `stage` is `decode` or `learn`."""

    record: Record
    reason: Reason
    stage: str
    message: str


class RejectError(Exception):
    """Raised where a record proves unusable; carries the reason and a message for its producer."""

    def __init__(self, reason: Reason, message: str):
        super().__init__(message)
        self.reason = reason
        self.message = message


class RetryLaterError(Exception):
    """Raised when a record cannot be read now because something outside is at fault; it is read again later.

    The message says in one line what is at fault.
    """
