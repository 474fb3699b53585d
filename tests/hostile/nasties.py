"""Records of a hostile producer, each made to crash, stop, slow down, fill up or mislead the worker."""

import gzip
import zlib
from collections.abc import Iterator
from functools import cache
from random import Random
from typing import NamedTuple

import lz4.frame
import raw_batches
import zstandard
from feed import Headers, digits
from nasty_images import encoded, flipped, jpeg_of_scans, jpeg_that_claims, picture, png_that_claims
from raw_batches import Raw

MIB = 1024 * 1024
BOMB_BYTES = 256 * MIB
RARE = 10  # rounds between two of the costly ones
LABELS_A_ROUND = 5
NOW_MS = 0
TIMES_MS = (1, 1_700_000_000, 4_070_908_800_000, 253_402_300_800_000, 2**62)


class Nasty(NamedTuple):
    """A record that a producer library sends."""

    value: bytes | None
    headers: Headers
    key: bytes | None = b"key"
    timestamp_ms: int = NOW_MS


def prepare() -> None:
    """Make what is made once, which takes seconds."""
    _fixed_images()
    _bombs()


def records(round_: int, random: Random) -> Iterator[Nasty]:
    """The records of a round, in an order of their own."""
    image, label = digits()[round_ % 1000]
    labelled = [("label", label)]
    found = [Nasty(value, labelled) for value in [*_fixed_images(), *_damaged(image, random)]]
    found += [Nasty(image, [("label", name)]) for name in _labels(random)]
    found += [Nasty(image, [*labelled, ("weight", weight)]) for weight in WEIGHTS]
    found += [Nasty(image, [*labelled, ("split", split)]) for split in SPLITS]
    found += [Nasty(image, labelled, timestamp_ms=time_ms) for time_ms in TIMES_MS]
    found += [
        Nasty(None, labelled),
        Nasty(None, labelled, key=None),
        Nasty(None, [], key=b""),
        Nasty(b"", labelled),
        Nasty(image, []),
        Nasty(image, [*labelled, ("label", b"another")]),
        Nasty(image, [(f"name-{i}", b"value") for i in range(1000)] + labelled),
        Nasty(image, [("n" * 10_000, b""), *labelled]),
        Nasty(image, [("__connect.errors.topic", b"somewhere else"), *labelled]),
        Nasty(image, [*labelled, ("id", b"\xff" * 1000)]),
    ]
    if round_ % RARE == 0:
        found += [
            Nasty(image + random.randbytes(MIB), labelled),
            Nasty(image, [("large", bytes(MIB)), *labelled]),
            Nasty(image, labelled, key=bytes(MIB)),
            Nasty(b"\xff\xd8" + random.randbytes(15 * MIB), labelled),
        ]
    random.shuffle(found)
    yield from found


def batches(round_: int) -> list[bytes]:
    """The record batches of a round that no producer library sends."""
    image, label = digits()[round_ % 1000]
    headers: list[tuple[bytes, bytes | None]] = [(b"label", label)]
    good = Raw(image, headers)
    odd_name = raw_batches.payload([good, Raw(image, [(b"\xe9tat", b"x"), *headers]), good])
    one = raw_batches.payload([good])
    found = [
        raw_batches.batch(odd_name, 3),
        raw_batches.batch(one[:-3], 1),
        raw_batches.batch(b"\xff" * 20, 1),
        raw_batches.batch(one, 5),
    ]
    if round_ % RARE == 0:
        found += [raw_batches.batch(bomb, 1, codec) for codec, bomb in _bombs().items()]
    return found


WEIGHTS = (b"nan", b"inf", b"-inf", b"-1", b"1e308", b"1e-320", b"9" * 400, b"1_0", "\u0661".encode(), b"", b"\xff")
SPLITS = (b"test", b"validation", b"TRAIN", b"holdout", b"", b"\xff\xfe", b"train" * 1000)


def _labels(random: Random) -> list[bytes]:
    return [
        b"",
        b" ",
        b"\0",
        b"\0\0\0\7",
        b"\xff\xfe",
        b"\x07" * 256,
        b"x" * 257,
        "cat\u202e".encode(),
        "e\u0301".encode(),
        "\u00e9".encode(),
        b"\xed\xa0\x80",
        # New ones without end, each as long as may be.
        *(random.randbytes(128).hex().encode() for _ in range(LABELS_A_ROUND)),
    ]


def _damaged(image: bytes, random: Random) -> list[bytes]:
    jpeg = encoded("JPEG")
    return [
        *(flipped(whole, random.randrange(8 * len(whole))) for whole in (image, jpeg)),
        image[: random.randrange(len(image))],
        random.randbytes(100),
    ]


@cache
def _fixed_images() -> list[bytes]:
    whole = bytes(9 * 8 * 3)
    return [
        b"x",
        b"\xff\xd8",
        b"\x89PNG\r\n\x1a\n",
        b"<svg xmlns='http://www.w3.org/2000/svg' width='99999' height='99999'/>",
        *(encoded(form) for form in ("GIF", "WEBP", "TIFF", "BMP")),
        encoded("PNG", save_all=True, append_images=[picture()] * 20),
        jpeg_of_scans(500),
        jpeg_that_claims(65_000, 65_000),
        *(png_that_claims(*size, bytes(100)) for size in ((50_000_000, 1), (1, 50_000_000), (7071, 7071), (0, 0))),
        png_that_claims(4096, 4096, bytes(40 * MIB)),
        png_that_claims(8, 8, bytes(64 * MIB)),
        png_that_claims(8, 8, whole, (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(32 * MIB)))),
        png_that_claims(8, 8, whole, (b"iCCP", b"profile\0\0" + zlib.compress(bytes(32 * MIB)))),
        png_that_claims(8, 8, whole, *[(b"tEXt", b"a\0b")] * 20_000),
    ]


@cache
def _bombs() -> dict[str, bytes]:
    """The payload of a batch for each codec: one record, which brokers take and which is small until it is read."""
    record = raw_batches.payload([Raw(bytes(BOMB_BYTES))])
    zstd = zstandard.ZstdCompressor().compress(record)
    return {"zstd": zstd, "gzip": gzip.compress(record, 1), "lz4": lz4.frame.compress(record)}
