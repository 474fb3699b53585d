"""Encoded images and the records that carry them."""

import io

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from stream_learner.records.record import Record

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


def record(value: bytes | None, offset: int = 0, partition: int = 0, key: bytes | None = None, **headers) -> Record:
    """A record of the plain form; headers as text or bytes."""
    encoded = [(name, text.encode() if isinstance(text, str) else text) for name, text in headers.items()]
    return Record("images", partition, offset, 0, key, value, encoded)
