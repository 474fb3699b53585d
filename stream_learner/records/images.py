"""Encoded image to uint8 pixels of the model's size."""

import io

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from stream_learner.records.record import Reason, RejectError

JPEG_START = b"\xff\xd8"
# Of a JPEG: about 600 bytes of tables.
HEADER_BYTES = 1024
PILLOW_MODE = {1: "L", 3: "RGB"}
# Our own bound is checked on the header, before any pixel is decoded.
Image.MAX_IMAGE_PIXELS = None


def decode(image: bytes, height: int, width: int, channels: int, max_pixels: int) -> np.ndarray:
    """Decodes a JPEG or PNG of any size, grey or colour, to uint8 `[height, width, channels]`.

    Another size is brought to the model's by Pillow's bilinear filter, which averages when it shrinks; transparency
    is dropped. Raises RejectError (`undecodable_image`, `oversized_image`).
    """
    try:
        pixels = _decode_jpeg(image, channels, max_pixels) if image[:2] == JPEG_START else None
        if pixels is None or pixels.shape[:2] != (height, width):
            picture = _open(image, max_pixels) if pixels is None else _picture(pixels)
            picture = picture.convert(PILLOW_MODE[channels])
            if picture.size != (width, height):
                picture = picture.resize((width, height), Image.Resampling.BILINEAR)
            pixels = np.array(picture)
    except (RejectError, MemoryError):  # a good record does not become a dead letter for want of memory
        raise
    except UnidentifiedImageError:
        raise RejectError(Reason.UNDECODABLE_IMAGE, "not a JPEG or PNG") from None
    # Image libraries raise whatever the damage made them stumble over; all of it means the same here.
    except Exception as error:  # noqa: BLE001
        raise RejectError(Reason.UNDECODABLE_IMAGE, f"not a JPEG or PNG that can be decoded: {error}") from None
    return np.ascontiguousarray(pixels.reshape(height, width, channels))


def stored(image: bytes, pixels_HWC: np.ndarray) -> bytes:
    """An image as it is kept once it was decoded to `pixels_HWC`: what decodes to the same pixels, in few bytes.

    Its own bytes when it has that height and width, and no more of what is no picture than headers need; else a PNG of
    the pixels.
    """
    if len(image) <= pixels_HWC.nbytes + HEADER_BYTES and _size(image) == pixels_HWC.shape[:2]:
        return image
    return png(pixels_HWC)


def png(pixels_HWC: np.ndarray) -> bytes:
    """uint8 pixels as a PNG, which loses nothing."""
    file = io.BytesIO()
    _picture(pixels_HWC).save(file, "PNG")
    return file.getvalue()


def _size(image: bytes) -> tuple[int, int]:
    """Height and width."""
    if image[:2] == JPEG_START:
        height, width, *_ = simplejpeg.decode_jpeg_header(image)
        return int(height), int(width)
    with Image.open(io.BytesIO(image), formats=("JPEG", "PNG")) as picture:
        return picture.height, picture.width


def _decode_jpeg(image: bytes, channels: int, max_pixels: int) -> np.ndarray | None:
    height, width, colorspace, _ = simplejpeg.decode_jpeg_header(image)
    _check_size(int(height), int(width), max_pixels)
    if colorspace in ("CMYK", "YCCK"):
        return None
    return simplejpeg.decode_jpeg(image, colorspace="GRAY" if channels == 1 else "RGB")


def _open(image: bytes, max_pixels: int) -> Image.Image:
    picture = Image.open(io.BytesIO(image), formats=("JPEG", "PNG"))
    _check_size(picture.height, picture.width, max_pixels)
    picture.info.pop("transparency", None)  # dropped in any case; converting a palette that has it warns
    if picture.mode.startswith("I"):
        # 16-bit grey: Pillow's convert would clip instead of scale.
        return Image.fromarray((np.asarray(picture, dtype=np.uint32) >> 8).astype(np.uint8))
    return picture


def _picture(pixels_HWC: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels_HWC if pixels_HWC.shape[2] == 3 else pixels_HWC[:, :, 0])


def _check_size(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise RejectError(
            Reason.OVERSIZED_IMAGE, f"{height} x {width} pixels are over input.max_image_pixels = {max_pixels}"
        )
