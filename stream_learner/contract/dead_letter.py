"""Dead letters: records of the input that could not be used, with the reason."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stream_learner.contract.manifest import digest

# The prefix and names of Kafka Connect's dead letter queue (KIP-298), so that its tools read these records.
PREFIX = "__connect.errors."
NAMES = ("topic", "partition", "offset", "stage", "exception.class.name", "exception.message")
# Only for a row of a message.
ROW = PREFIX + "row"
# Only for a message of which some rows were read before it was rejected as a whole.
ROWS_READ = PREFIX + "rows.read"
MAX_MESSAGE_BYTES = 1000
# Maximum number of bytes that are kept of the key if the record is too large to copy.
MAX_KEY_BYTES = 1000
# Largest number of bytes that Kafka adds to a header's name and value.
HEADER_BYTES = 10

Headers = Sequence[tuple[str, bytes | None]]


@dataclass(frozen=True)
class DeadLetter:
    """A record of the input that could not be used, its place and the reason.

    If the record was too large to copy, `key` is the beginning of its key, `value` is None and `headers` are empty.
    """

    topic: str
    partition: int
    offset: int
    stage: str
    """`decode` or `learn`."""
    reason: str
    """One of `Reason`. Later versions may have others."""
    message: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    digest: str | None = None
    """Digest of the value of a record that was too large to copy; None for other records."""
    row: int | None = None
    """Index of the record in a message that holds many; None for a whole message. `value` is a message with only this
    record."""
    rows_read: int = 0
    """Number of the message's first rows that were learned or rejected before the whole message was rejected."""

    @property
    def truncated(self) -> bool:
        """Whether the record was too large to copy."""
        return self.digest is not None

    def encode(self, max_bytes: int) -> tuple[bytes | None, bytes | None, Headers]:
        """Return the dead letter's key, value and headers in Kafka.

        `max_bytes` limits the bytes that are copied of the input record. If the record is larger, only the beginning of
        its key is copied. The record's headers with Kafka Connect's prefix are left out, because readers would mistake
        them for the dead letter's own headers.
        """
        key, value, headers, value_digest = self.key, self.value, self.headers, self.digest
        headers = [(name, content) for name, content in headers if not name.startswith(PREFIX)]
        size = sum(len(name.encode()) + len(content or b"") + HEADER_BYTES for name, content in headers)
        if size + len(key or b"") + len(value or b"") > max_bytes:
            key, value, headers, value_digest = key and key[:MAX_KEY_BYTES], None, [], digest(value or b"")
        reasons = (self.topic, str(self.partition), str(self.offset), self.stage, self.reason, self.message)
        headers += [(PREFIX + name, _cut(text)) for name, text in zip(NAMES, reasons, strict=True)]
        if self.row is not None:
            headers.append((ROW, str(self.row).encode()))
        if self.rows_read:
            headers.append((ROWS_READ, str(self.rows_read).encode()))
        if value_digest:
            headers += [("truncated", b"true"), ("digest", value_digest.encode())]
        return key, value, headers

    @classmethod
    def parse(cls, key: bytes | None, value: bytes | None, headers: Headers) -> "DeadLetter":
        """Decode a record of the dead-letter topic. Raises ValueError when it is not a dead letter.

        All headers before the first header with Kafka Connect's prefix come from the input record.
        """
        end = next((i for i, (name, _) in enumerate(headers) if name.startswith(PREFIX)), len(headers))
        reasons = dict(headers[end:])
        topic, partition, offset, stage, reason, message = (_text(reasons, PREFIX + name) for name in NAMES)
        return cls(
            topic,
            _number(partition),
            _number(offset),
            stage,
            reason,
            message,
            key,
            value,
            headers[:end],
            _text(reasons, "digest") if "truncated" in reasons else None,
            _number(_text(reasons, ROW)) if ROW in reasons else None,
            _number(_text(reasons, ROWS_READ)) if ROWS_READ in reasons else 0,
        )


def _cut(text: str) -> bytes:
    """Encode text. Cut it after at most MAX_MESSAGE_BYTES, between two characters."""
    return text.encode(errors="replace")[:MAX_MESSAGE_BYTES].decode(errors="ignore").encode()


def _text(headers: Mapping[str, bytes | None], name: str) -> str:
    value = headers.get(name)
    if value is None:
        raise ValueError(f"not a dead letter: it has no header {name}")
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise ValueError(f"not a dead letter: the header {name} is not UTF-8 text") from None


def _number(text: str) -> int:
    if not re.fullmatch("[0-9]{1,19}", text):
        raise ValueError(f"not a dead letter: {text!r:.40} is not a partition or offset")
    return int(text)
