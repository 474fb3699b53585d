"""JSON documents from outside. Their size is checked before they are parsed, and types check their values."""

from datetime import datetime, timedelta
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

# Size limit of the topics that hold manifests and windows.
MAX_BYTES = 4 * 1024 * 1024

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Sequence = Annotated[int, Meta(ge=1, le=2**63 - 1)]
MAX_EPOCH = 2**31 - 1
Epoch = Annotated[int, Meta(ge=1, le=MAX_EPOCH)]
Text = Annotated[str, Meta(max_length=4096)]
# In Python, a plain $ also matches before a final newline.
END = r"$(?!\n)"
RunId = Annotated[str, Meta(pattern="^[a-zA-Z0-9._-]{1,200}" + END, max_length=200)]
Digest = Annotated[str, Meta(pattern="^sha256:[0-9a-f]{64}" + END, max_length=71)]
Time = Annotated[str, Meta(max_length=40)]
"""ISO 8601, in UTC."""

T = TypeVar("T")


def decode(data: bytes, kind: type[T], max_bytes: int = MAX_BYTES) -> T:
    """Decode JSON. Raises ValueError when it is too large, nested too deeply, or not of this type."""
    if len(data) > max_bytes:
        raise ValueError(f"{len(data)} bytes long; at most {max_bytes} are read")
    try:
        return msgspec.json.decode(data, type=kind)
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None


def time_text(moment: datetime, timespec: str = "milliseconds") -> str:
    """Return a time in UTC as text for a document."""
    return moment.isoformat(timespec=timespec).replace("+00:00", "Z")


def check_time(text: str) -> None:
    """Raise ValueError when the text is not a time in UTC."""
    try:
        # `fromisoformat` takes some other characters too, such as the escape character of terminals.
        is_text = text.isascii() and text.isprintable()
        in_utc = is_text and datetime.fromisoformat(text).utcoffset() == timedelta(0)
    except ValueError:
        in_utc = False
    if not in_utc:
        raise ValueError(f"{text!r} is not a time in UTC")
