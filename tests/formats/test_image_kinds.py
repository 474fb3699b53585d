"""The result for each kind of image, as in the table of docs/topics.md."""

import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from record_images import encode, exif, gradient, jpeg_segment, png_chunk, png_of

from stream_learner.formats import images
from stream_learner.formats.images import bounds, pngs
from stream_learner.formats.images.pngs import Png

RNG = np.random.default_rng(0)
COLORS_HWC = RNG.integers(0, 256, (6, 9, 3), np.uint8)
GREY_HWC = COLORS_HWC[:, :, :1]
ALPHA_HWC = RNG.integers(0, 256, (6, 9, 1), np.uint8)
JPEG = encode(gradient(16, 24), "JPEG", quality=95)
PROGRESSIVE = encode(gradient(16, 24), "JPEG", progressive=True)


ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def parse(image: bytes) -> Png:
    return pngs.parse(image, 1_000_000)


def decode(image: bytes, channels: int = 3, size: tuple[int, int] = (6, 9)) -> np.ndarray:
    return images.decode(image, *size, channels, 1_000_000)


def on_white(colors: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.round((colors.astype(float) * alpha + 255 * (255.0 - alpha)) / 255)


def differs_by(a: np.ndarray, b: np.ndarray) -> float:
    return np.abs(a.astype(float) - b).max()


def with_exif(image: bytes, tiff: bytes) -> bytes:
    if image.startswith(b"\xff\xd8"):
        return image[:2] + jpeg_segment(0xE1, b"Exif\0\0" + tiff) + image[2:]
    return image[:33] + png_chunk(b"eXIf", tiff) + image[33:]


@pytest.mark.parametrize("order", [">", "<"])
@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("format_", ["JPEG", "PNG"])
def test_exif_orientation_is_applied(format_, orientation, order):
    image = with_exif(encode(gradient(10, 30), format_), exif(orientation, order))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(image)))
    size = upright.height, upright.width
    assert images.header(image) == (*size, False)
    assert np.array_equal(decode(image, size=size), np.asarray(upright))
    assert decode(image, size=(20, 20)).shape == (20, 20, 3)


@pytest.mark.parametrize(
    "tiff",
    [b"", b"II*\0", exif(6)[:-9], b"XX" + exif(6)[2:], exif(6)[:4] + b"\xff" * 4, exif(6).replace(b"\0\3", b"\0\2", 1)],
)
@pytest.mark.parametrize("image", [JPEG, encode(gradient(16, 24), "PNG")])
def test_unreadable_exif_data_turns_nothing(image, tiff):
    assert np.array_equal(decode(with_exif(image, tiff)), decode(image))


@pytest.mark.parametrize("format_", ["JPEG", "PNG"])
@pytest.mark.parametrize("shape", [(12, 12), (12, 20), (20, 12)])
def test_what_is_stored_of_a_turned_image_is_turned_once(format_, shape):
    image = with_exif(encode(gradient(*shape), format_), exif(6))
    for size in ((12, 12), (shape[1], shape[0])):
        pixels_HWC = decode(image, size=size)
        kept = images.stored(image, pixels_HWC)
        again_HWC = images.decode(kept, *size, 3, max_pixels=size[0] * size[1])
        assert np.array_equal(again_HWC, pixels_HWC)


def test_an_alpha_channel_is_composited_over_white():
    for colors_HWC, channels in ((GREY_HWC, 1), (COLORS_HWC, 3)):
        eight = png_of(np.dstack([colors_HWC, ALPHA_HWC]))
        assert differs_by(decode(eight, channels), on_white(colors_HWC, ALPHA_HWC)) <= 1
        sixteen = png_of(np.dstack([colors_HWC, ALPHA_HWC]).astype(np.uint16) << 8 | 0x77)
        assert np.array_equal(decode(sixteen, channels), decode(eight, channels))
        opaque = png_of(np.dstack([colors_HWC, np.full_like(ALPHA_HWC, 255)]))
        assert np.array_equal(decode(opaque, channels), colors_HWC)


@pytest.mark.parametrize("type_", [np.uint8, np.uint16])
@pytest.mark.parametrize("colors_HWC", [GREY_HWC, COLORS_HWC])
def test_the_transparent_color_of_a_png_is_white(colors_HWC, type_):
    samples_HWC = colors_HWC.astype(type_) * (257 if type_ is np.uint16 else 1)
    key = samples_HWC[2, 3].astype(">u2").tobytes()
    wanted_HWC = colors_HWC.copy()
    wanted_HWC[(samples_HWC == samples_HWC[2, 3]).all(axis=2)] = 255
    decoded_HWC = decode(png_of(samples_HWC, png_chunk(b"tRNS", key)), colors_HWC.shape[2])
    assert np.array_equal(decoded_HWC, wanted_HWC)
    assert (decoded_HWC[2, 3] == 255).all()


