"""A person's choice of releases: which one followers must use, and which ones they must not use."""

from typing import Literal

import msgspec

from stream_learner.contract import documents
from stream_learner.contract.documents import Digest, Epoch, RunId, Sequence, Text, Time

PIN_SCHEMA_VERSION = 1
MAX_PIN_BYTES = 16 * 1024


class Chosen(msgspec.Struct, frozen=True):
    """A release: its epoch, the sequence of its checkpoint, and the digest of its weights.

    The digest distinguishes it from a release with the same epoch and sequence, if all topics were created again.
    """

    epoch: Epoch
    sequence: Sequence
    digest: Digest


class Pin(msgspec.Struct, frozen=True, kw_only=True):
    """A record of the pins topic.

    The key is the run id. If `action` is `withdraw`, the key is `withdrawn/<epoch>/<sequence>`.
    """

    schema_version: int = PIN_SCHEMA_VERSION
    program: Text
    """Name and version of the program that wrote this record."""
    run_id: RunId
    action: Literal["pin", "unpin", "withdraw"]
    """`pin`: followers use `release` until the next `unpin` or `pin`, even if there are newer releases. `unpin`:
    followers use the newest release. `withdraw`: followers never use `release`, even if it is pinned."""
    release: Chosen | None
    """The release; None if `action` is `unpin`."""
    created_at: Time
    """Readers ignore a `pin` or `unpin` that is older than another one that they have read."""

    @property
    def key(self) -> bytes:
        """Return the record's key."""
        if self.action == "withdraw" and self.release:
            return f"withdrawn/{self.release.epoch}/{self.release.sequence}".encode()
        return self.run_id.encode()


def decode_pin(key: bytes | None, value: bytes | None) -> Pin:
    """Decode a record of the pins topic.

    Raises ValueError when the record is not a pin, is too large, has an unknown schema version or another key.
    """
    try:
        pin = documents.decode(value or b"", Pin, MAX_PIN_BYTES)
        documents.check_time(pin.created_at)
    except ValueError as error:
        raise ValueError(f"not a pin: {error}") from None
    if pin.schema_version != PIN_SCHEMA_VERSION:
        raise ValueError(f"pin schema version {pin.schema_version}; this program reads {PIN_SCHEMA_VERSION}")
    if (pin.release is None) != (pin.action == "unpin"):
        raise ValueError(f"not a pin: `release` does not fit the action {pin.action}")
    if pin.key != key:
        raise ValueError("not a pin: the key does not fit the document")
    return pin
