"""Check PNG files, keep the parts that pixels need, and decode the pixels."""

import math
import struct
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image

from stream_learner.formats.images import exif
from stream_learner.formats.images.bounds import (
    MAX_PARTS,
    MAX_PNG_EXPANSION,
    check_size,
    oversized,
    undecodable,
)

START = b"\x89PNG\r\n\x1a\n"
USED = frozenset((b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"sBIT", b"eXIf"))
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}
DEPTHS = {GREY: (1, 2, 4, 8, 16), PALETTE: (1, 2, 4, 8)} | dict.fromkeys((RGB, GREY_ALPHA, RGB_ALPHA), (8, 16))
MODES = {GREY: "L", RGB: "RGB", GREY_ALPHA: "LA", RGB_ALPHA: "RGBA"}
INTERLACED = {bytes((0, 0, 0)): False, bytes((0, 0, 1)): True}
"""Whether the picture is interlaced, by the methods of compression, filters and interlacing."""
HIGH, LOW = 0, 1
# Adam7 interlacing: first column, first row, column step and row step of each pass.
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
BLOCK_BYTES = 0xFFFF
HEADER = struct.Struct(">I4sIIBB3s")
CHUNK = struct.Struct(">I4s")
CHECKSUM = struct.Struct(">I")
BLOCK = struct.Struct("<BHH")
# The color behind transparent parts. Drawings are often dark on a transparent background: on black they would vanish.
WHITE = 255


