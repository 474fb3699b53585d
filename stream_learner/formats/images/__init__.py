"""Decode images to uint8 pixels of the model's size."""

import contextlib
import io
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from PIL import Image

from stream_learner.formats.images import exif, jpegs, pngs
from stream_learner.formats.images.bounds import MAX_SIDE_PX, check_size, undecodable
from stream_learner.formats.record import RejectError

# An encoded image is stored unchanged if it is at most this number of bytes longer than its pixels. The tables of a
# JPEG take about 600 bytes.
HEADER_BYTES = 1024
STARTS = (jpegs.START, pngs.START)
"""First bytes of the image formats that are decoded."""
PILLOW_MODE = {1: "L", 3: "RGB"}


class Header(NamedTuple):
    """Size of an image as a viewer shows it, in pixels, and whether the image is grey."""

    height: int
    width: int
    grey: bool


def decode(image: bytes, height: int, width: int, channels: int, max_pixels: int) -> np.ndarray:
    """Decode a JPEG or PNG to uint8 `[height, width, channels]`.

    docs/topics.md describes the treatment of each kind of image. An image of another size is resized with Pillow's
    bilinear filter, which averages pixels if the image shrinks. Raises RejectError (`undecodable_image`,
    `oversized_image`).
    """
    parsed = _parse(image, max_pixels)
    try:
        if isinstance(parsed, jpegs.Jpeg):
            pixels_HWC = jpegs.pixels(parsed, channels)
            if parsed.orientation == 1 and pixels_HWC.shape == (height, width, channels):
                return pixels_HWC
            picture = pngs.from_pixels(pixels_HWC)
        elif parsed.plain and parsed.shape == (height, width, channels):
            return pngs.samples(parsed)
        else:
            picture = pngs.picture(parsed)
    except (ValueError, OSError, SyntaxError) as error:
        raise undecodable(f"the image is damaged or cut off: {error}") from None
    return _fitted(exif.upright(picture, parsed.orientation), height, width, channels)


def batch(images: Iterable[bytes | np.ndarray], height: int, width: int, channels: int, max_pixels: int) -> np.ndarray:
    """Convert images to uint8 `[N, height, width, channels]`.

    Each image is encoded, or uint8 pixels `[H, W, 1 or 3]`. Pixels are resized and converted as in `decode`. Raises
    RejectError for an image that cannot be decoded, ValueError for an array of another type or shape.
    """
    shape = height, width, channels
    fitted = [
        decode(image, *shape, max_pixels) if isinstance(image, bytes) else _fitted(_picture(image), *shape)
        for image in images
    ]
    return np.stack(fitted) if fitted else np.empty((0, *shape), np.uint8)


def fit(pixels: np.ndarray, height: int, width: int, channels: int, max_pixels: int) -> np.ndarray:
    """Convert raw pixels to uint8 `[height, width, channels]`, as `decode` does with the pixels of an image.

    `pixels` are uint8 [H, W], [H, W, 1 or 3], or flat in the order of [height, width, channels]. Raises RejectError.
    """
    shape = height, width, channels
    if pixels.dtype == np.uint8 and pixels.shape in (shape, (height * width * channels,)):
        return pixels.reshape(shape)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim == 3:
        check_size(pixels.shape[0], pixels.shape[1], max_pixels)
    try:
        return _fitted(_picture(pixels), height, width, channels)
    except ValueError as error:
        raise undecodable(f"{error}, or flat with the model's size, {height * width * channels} bytes") from None


def _picture(pixels_HWC: np.ndarray) -> Image.Image:
    if pixels_HWC.dtype != np.uint8 or pixels_HWC.ndim != 3 or pixels_HWC.shape[2] not in PILLOW_MODE:
        raise ValueError(
            f"an image is {pixels_HWC.dtype} {list(pixels_HWC.shape)}; give encoded bytes, or uint8 pixels [height, "
            "width, 1 or 3]"
        )
    return pngs.from_pixels(pixels_HWC)


def _fitted(picture: Image.Image, height: int, width: int, channels: int) -> np.ndarray:
    if picture.mode != PILLOW_MODE[channels]:
        picture = picture.convert(PILLOW_MODE[channels])
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return np.array(picture).reshape(height, width, channels)


def header(image: bytes, max_pixels: int = MAX_SIDE_PX**2) -> Header:
    """Return an image's size and whether it is grey, without decoding pixels. Raises RejectError."""
    parsed = _parse(image, max_pixels)
    grey = parsed.grey if isinstance(parsed, pngs.Png) else parsed.components == 1
    height, width = parsed.height, parsed.width
    return Header(width, height, grey) if parsed.orientation in exif.ON_ITS_SIDE else Header(height, width, grey)


def stored(image: bytes, pixels_HWC: np.ndarray) -> bytes:
    """Return a short encoding of an image that was decoded to `pixels_HWC`. The encoding decodes to the same pixels.

    Return the image itself on three conditions: it has the size of the pixels, `decode` accepts it with this size as
    `max_pixels`, and it is at most HEADER_BYTES longer than the pixels. Otherwise return a PNG of the pixels.
    """
    height, width, _ = pixels_HWC.shape
    if len(image) <= pixels_HWC.nbytes + HEADER_BYTES:
        with contextlib.suppress(RejectError):  # raised for pixels of 16 bits, which count twice
            if header(image, max_pixels=height * width)[:2] == (height, width):
                return image
    return png(pixels_HWC)


def png(pixels_HWC: np.ndarray) -> bytes:
    """Encode uint8 pixels as a PNG, without loss."""
    file = io.BytesIO()
    pngs.from_pixels(pixels_HWC).save(file, "PNG")
    return file.getvalue()


def _parse(image: bytes, max_pixels: int) -> jpegs.Jpeg | pngs.Png:
    if image.startswith(jpegs.START):
        return jpegs.parse(image, max_pixels)
    if image.startswith(pngs.START):
        return pngs.parse(image, max_pixels)
    raise undecodable("not a JPEG or PNG")
