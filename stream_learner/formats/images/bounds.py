"""Limits on images. They are checked on the header and the list of chunks or segments, before pixels are decoded."""

from stream_learner.contract.vocabulary import Reason
from stream_learner.formats.record import RejectError

MAX_SIDE_PX = 16_384
"""Longest side. A resize makes an intermediate image of the original height and the model's width."""
MAX_SCANS = 32
"""Largest number of scans of a JPEG. Each scan visits the whole image. Encoders write up to 18 scans."""
MAX_PARTS = 1_500
"""Largest number of segments of a JPEG, or chunks of a PNG. libpng writes 8 KiB into each chunk."""
MAX_PNG_EXPANSION = 1_032
"""Largest number of bytes that one byte of deflate can expand to."""


def check_size(height: int, width: int, max_pixels: int, *, bits: int = 8) -> None:
    """Check an image's size. Pixels of 16 bits count twice, because they take twice the time and memory.

    Raises RejectError (`oversized_image`, or `undecodable_image` for an image without pixels).
    """
    if not height or not width:
        raise undecodable(f"the image's header declares {height} x {width} pixels")
    if height * width * max(bits, 8) > max_pixels * 8:
        size = f"{height} x {width} pixels" + (" of 16 bits, which count twice," if bits == 16 else "")
        raise oversized(f"{size} are over input.max_image_pixels = {max_pixels}")
    if max(height, width) > MAX_SIDE_PX:
        raise oversized(f"{height} x {width} pixels: a side is over {MAX_SIDE_PX}")


def undecodable(message: str) -> RejectError:
    return RejectError(Reason.UNDECODABLE_IMAGE, message)


def oversized(message: str) -> RejectError:
    return RejectError(Reason.OVERSIZED_IMAGE, message)
