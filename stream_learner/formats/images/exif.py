"""Read and apply the orientation, the only EXIF tag that changes how an image looks."""

import struct

from PIL import Image
from PIL.Image import Transpose

BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
ORIENTATION = 0x0112
INTEGERS = {3: "H", 4: "I"}
MAX_ENTRIES = 256
TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
ON_ITS_SIDE = (5, 6, 7, 8)


def orientation(tiff: bytes) -> int:
    """Return the orientation in EXIF data (1..8), or 1 (upright) if it cannot be read.

    Pillow's parser is not used, because it copies the value of every entry: 64 KiB of entries that share their values
    would take 350 MB.
    """
    try:
        order = BYTE_ORDERS[tiff[:4]]
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, directory)
        for place in range(directory + 2, directory + 2 + 12 * min(entries, MAX_ENTRIES), 12):
            tag, kind, count = struct.unpack_from(order + "HHI", tiff, place)
            if tag == ORIENTATION and count == 1:
                (value,) = struct.unpack_from(order + INTEGERS[kind], tiff, place + 8)
                return value if value in TURNS else 1
    except (KeyError, struct.error):
        pass
    return 1


def upright(picture: Image.Image, orientation: int) -> Image.Image:
    """Turn or mirror a picture as an image viewer does."""
    return picture.transpose(TURNS[orientation]) if orientation in TURNS else picture