def test_of_sixteen_bits_all_decide_which_color_is_transparent():
    samples_HWC = np.full((6, 9, 3), 0x1234, np.uint16)
    samples_HWC[0, 0, 2] = 0x1235
    decoded_HWC = decode(png_of(samples_HWC, png_chunk(b"tRNS", b"\x12\x34" * 3)))
    assert decoded_HWC[0, 0].tolist() == [0x12] * 3
    assert (decoded_HWC.reshape(-1, 3)[1:] == 255).all()


@pytest.mark.parametrize("colors", [2, 4, 16, 256])
def test_palettes_of_any_depth_and_their_transparency(colors):
    picture = gradient(6, 9).quantize(colors)
    bits = colors.bit_length() - 1
    plain = encode(picture, "PNG", bits=bits)
    colors_HWC = np.asarray(picture.convert("RGB"))
    assert np.array_equal(decode(plain), colors_HWC)
    alphas = bytes((37 * i) % 256 for i in range(colors // 2))
    see_through = encode(picture, "PNG", bits=bits, transparency=alphas)
    alpha_HW1 = np.array(list(alphas.ljust(256, b"\xff")))[np.asarray(picture)][:, :, None]
    assert np.array_equal(decode(see_through), on_white(colors_HWC, alpha_HW1))


def test_an_index_beyond_the_palette_is_black():
    indices_HWC = np.arange(54, dtype=np.uint8).reshape(6, 9, 1)
    decoded_HWC = decode(png_of(indices_HWC, png_chunk(b"PLTE", b"\x50\x60\x70" * 10), palette=True)).reshape(-1, 3)
    assert decoded_HWC[:10].tolist() == [[0x50, 0x60, 0x70]] * 10
    assert not decoded_HWC[10:].any()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_greys_of_few_bits_are_scaled(bits):
    values = RNG.integers(0, 1 << bits, (6, 9))
    rows = [np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :].reshape(-1) for row in values]
    packed_HW = np.stack([np.packbits(row) for row in rows])
    image = png_of(packed_HW[:, :, None]).replace(b"\0\0\0" + bytes([packed_HW.shape[1]]), b"\0\0\0\x09", 1)
    image = with_header(image, bits=bits)
    wanted_HW = values * 255 // ((1 << bits) - 1)
    assert np.array_equal(decode(image, 1)[:, :, 0], wanted_HW)
    transparent = int(values[1, 1])
    image = image[:33] + png_chunk(b"tRNS", bytes([0, transparent])) + image[33:]
    assert np.array_equal(decode(image, 1)[:, :, 0], np.where(values == transparent, 255, wanted_HW))


def with_header(image: bytes, *, bits: int) -> bytes:
    header = image[16:24] + bytes([bits]) + image[25:29]
    return image[:8] + png_chunk(b"IHDR", header) + image[33:]


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (4, 3), (5, 5), (8, 8), (17, 33)])
@pytest.mark.parametrize("type_", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_an_interlaced_png_has_the_same_pixels(channels, type_, size):
    samples_HWC = RNG.integers(0, np.iinfo(type_).max, (*size, channels), type_, endpoint=True)
    plain = png_of(samples_HWC)
    passes = [samples_HWC[y::dy, x::dx] for x, y, dx, dy in ADAM7]
    rows = [zlib.decompress(parse(png_of(part)).compressed) for part in passes if part.size]
    header = png_chunk(b"IHDR", plain[16:28] + b"\1")
    interlaced = plain[:8] + header + png_chunk(b"IDAT", zlib.compress(b"".join(rows)))
    assert np.array_equal(decode(interlaced, size=size), decode(plain, size=size))


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1), (28, 29, 1), (33, 32, 3), (160, 150, 3)])
def test_pillow_gives_the_same_pixels_for_any_filters(shape, interlaced):
    height, width, channels = shape
    image = png_of(np.zeros(shape, np.uint8))
    rows_of_passes = []
    for x, y, dx, dy in ADAM7 if interlaced else ((0, 0, 1, 1),):
        tall, wide = len(range(y, height, dy)), len(range(x, width, dx))
        rows = RNG.integers(0, 256, (tall if wide else 0, 1 + wide * channels), np.uint8)
        rows[:, 0] %= 5  # filters 0 to 4
        rows_of_passes.append(rows.tobytes())
    pixels = png_chunk(b"IDAT", zlib.compress(b"".join(rows_of_passes)))
    image = image[:8] + png_chunk(b"IHDR", image[16:28] + bytes([interlaced])) + pixels
    decoded_HWC = decode(image, channels, (height, width))
    assert np.array_equal(decoded_HWC, np.asarray(Image.open(io.BytesIO(image))).reshape(shape))
    assert decoded_HWC.flags.writeable


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (16, 16), (33, 21)])
def test_pillow_gives_the_same_pixels(mode, size):
    """Of what is neither transparent nor in 16 bits."""
    picture = gradient(*size).convert("L").convert("I;16") if mode == "I;16" else gradient(*size).convert(mode)
    wanted = picture.convert("RGB") if mode != "I;16" else Image.new("RGB", picture.size)
    assert np.array_equal(decode(encode(picture, "PNG"), size=size), np.asarray(wanted))


