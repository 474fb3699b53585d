"""Encoded images and the records that carry them."""

import io
import struct
import zlib

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from stream_learner.formats.record import Record

DIGITS_NHW = (load_digits(return_X_y=True)[0].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)


def encode(picture: Image.Image, format: str, **options) -> bytes:  # noqa: A002 (Pillow's name for it)
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def digit(index: int) -> bytes:
    """One of scikit-learn's handwritten digits as PNG."""
    return encode(Image.fromarray(DIGITS_NHW[index]), "PNG")


def gradient(height: int, width: int) -> Image.Image:
    """Red grows to the right, green downwards: smooth, so that every codec and filter keeps it."""
    pixels_HWC = np.full((height, width, 3), 60, np.uint8)
    pixels_HWC[:, :, 0] = np.linspace(0, 255, width)
    pixels_HWC[:, :, 1] = np.linspace(0, 255, height)[:, None]
    return Image.fromarray(pixels_HWC)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(samples_HWC: np.ndarray, *chunks: bytes, palette: bool = False) -> bytes:
    """A PNG of 8 or 16 bits a sample, with further chunks before its pixels."""
    height, width, channels = samples_HWC.shape
    bytes_ = samples_HWC.astype(samples_HWC.dtype.newbyteorder(">")).reshape(height, -1).view(np.uint8)
    rows = np.pad(bytes_, ((0, 0), (1, 0))).tobytes()  # each row begins with its filter: none
    color_type = 3 if palette else {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = png_header(height, width, samples_HWC.itemsize * 8, color_type)
    return b"".join((header, *chunks, png_chunk(b"IDAT", zlib.compress(rows)), PNG_END))


def png_header(height: int, width: int, bits: int, color_type: int) -> bytes:
    sizes = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", sizes)


PNG_END = png_chunk(b"IEND", b"")


def jpeg_segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def exif(orientation: int, order: str = ">") -> bytes:
    """TIFF with one entry, as `eXIf` holds it; a JPEG's segment has `Exif` and two zeros before it."""
    start = b"MM\0*" if order == ">" else b"II*\0"
    return start + struct.pack(order + "IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def record(value: bytes | None, offset: int = 0, partition: int = 0, key: bytes | None = None, **headers) -> Record:
    """A record of the plain form; headers as text or bytes."""
    encoded = [(name, text.encode() if isinstance(text, str) else text) for name, text in headers.items()]
    return Record("images", partition, offset, 0, key, value, encoded)
