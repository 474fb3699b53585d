"""Check JPEG files, drop the parts that pixels do not need, and decode the pixels."""

import io
import re
import struct
from functools import lru_cache
from operator import mul
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, JpegImagePlugin

from stream_learner.formats.images import exif
from stream_learner.formats.images.bounds import (
    MAX_PARTS,
    MAX_SCANS,
    check_size,
    oversized,
    undecodable,
)

START = b"\xff\xd8"
END = b"\xff\xd9"
NO_MORE = END + b"\0\0"
SEGMENT = struct.Struct(">BBH")
FRAME = struct.Struct(">BHHB")
# Stuffed zeros, fill bytes and restart markers begin no segment.
NO_SEGMENT = frozenset((0x00, 0x01, *range(0xD0, 0xD8), 0xFF))
MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
PROGRESSIVE = 0xC2
FRAMES = (0xC0, 0xC1, PROGRESSIVE)
DHT, EOI, SOS, DQT, DRI, APP0, APP1, APP14 = 0xC4, 0xD9, 0xDA, 0xDB, 0xDD, 0xE0, 0xE1, 0xEE
TABLES = (DHT, DQT, DRI)
OTHER_FRAMES = {
    **dict.fromkeys((0xC3, 0xC7), "lossless"),
    **dict.fromkeys((0xC5, 0xC6, 0xDE, 0xDF), "hierarchical"),
    **dict.fromkeys((0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF), "arithmetic-coded"),
    0xF7: "JPEG-LS",
}
JFIF = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
WHOLE_SPECTRUM = b"\0\x3f\0"
LEFT_OVER = re.compile(r"(\d+) extraneous bytes before marker 0xd9")


class Jpeg(NamedTuple):
    """A checked JPEG. Height and width are from the file, before `orientation` is applied.

    `file` is a JPEG with only the parts that decoding needs. Metadata, thumbnails, further pictures and trailing bytes
    are left out.
    """

    height: int
    width: int
    components: int
    orientation: int
    file: bytes


class _Frame(NamedTuple):
    height: int
    width: int
    components: bytes
    progressive: bool
    least_bits: int
    """Minimum number of bits in all scans: one for the first coefficient of each block of 8 x 8 samples, and in a
    sequential JPEG another one to end the block."""


def parse(data: bytes, max_pixels: int) -> Jpeg:
    """Check a JPEG's structure and bounds without decoding pixels.

    Raises RejectError (`undecodable_image`, `oversized_image`).
    """
    frame: _Frame | None = None
    kept, orientation, scanned, scans = [START], 1, b"", 0
    position, end = len(START), len(data)
    data += NO_MORE  # an end marker, so that every search and read below succeeds
    for _ in range(MAX_PARTS):
        start = position
        first, marker, length = SEGMENT.unpack_from(data, start)
        if first != 0xFF or marker in NO_SEGMENT:
            position = MARKER.search(data, start).start()  # pyright: ignore[reportOptionalMemberAccess]
            continue
        if marker == EOI:
            break
        position = start + 2 + length
        if position > end or length < 2:
            raise undecodable("the JPEG is cut off or damaged in its header")
        if marker in TABLES:
            kept.append(data[start:position])
        elif marker == SOS:
            if not frame:
                raise undecodable("the JPEG has no frame header before its first scan")
            scans += 1
            if scans > MAX_SCANS:
                raise oversized(f"the JPEG has more than {MAX_SCANS} scans")
            header = data[start:position]
            # The last three bytes have no meaning in a sequential JPEG. Samsung's cameras write unusual values there.
            if not frame.progressive:
                header = header[:-3] + WHOLE_SPECTRUM
            scanned += _scanned(header)
            scan, position = position, MARKER.search(data, position).start()  # pyright: ignore[reportOptionalMemberAccess]
            kept += (header, data[scan:position])
        elif marker in FRAMES:
            if frame:
                raise undecodable("the JPEG has two frame headers")
            frame = _frame(marker, data[start + 4 : position])
            check_size(frame.height, frame.width, max_pixels)
            if frame.least_bits > 8 * end:
                raise undecodable(f"{end} bytes cannot hold {frame.height} x {frame.width} pixels: the JPEG is cut off")
            kept.append(data[start:position])
        elif marker == APP0 and data.startswith(b"JFIF\0", start + 4):
            kept.append(JFIF)  # replaces the file's own: some files declare JFIF 2, and libjpeg then warns
        elif marker == APP1 and orientation == 1 and data.startswith(b"Exif\0", start + 4):
            orientation = exif.orientation(data[start + 10 : position])
        elif marker == APP14 and data.startswith(b"Adobe", start + 4) and data[start + 15 : position][:1] <= b"\2":
            kept.append(data[start:position])  # Adobe's segment: whether colors are RGB, YCbCr, CMYK or YCCK
        elif marker in OTHER_FRAMES:
            raise undecodable(f"{OTHER_FRAMES[marker]} JPEGs are not supported")
    else:
        raise oversized(f"the JPEG has more than {MAX_PARTS} segments")
    if not frame or not set(scanned).issuperset(frame.components):
        raise undecodable("the JPEG is cut off: not all of its colors are there")
    if frame.progressive and start >= end:
        raise undecodable("the JPEG is cut off: its end marker is missing")
    kept.append(END)
    return Jpeg(frame.height, frame.width, len(frame.components), orientation, b"".join(kept))