class Png(NamedTuple):
    """Parts of a PNG that decoding needs. Height and width are from the file, before `orientation` is applied."""

    height: int
    width: int
    depth: int
    color_type: int
    interlaced: bool
    orientation: int
    palette: bytes
    transparency: bytes
    significant_bits: bytes
    compressed: bytes

    @property
    def grey(self) -> bool:
        return self.color_type in (GREY, GREY_ALPHA)

    @property
    def plain(self) -> bool:
        """Whether the samples are the pixels: grey or RGB, 8 bits, upright, without transparency or `sBIT`."""
        changed = self.orientation != 1 or self.transparency or self.significant_bits
        return self.depth == 8 and self.color_type in (GREY, RGB) and not changed

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and number of samples per pixel."""
        return self.height, self.width, CHANNELS[self.color_type]


def parse(data: bytes, max_pixels: int) -> Png:
    """Check a PNG's structure, checksums and bounds without decoding pixels.

    Chunks that decoding does not need, such as frames of an animation, are skipped without a check. Raises RejectError
    (`undecodable_image`, `oversized_image`).
    """
    height, width, depth, color_type, interlaced = _header(data)
    check_size(height, width, max_pixels, bits=depth)
    view = memoryview(data)
    chunks: dict[bytes, bytes] = {}
    compressed: list[memoryview] = []
    position, end = len(START), len(data)
    for _ in range(MAX_PARTS):
        if position + 12 > end:
            break
        length, kind = CHUNK.unpack_from(data, position)
        body, position = position + 8, position + 12 + length
        if kind not in USED:
            if not kind[0] & 0x20:
                raise undecodable(f"the PNG needs the unknown chunk {kind!r}")
            continue
        if position > end:
            raise undecodable(f"the PNG is cut off in its chunk {kind.decode()}")
        if zlib.crc32(view[body - 4 : position - 4]) != CHECKSUM.unpack_from(data, position - 4)[0]:
            raise undecodable(f"the PNG's chunk {kind.decode()} is damaged: wrong checksum")
        if kind == b"IDAT":
            compressed.append(view[body : position - 4])
        elif kind == b"IEND":
            break
        else:
            chunks.setdefault(kind, data[body : position - 4])
    else:
        raise oversized(f"the PNG has more than {MAX_PARTS} chunks")
    palette, bits = chunks.get(b"PLTE", b""), chunks.get(b"sBIT", b"")[: CHANNELS[color_type]]
    if color_type == PALETTE and (not palette or len(palette) % 3 or len(palette) > 3 * 256):
        raise undecodable("the PNG's palette is missing or damaged")
    return Png(
        height,
        width,
        depth,
        color_type,
        interlaced,
        exif.orientation(chunks[b"eXIf"]) if b"eXIf" in chunks else 1,
        palette,
        chunks.get(b"tRNS", b"")[:256],
        b"" if set(bits) == {depth} else bits,
        b"".join(compressed),
    )


def picture(png: Png) -> Image.Image:
    """Decode a PNG to a grey or RGB picture of 8 bits on a white background.

    Raises RejectError (`undecodable_image`), ValueError.
    """
    rows = _inflated(png)
    if png.color_type == PALETTE or png.depth < 8:
        picture = _unpacked(png, rows, "P", "P" if png.depth == 8 else f"P;{png.depth}")
        picture.putpalette(_greys(png) if png.grey else _colors(png))
        return picture.convert("L" if png.grey else "RGB")
    if png.transparency or png.significant_bits:
        return _from_samples(png, rows)
    picture = _unpacked(png, rows if png.depth == 8 else _half(png, rows, HIGH), MODES[png.color_type])
    return _on_white(png, picture, picture) if png.color_type in (GREY_ALPHA, RGB_ALPHA) else picture


def samples(png: Png) -> np.ndarray:
    """Decode the samples of a `plain` PNG: uint8 `[height, width, 1 or 3]`. Raises RejectError, ValueError."""
    return _unfiltered(png, _inflated(png))


def from_pixels(pixels_HWC: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels_HWC if pixels_HWC.shape[2] == 3 else pixels_HWC[:, :, 0])


def _header(data: bytes) -> tuple[int, int, int, int, bool]:
    try:
        length, kind, width, height, depth, color_type, methods = HEADER.unpack_from(data, len(START))
    except struct.error:
        raise undecodable("the PNG is cut off in its header") from None
    if length != 13 or kind != b"IHDR":
        raise undecodable("the PNG does not begin with its header")
    if depth not in DEPTHS.get(color_type, ()) or methods not in INTERLACED:
        raise undecodable(f"no PNG has {depth} bits, color type {color_type} and methods {[*methods]}")
    return height, width, depth, color_type, INTERLACED[methods]


def _inflated(png: Png) -> bytes:
    """Inflate the rows. Raises RejectError if rows are missing, because Pillow would make missing rows black."""
    expected, given = _expected_bytes(png), len(png.compressed)
    if expected > MAX_PNG_EXPANSION * given:
        raise undecodable(f"{given} bytes cannot hold {png.height} x {png.width} pixels: the PNG is cut off")
    inflater = zlib.decompressobj()
    try:
        rows = inflater.decompress(png.compressed, expected + 1)
    except zlib.error as error:
        raise undecodable(f"the PNG's pixels are damaged: {error}") from None
    if len(rows) < expected or (len(rows) == expected and not inflater.eof):
        raise undecodable(f"the PNG is cut off: {len(rows)} of its {expected} bytes of pixels are there")
    return rows


def _stored(rows: bytes) -> bytes:
    """Wrap rows in a zlib stream of stored blocks (RFC 1950, 1951). Pillow undoes filters only in a zlib stream."""
    view, last = memoryview(rows), len(rows) - BLOCK_BYTES
    parts: list[bytes | memoryview] = [b"\x78\x01"]
    for start in range(0, len(rows), BLOCK_BYTES):
        block = view[start : start + BLOCK_BYTES]
        parts += (BLOCK.pack(start >= last, len(block), len(block) ^ 0xFFFF), block)
    parts.append(CHECKSUM.pack(zlib.adler32(rows)))
    return b"".join(parts)


def _expected_bytes(png: Png) -> int:
    """Return the number of bytes of all rows, including the byte for each row's filter."""
    bits = png.depth * CHANNELS[png.color_type]
    return sum(height * (1 + (width * bits + 7) // 8) for height, width in _passes(png))


def _passes(png: Png) -> list[tuple[int, int]]:
    """Return height and width of each pass. A picture without interlacing has one pass."""
    if not png.interlaced:
        return [(png.height, png.width)]
    sizes = ((-(-(png.height - y) // dy), -(-(png.width - x) // dx)) for x, y, dx, dy in PASSES)
    return [(height, width) for height, width in sizes if height > 0 and width > 0]


def _unpacked(png: Png, rows: bytes, mode: str, raw_mode: str | None = None) -> Image.Image:
    size = png.width, png.height
    return Image.frombytes(mode, size, _stored(rows), "zip", raw_mode or mode, png.interlaced)


def _unfiltered(png: Png, rows: bytes) -> np.ndarray:
    """Decode rows of 8-bit samples to uint8 `[height, width, channels]`. Raises ValueError.

    Calls Pillow's codecs directly. `Image.frombytes` and `np.array` make the same calls, but take twice as long for
    a small image.
    """
    mode, shape, box = MODES[png.color_type], png.shape, (0, 0, png.width, png.height)
    image = Image.core.new(mode, box[2:])
    decoder = Image.core.zip_decoder(mode, mode, png.interlaced)
    decoder.setimage(image, box)
    used, error = decoder.decode(_stored(rows))
    if used >= 0 or error:
        raise ValueError("cannot decode image data")
    encoder = Image.core.raw_encoder(mode, mode)
    encoder.setimage(image, box)
    _, _, samples = encoder.encode(math.prod(shape))
    return np.frombuffer(bytearray(samples), np.uint8).reshape(shape)


def _half(png: Png, rows: bytes, half: int) -> bytes:
    """Return rows of 8-bit samples: the high or the low byte of each 16-bit sample.

    The filter of each row stays valid, because PNG filters treat each byte of a pixel separately.
    """
    halves, start = [], 0
    for height, width in _passes(png):
        samples = width * CHANNELS[png.color_type]
        whole = np.frombuffer(rows, np.uint8, height * (1 + 2 * samples), start).reshape(height, -1)
        kept = np.empty((height, 1 + samples), np.uint8)
        kept[:, 0], kept[:, 1:] = whole[:, 0], whole[:, 1 + half :: 2]
        halves.append(kept.tobytes())
        start += whole.size
    return b"".join(halves)


def _on_white(png: Png, picture: Image.Image, mask: Image.Image) -> Image.Image:
    white = Image.new("L" if png.grey else "RGB", picture.size, WHITE if png.grey else (WHITE,) * 3)
    white.paste(picture, mask=mask)
    return white


def _from_samples(png: Png, rows: bytes) -> Image.Image:
    """Decode a PNG with a transparent color, or with fewer significant bits than its depth, sample by sample."""
    samples_HWC, colors = _samples(png, rows), 1 if png.grey else 3
    bits = png.significant_bits.ljust(4, bytes([png.depth]))
    picture = from_pixels(_eight_bits(samples_HWC[:, :, :colors], png.depth, max(bits[:colors])))
    if samples_HWC.shape[2] > colors:
        mask_HW = _eight_bits(samples_HWC[:, :, colors], png.depth, bits[colors])
    elif len(png.transparency) == 2 * colors:
        transparent = np.frombuffer(png.transparency, ">u2").astype(samples_HWC.dtype)
        opaque_HW = np.zeros(samples_HWC.shape[:2], bool)
        for channel in range(colors):
            opaque_HW |= samples_HWC[:, :, channel] != transparent[channel]
        mask_HW = opaque_HW * np.uint8(255)
    else:
        return picture
    return _on_white(png, picture, Image.fromarray(mask_HW))


def _samples(png: Png, rows: bytes) -> np.ndarray:
    """Decode a PNG to unscaled samples: uint8 or uint16 [height, width, channels]."""
    if png.depth == 8:
        return _unfiltered(png, rows)
    high, low = (_unfiltered(png, _half(png, rows, half)) for half in (HIGH, LOW))
    return high.astype(np.uint16) << 8 | low


def _eight_bits(samples: np.ndarray, depth: int, significant: int) -> np.ndarray:
    """Scale samples of `depth` bits to 8 bits.

    By the PNG standard, the `significant` bits of a sample are its high bits. Some programs write them as the low bits.
    Then the samples are scaled from that number of bits.
    """
    if 0 < significant < depth and samples.max() < 1 << significant:
        low_bits = (1 << (depth - significant)) - 1
        if (samples & low_bits).any():
            depth = significant
    if depth < 8:
        samples = samples.astype(np.uint16) * 255 // ((1 << depth) - 1)
    elif depth > 8:
        samples = samples >> (depth - 8)
    return samples.astype(np.uint8, copy=False)


def _greys(png: Png) -> bytes:
    """Return a palette for greys of fewer than 8 bits. The transparent grey is white."""
    levels = 1 << png.depth
    greys = [index * 255 // (levels - 1) for index in range(levels)]
    if len(png.transparency) == 2:
        greys[int.from_bytes(png.transparency, "big") % levels] = WHITE
    return bytes(grey for grey in greys for _ in "RGB")


def _colors(png: Png) -> bytes:
    """Return the palette, with transparent colors blended with white."""
    if not png.transparency:
        return png.palette
    colors = np.frombuffer(png.palette, np.uint8).reshape(-1, 3).astype(np.uint32)
    alphas = np.frombuffer(png.transparency.ljust(256, b"\xff"), np.uint8)[: len(colors), None].astype(np.uint32)
    return ((colors * alphas + WHITE * (255 - alphas) + 127) // 255).astype(np.uint8).tobytes()
