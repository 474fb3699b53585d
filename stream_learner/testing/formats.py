"""The check of record formats."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any

import numpy as np

from stream_learner.formats.decoder import Decoder
from stream_learner.formats.format import Format
from stream_learner.formats.record import Fields, Record, RejectError, RetryLaterError, Rows, Sample
from stream_learner.registry import FORMATS
from stream_learner.testing.checking import Checking, registered
from stream_learner.testing.small_run import small_settings

MIB = 1024 * 1024


def check_format(
    kind: type[Format],
    settings: Mapping[str, Any] | None = None,
    *,
    good: Sequence[Record],
    longest_s: float = 5.0,
) -> None:
    """Check a record format, given by its class, its settings, and records that it can read.

    Each record of `good` becomes a sample, with the same fields each time. If it has rows, each row becomes a sample,
    and a message that `Rows.encode` makes of a row gives the same row again. Hundreds of damaged, huge and random
    records are read or raise RejectError. Some of these records are made from `good`. RetryLaterError is not allowed,
    because the services that the format needs have answered for `good`. No read may take longer than `longest_s`.
    Raises AssertionError.
    """
    check = Checking(kind)
    check.that(isinstance(kind, type) and issubclass(kind, Format), "a format is a class derived from Format")
    check.that(good, "give at least one record that the format can read, as `good`")
    with registered(FORMATS, kind) as name:
        chosen = {"topics": ["images"], "format": name, "format_settings": dict(settings or {})}
        run = small_settings(input=chosen, split={"validation": 0, "test": 0})
        decoder = check.call("building it", lambda: Decoder.from_settings(run))
        another = check.call("building it again", lambda: Decoder.from_settings(run))
    for number, record in enumerate(good):
        what = f"good record {number}"
        fields = _read(check, decoder.format, record, what, longest_s)
        check.that(isinstance(fields, Fields | Rows), f"{what} is not read: {fields}")
        for other in (decoder.format, another.format):
            again = _read(check, other, record, what, longest_s)
            same = _comparable(again) == _comparable(fields)
            check.that(same, f"{what} gives other fields each time; a resumed run reads the record again")
        if isinstance(fields, Rows):
            for row in fields.fields:
                value = check.call(f"encoding a row of {what}", lambda rows=fields, row=row: rows.encode(row))
                one = _read(check, decoder.format, record._replace(value=value), f"a row of {what}", longest_s)
                check.that(_comparable(one) == _comparable(row), f"a row of {what} is another row when encoded")
        for decoded in check.call(f"decoding {what}", lambda one=record: _decoded(decoder, one)):
            check.that(isinstance(decoded, Sample), f"{what} is refused as a sample: {decoded}")
    for what, record in _hostile(good):
        found = _read(check, decoder.format, record, what, longest_s)
        check.that(
            not isinstance(found, RetryLaterError),
            f"{what} raises RetryLaterError: {found}; no restart would get past that record, so raise RejectError",
        )
        if isinstance(found, Fields | Rows):
            for row in found.fields if isinstance(found, Rows) else [found]:
                known = isinstance(row.image, bytes | np.ndarray | None)
                check.that(known, f"{what} gives an image of type {type(row.image).__name__}, not bytes")
            check.call(f"checking the fields of {what}", lambda one=record: _decoded(decoder, one))


Outcome = Fields | Rows | RejectError | RetryLaterError


def _read(check: Checking, format_: Format, record: Record, what: str, longest_s: float) -> Outcome:
    began = time.monotonic()
    found = check.call(f"read() of {what}", lambda: _outcome(format_, record))
    took_s = time.monotonic() - began
    check.that(
        took_s <= longest_s, f"read() of {what} took {took_s:.1f} s, more than {longest_s} s; limit what it does"
    )
    check.that(isinstance(found, Outcome), f"read() of {what} returns {type(found).__name__}, not Fields")
    return found


def _outcome(format_: Format, record: Record) -> Outcome:
    try:
        return format_.read(record)
    except (RejectError, RetryLaterError) as error:
        return error


def _decoded(decoder: Decoder, record: Record) -> list[Sample | RejectError | None]:
    """Return the sample of a record, or of each row of a message."""
    try:
        found = decoder(record)
    except RejectError as reject:
        return [reject]
    if isinstance(found, Rows) and isinstance(record, Record):
        return [one for row in range(len(found.fields)) for one in _decoded(decoder, record.at_row(row, found))]
    assert not isinstance(found, Rows)
    return [found]


def _comparable(found: Outcome) -> list[Any]:
    """Return what was read as values that can be compared with `==`."""
    if isinstance(found, Rows):
        return [value for fields in found.fields for value in map(_plain, fields)]
    return [*map(_plain, found)] if isinstance(found, Fields) else [found]


def _plain(value: Any) -> Any:
    return (value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value


def _hostile(good: Sequence[Record]) -> Iterator[tuple[str, Record]]:
    """Yield damaged, huge and random records, each with its description. Every call yields the same records."""
    random = Random(0)
    for number, record in enumerate(good):
        of = f"good record {number}"
        for what, value in _damaged(record.value or b"", random):
            yield f"{of}, its value {what}", record._replace(value=value)
        for what, headers in _headers(record.headers):
            yield f"{of}, {what}", record._replace(headers=headers)
        for key in (None, b"", b"\xff" * 1000):
            yield f"{of} with the key {key!r:.20}", record._replace(key=key)
        for timestamp_ms in (-1, 0, 2**62):
            yield f"{of} with the timestamp {timestamp_ms}", record._replace(timestamp_ms=timestamp_ms)
    first = good[0]
    for what, value in _values(random):
        yield f"a record whose value is {what}", first._replace(value=value)
        yield f"a record whose value is {what}, without headers", first._replace(value=value, headers=())


def _values(random: Random) -> Iterator[tuple[str, bytes | None]]:
    yield "None", None
    yield "b''", b""
    for count in (1, 4, 16, 1000, 8 * MIB):
        yield f"{count} random bytes", random.randbytes(count)
    for byte in (b"\0", b"\xff", b" ", b"9", b"[", b"<", b"%", b"("):
        yield f"{byte!r} 100,000 times", byte * 100_000
    for part in (b'{"a":', b"[{", b'"\\u', b"<a>", b"\x0a\x7f", b"a,"):
        yield f"{part!r} 50,000 times", part * 50_000
    for text in (b"null", b"true", b"[]", b"{}", b'""', b"0", b"1e999", b"-1", b"NaN", b"\xef\xbb\xbf{}", b"../../x"):
        yield repr(text), text


def _damaged(value: bytes, random: Random) -> Iterator[tuple[str, bytes]]:
    for end in sorted({0, 1, 2, 3, 4, 5, 8, 16, len(value) // 2, max(len(value) - 1, 0)}):
        yield f"cut to {end} bytes", value[:end]
    for start in (1, 5):
        yield f"without its first {start} bytes", value[start:]
    yield "twice", value + value
    yield "followed by 1 MiB of zeros", value + bytes(MIB)
    for _ in range(50 if value else 0):
        place, bit = random.randrange(len(value)), random.randrange(8)
        yield f"with bit {bit} of byte {place} flipped", _with(value, place, bytes([value[place] ^ 1 << bit]))
    for place in range(min(len(value), 16)):  # binary formats have lengths here
        for huge in (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0"):
            yield f"with {huge!r} at byte {place}", _with(value, place, huge)
    yield from _json_variants(value)


def _with(value: bytes, place: int, part: bytes) -> bytes:
    return value[:place] + part + value[place + len(part) :]


def _json_variants(value: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield variants of a JSON object: without a member, or with a value of another type.

    Yield nothing if `value` is not a JSON object.
    """
    try:
        document = json.loads(value)
    except (ValueError, RecursionError):
        return
    if not isinstance(document, dict):
        return
    odd = (None, True, -1, 2**80, 1e308, "", "\u0661", "\ud800", "x" * MIB, [], {}, [[]], {"a": None})
    for name in document:
        yield f"without {name!r}", json.dumps({n: v for n, v in document.items() if n != name}).encode()
        for part in odd:
            yield f"with {name!r} as {part!r:.20}", json.dumps(document | {name: part}).encode()


def _headers(headers: Sequence[tuple[str, bytes | None]]) -> Iterator[tuple[str, Sequence[tuple[str, bytes | None]]]]:
    yield "without headers", ()
    yield "with 1,000 more headers", [*headers, *((f"name-{i}", b"value") for i in range(1000))]
    yield "with a header name of 10,000 characters", [*headers, ("n" * 10_000, b"")]
    for name, _ in headers:
        rest = [pair for pair in headers if pair[0] != name]
        yield f"without the header {name!r}", rest
        for part in (None, b"", b"\xff\xfe", b"\0", b"nan", b"-1", b"9" * 5000, b"x" * MIB, "\u0661".encode()):
            yield f"with the header {name!r} as {part!r:.20}", [*rest, (name, part)]