def pixels(jpeg: Jpeg, channels: int) -> np.ndarray:
    """Decode a JPEG to uint8 `[height, width, channels]`; CMYK becomes RGB.

    Raises ValueError if libjpeg fails or warns. After a warning, missing parts of the image would be grey.
    """
    colors = "CMYK" if jpeg.components == 4 else "GRAY" if channels == 1 else "RGB"
    try:
        pixels_HWC = _decode(jpeg.file, colors)
    except ValueError as error:
        if "subsampling" not in str(error):
            raise
        picture = JpegImagePlugin.JpegImageFile(io.BytesIO(jpeg.file))  # Pillow supports all subsamplings
        return np.atleast_3d(np.array(picture.convert("L" if channels == 1 else "RGB")))
    if colors != "CMYK":
        return pixels_HWC
    # Programs that write CMYK invert the values, as Adobe's programs do.
    picture = Image.frombytes("CMYK", (jpeg.width, jpeg.height), pixels_HWC.tobytes(), "raw", "CMYK;I")
    return np.array(picture.convert("RGB"))


def _decode(file: bytes, colors: str) -> np.ndarray:
    try:
        return simplejpeg.decode_jpeg(file, colorspace=colors)
    except ValueError as error:
        if "memory" in str(error).lower():  # a lack of memory must not make a good record a dead letter
            raise MemoryError(str(error)) from None
        left_over = LEFT_OVER.search(str(error))
        padding = -len(END) - int(left_over[1]) if left_over else 0
        if not padding or file[padding : -len(END)].strip(b"\0"):
            raise
        return simplejpeg.decode_jpeg(file[:padding] + END, colorspace=colors)


@lru_cache(maxsize=64)  # most images of a stream have the same frame header
def _frame(marker: int, header: bytes) -> _Frame:
    if len(header) < 6 or len(header) != 6 + 3 * header[5]:
        raise undecodable("the JPEG's frame header is damaged")
    bits, height, width, count = FRAME.unpack_from(header)
    if bits != 8 or count not in (1, 3, 4):
        raise undecodable(f"JPEGs of {count} components with {bits} bits are not supported")
    across, down = [byte >> 4 for byte in header[7::3]], [byte & 15 for byte in header[7::3]]
    if min(across + down) < 1 or max(across + down) > 4:
        raise undecodable("the JPEG's subsampling is damaged")
    columns = [-(-width * factor // (8 * max(across))) for factor in across]
    rows = [-(-height * factor // (8 * max(down))) for factor in down]
    blocks = sum(map(mul, columns, rows))
    progressive = marker == PROGRESSIVE
    return _Frame(height, width, header[6::3], progressive, blocks if progressive else 2 * blocks)


@lru_cache(maxsize=64)  # most images of a stream have the same scan headers
def _scanned(header: bytes) -> bytes:
    """Return the components whose first coefficients the scan holds. A complete JPEG has first coefficients for all."""
    count = header[4] if len(header) > 4 else 0
    if len(header) != 8 + 2 * count:
        raise undecodable("a scan header of the JPEG is damaged")
    return header[5 : 5 + 2 * count : 2] if header[-3] == 0 else b""