@pytest.mark.parametrize("channels", [1, 3])
def test_twelve_bits_in_sixteen_are_scaled_where_the_file_says_so(channels):
    values_HWC = RNG.integers(0, 4096, (6, 9, channels), np.uint16)
    says = png_chunk(b"sBIT", bytes([12] * channels))
    assert np.array_equal(decode(png_of(values_HWC, says), channels), values_HWC >> 4)
    assert np.array_equal(decode(png_of(values_HWC), channels), values_HWC >> 8)  # nothing says so: nearly black
    high_HWC = values_HWC << 4  # as the standard wants it
    assert np.array_equal(decode(png_of(high_HWC, says), channels), values_HWC >> 4)
    dark_HWC = values_HWC // 16 << 4
    assert np.array_equal(decode(png_of(dark_HWC, says), channels), dark_HWC >> 8)


@pytest.mark.parametrize("channels", [2, 4])
def test_significant_bits_of_color_and_alpha(channels):
    colors = channels - 1
    values_HWC = RNG.integers(0, 4096, (6, 9, channels), np.uint16)
    decoded_HWC = decode(png_of(values_HWC, png_chunk(b"sBIT", bytes([12] * channels))), colors)
    scaled_HWC = values_HWC >> 4
    assert differs_by(decoded_HWC, on_white(scaled_HWC[:, :, :colors], scaled_HWC[:, :, colors:])) <= 1


def test_significant_bits_below_eight():
    values_HWC = RNG.integers(0, 17, (6, 9, 1), np.uint8)
    values_HWC[0, 0] = 31
    image = png_of(values_HWC, png_chunk(b"sBIT", b"\5"))
    assert np.array_equal(decode(image, 1), values_HWC.astype(int) * 255 // 31)
    assert np.array_equal(decode(png_of(values_HWC.astype(np.uint16), png_chunk(b"sBIT", b"\5")), 1), decode(image, 1))
    for senseless in (b"", b"\0", b"\x09", b"\xff"):
        assert np.array_equal(decode(png_of(GREY_HWC, png_chunk(b"sBIT", senseless)), 1), GREY_HWC)


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_of_color(channels):
    values_HWC = RNG.integers(0, 1 << 16, (6, 9, channels), np.uint16)
    assert np.array_equal(decode(png_of(values_HWC), channels), values_HWC >> 8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}, {"optimize": True}])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpegs_have_the_pixels_that_pillow_gives_them(mode, options, channels):
    image = encode(gradient(16, 24).convert(mode), "JPEG", quality=90, **options)
    picture = Image.open(io.BytesIO(image)).convert("RGB").convert("L" if channels == 1 else "RGB")
    decoded_HWC = decode(image, channels, (16, 24))
    assert differs_by(decoded_HWC, np.asarray(picture).reshape(16, 24, channels)) <= 2


def without_jfif(image: bytes, *segments: bytes) -> bytes:
    return image[:2] + b"".join(segments) + image[20:]


def test_adobe_says_how_colors_are_coded():
    rgb = encode(gradient(16, 24), "JPEG", quality=95, keep_rgb=True)
    assert b"Adobe" in rgb
    assert differs_by(decode(rgb, size=(16, 24)), np.asarray(gradient(16, 24))) <= 12
    ycck = bytearray(encode(gradient(16, 24).convert("CMYK"), "JPEG"))
    ycck[ycck.index(b"Adobe") + 11] = 2
    wanted = Image.open(io.BytesIO(ycck)).convert("RGB")
    assert differs_by(decode(bytes(ycck), size=(16, 24)), np.asarray(wanted)) <= 2


