"""Acknowledgements: the release that each follower uses."""

from typing import Annotated

import msgspec
from msgspec import Meta

from stream_learner.contract import documents
from stream_learner.contract.documents import END, Epoch, RunId, Sequence, Text, Time

ACK_SCHEMA_VERSION = 1
MAX_ACK_BYTES = 16 * 1024


class Ack(msgspec.Struct, frozen=True, kw_only=True):
    """A record of the acks topic. The key is the follower's name. A null value means that the follower uses none."""

    schema_version: int = ACK_SCHEMA_VERSION
    program: Text
    """Name and version of the program that follows."""
    run_id: RunId
    name: Annotated[str, Meta(pattern="^[a-zA-Z0-9._-]{1,200}" + END, max_length=200)]
    """Name of the follower."""
    host: Text
    """Name of the follower's host."""
    epoch: Epoch
    """Epoch and sequence of the release in use."""
    sequence: Sequence
    since: Time
    """Time when the follower put the release in use."""

    @property
    def key(self) -> bytes:
        """Return the record's key."""
        return self.name.encode()


def decode_ack(key: bytes | None, value: bytes) -> Ack:
    """Decode a record of the acks topic.

    Raises ValueError when the record is not an acknowledgement, is too large, has an unknown schema version or another
    key.
    """
    try:
        ack = documents.decode(value, Ack, MAX_ACK_BYTES)
        documents.check_time(ack.since)
    except ValueError as error:
        raise ValueError(f"not an acknowledgement: {error}") from None
    if ack.schema_version != ACK_SCHEMA_VERSION:
        raise ValueError(
            f"acknowledgement schema version {ack.schema_version}; this program reads {ACK_SCHEMA_VERSION}"
        )
    if ack.key != key:
        raise ValueError("not an acknowledgement: the key is not the name")
    return ack
