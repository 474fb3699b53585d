"""Images made to be expensive: false sizes, endless scans and chunks, decompression bombs."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

SIDE = 32


def picture() -> Image.Image:
    """Noise, which nothing compresses."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8))


def encoded(form: str, **options) -> bytes:
    file = io.BytesIO()
    picture().save(file, form, **options)
    return file.getvalue()


def jpeg_that_claims(height: int, width: int) -> bytes:
    jpeg = encoded("JPEG")
    frame = jpeg.index(b"\xff\xc0")
    return jpeg[: frame + 5] + struct.pack(">HH", height, width) + jpeg[frame + 9 :]


def jpeg_of_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    jpeg = encoded("JPEG", progressive=True)
    last = jpeg.rindex(b"\xff\xda")
    return jpeg[:last] + jpeg[last:-2] * count + jpeg[-2:]


def png_that_claims(height: int, width: int, pixels: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of 8 bits, RGB, with what it has as pixels, and further chunks before them."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    every = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(pixels, 9)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in every]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def flipped(image: bytes, bit: int) -> bytes:
    """The image with one bit changed."""
    damaged = bytearray(image)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)