SHARED = struct.pack(">HHII", 0x9286, 7, 60_000, 8)  # 60,000 bytes of the directory itself
SAME = {
    "text": lambda j: j[:2] + jpeg_segment(0xFE, b"x" * 60_000) * 30 + j[2:],
    "ICC profile": lambda j: j[:2] + jpeg_segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(5000)) + j[2:],
    "damaged ICC profile": lambda j: j[:2] + jpeg_segment(0xE2, b"ICC_PROFILE\0\5\2xx") + j[2:],
    "JFIF revision 2": lambda j: j.replace(b"JFIF\0\1\1", b"JFIF\0\2\1"),
    "damaged JFIF": lambda j: without_jfif(j, jpeg_segment(0xE0, b"JFIF\0")),
    "no JFIF": without_jfif,
    "JFXX thumbnail": lambda j: j[:2] + jpeg_segment(0xE0, b"JFXX\0\x10" + j) + j[2:],
    "EXIF with a thumbnail": lambda j: j[:2] + jpeg_segment(0xE1, b"Exif\0\0" + exif(1) + j) + j[2:],
    "EXIF whose entries share their values": lambda j: (
        j[:2] + jpeg_segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 5000) + SHARED * 5000) + j[2:]
    ),
    "short Adobe": lambda j: j[:2] + jpeg_segment(0xEE, b"Adobe") + j[2:],
    "unknown Adobe transform": lambda j: j[:2] + jpeg_segment(0xEE, b"Adobe\0\x64\0\0\0\0\x07") + j[2:],
    "fill bytes": lambda j: j[:2] + b"\xff" * 20 + j[2:],
    "junk between segments": lambda j: j[:20] + b"\0\1\2" + j[20:],
    "a restart marker between segments": lambda j: j[:20] + b"\xff\xd0" + j[20:],
    "bytes after the end": lambda j: j + b"\xff\xda\xff\xd8 and more",
    "a second picture": lambda j: j + j,
    "zeros before the end": lambda j: j[:-2] + bytes(64) + j[-2:],
}


@pytest.mark.parametrize("image", [JPEG, PROGRESSIVE], ids=["baseline", "progressive"])
@pytest.mark.parametrize("change", SAME.values(), ids=SAME.keys())
def test_nothing_beside_the_picture_of_a_jpeg_matters(change, image):
    assert np.array_equal(decode(change(image)), decode(image))


def test_a_sequential_jpeg_may_say_anything_of_its_spectrum():
    scan = JPEG.index(b"\xff\xda")
    header = scan + 2 + int.from_bytes(JPEG[scan + 2 : scan + 4], "big")
    for values in (b"\0\0\0", b"\1\1\0", b"\x3f\0\x11"):  # Samsung's cameras write the first
        assert np.array_equal(decode(JPEG[: header - 3] + values + JPEG[header:]), decode(JPEG))


def test_a_sequential_jpeg_whose_last_two_bytes_are_missing_is_complete():
    assert np.array_equal(decode(JPEG[:-2]), decode(JPEG))


def test_of_several_pictures_the_first_is_decoded():
    first, second = gradient(16, 24), gradient(16, 24).transpose(Image.Transpose.ROTATE_180)
    both = encode(first, "MPO", save_all=True, append_images=[second], quality=95)
    assert both.count(b"\xff\xd8\xff") == 2
    assert np.array_equal(decode(both), decode(JPEG))
    animated = encode(first, "PNG", save_all=True, append_images=[second] * 5)
    assert b"fdAT" in animated
    assert np.array_equal(decode(animated), decode(encode(first, "PNG")))


PNG = encode(gradient(16, 24), "PNG")
BESIDE = {
    "text with a wrong checksum": png_chunk(b"tEXt", b"Comment\0hi")[:-1] + b"\0",
    "a text bomb": png_chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(10_000_000))),
    "a profile bomb": png_chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(10_000_000))),
    "a senseless profile": png_chunk(b"iCCP", b""),
    "senseless animation": png_chunk(b"acTL", b"") + png_chunk(b"fcTL", b"\0") + png_chunk(b"fdAT", b""),
    "senseless gamma": png_chunk(b"gAMA", b"")
    + png_chunk(b"cHRM", b"\0")
    + png_chunk(b"pHYs", b"")
    + png_chunk(b"sRGB", b""),
    "an unknown chunk": png_chunk(b"abCd", bytes(100)),
    "an empty IDAT": png_chunk(b"IDAT", b""),
    "a suggested palette": png_chunk(b"PLTE", b"abc"),
}


@pytest.mark.parametrize("chunk", BESIDE.values(), ids=BESIDE.keys())
def test_nothing_beside_the_picture_of_a_png_matters(chunk):
    assert np.array_equal(decode(PNG[:33] + chunk + PNG[33:]), decode(PNG))


def test_bytes_after_the_end_of_a_png_do_not_matter_nor_a_missing_end():
    assert np.array_equal(decode(PNG + b"IDAT and more"), decode(PNG))
    for cut in range(1, 13):
        assert np.array_equal(decode(PNG[:-cut]), decode(PNG))


def test_the_documentation_states_the_bounds():
    page = (Path(__file__).parents[2] / "docs" / "topics.md").read_text()
    stated = {int(number.replace(",", "")) for number in re.findall(r"\| ([\d,]+) \|", page)}
    assert stated >= {bounds.MAX_SIDE_PX, bounds.MAX_SCANS, bounds.MAX_PARTS}
