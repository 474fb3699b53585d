"""The cost of any image is bounded, and only complete images are accepted."""

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image
from record_images import PNG_END, encode, gradient, jpeg_segment, png_chunk, png_header, png_of

from stream_learner.contract.vocabulary import Reason
from stream_learner.formats import images
from stream_learner.formats.images import jpegs, pngs
from stream_learner.formats.images.bounds import MAX_PARTS, MAX_SCANS, MAX_SIDE_PX
from stream_learner.formats.record import RejectError

MAX_PIXELS = 4096 * 4096
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
SMOOTH = gradient(48, 64)
JPEG, PROGRESSIVE = encode(NOISE, "JPEG"), encode(NOISE, "JPEG", progressive=True)
PNG = encode(NOISE, "PNG")


def rejection(image: bytes, max_pixels: int = MAX_PIXELS) -> RejectError:
    with pytest.raises(RejectError) as caught:
        images.decode(image, 28, 28, 3, max_pixels)
    return caught.value


@pytest.fixture
def undecoded(monkeypatch):
    """Returns what `rejection` does, after it made sure that no pixel was decoded and no memory taken for any."""

    def refuse(*_):
        pytest.fail("a pixel was decoded")

    monkeypatch.setattr(jpegs, "pixels", refuse)
    monkeypatch.setattr(pngs, "_unpacked", refuse)

    def rejected(image: bytes, max_pixels: int = MAX_PIXELS) -> RejectError:
        tracemalloc.start()
        found = rejection(image, max_pixels)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak_bytes < 2 * len(image) + 1_000_000
        return found

    return rejected


def png_that_claims(height: int, width: int, bits: int = 8, rows: bytes = bytes(10)) -> bytes:
    return png_header(height, width, bits, 2) + png_chunk(b"IDAT", zlib.compress(rows)) + PNG_END


def jpeg_that_claims(height: int, width: int, image: bytes = JPEG) -> bytes:
    frame = image.index(b"\xff\xc0")
    return image[: frame + 5] + struct.pack(">HH", height, width) + image[frame + 9 :]


def end_of_scan(image: bytes) -> int:
    """Where the first scan ends."""
    found = jpegs.MARKER.search(image, image.index(b"\xff\xda") + 2)
    assert found
    return found.start()


@pytest.mark.parametrize("side", [4_097, 20_000, 60_000])
@pytest.mark.parametrize("claim", [png_that_claims, jpeg_that_claims])
def test_more_pixels_than_allowed(claim, side, undecoded):
    assert undecoded(claim(side, side)).reason is Reason.OVERSIZED_IMAGE


@pytest.mark.parametrize("size", [(MAX_SIDE_PX + 1, 1), (1, MAX_SIDE_PX + 1), (49_999_999, 1), (1, 49_999_999)])
def test_a_side_too_long(size, undecoded):
    assert undecoded(png_that_claims(*size), max_pixels=10**9).reason is Reason.OVERSIZED_IMAGE


def test_the_longest_side_is_decoded():
    for size in ((MAX_SIDE_PX, 1), (1, MAX_SIDE_PX)):
        for format_ in ("PNG", "JPEG"):
            assert (images.decode(encode(Image.new("RGB", size, "red"), format_), 8, 8, 1, MAX_PIXELS) == 76).all()


@pytest.mark.parametrize("format_", ["JPEG", "PNG"])
def test_the_bound_on_pixels_is_the_largest_allowed(format_, undecoded, monkeypatch):
    image = encode(gradient(30, 20), format_)
    assert undecoded(image, max_pixels=599).reason is Reason.OVERSIZED_IMAGE
    monkeypatch.undo()
    assert images.decode(image, 16, 16, 3, max_pixels=600).shape == (16, 16, 3)


def test_pixels_of_sixteen_bits_count_twice(undecoded, monkeypatch):
    image = png_of(np.zeros((30, 20, 3), np.uint16))
    assert undecoded(image, max_pixels=1199).reason is Reason.OVERSIZED_IMAGE
    monkeypatch.undo()
    assert images.decode(image, 16, 16, 3, max_pixels=1200).shape == (16, 16, 3)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_png_that_is_too_short_for_its_pixels_is_not_inflated(bits, undecoded):
    found = undecoded(png_that_claims(2_000, 2_000, bits))
    assert found.reason is Reason.UNDECODABLE_IMAGE
    assert "cannot hold 2000 x 2000 pixels" in found.message


def test_a_jpeg_that_is_too_short_for_its_pixels_is_not_decoded(undecoded):
    found = undecoded(jpeg_that_claims(2_000, 4_000))
    assert found.reason is Reason.UNDECODABLE_IMAGE
    assert "cannot hold 2000 x 4000 pixels" in found.message


def test_the_smallest_file_for_its_pixels_is_decoded():
    blank = Image.new("L", (2048, 2048), 128)
    sequential = encode(blank, "JPEG", optimize=True)
    assert 2048 * 2048 / 64 / 4 / len(sequential) > 0.95  # two bits a block
    for image in (encode(blank, "PNG"), sequential):
        assert (images.decode(image, 8, 8, 1, MAX_PIXELS) == 128).all()
    progressive = encode(blank, "JPEG", progressive=True)
    first_scan = progressive[: end_of_scan(progressive)] + b"\xff\xd9"
    assert 2048 * 2048 / 64 / 8 / len(first_scan) > 0.95  # a bit a block is what the bound assumes
    assert (images.decode(first_scan, 8, 8, 1, MAX_PIXELS) == 128).all()


def test_more_is_never_inflated_than_the_pixels_take(undecoded):
    bomb = png_that_claims(48, 64, rows=bytes(50_000_000))
    with pytest.raises(pytest.fail.Exception):  # it has all of its pixels, and would be decoded
        undecoded(bomb)
    tracemalloc.stop()
    tracemalloc.start()
    parsed = pngs.parse(bomb, MAX_PIXELS)
    assert len(pngs._inflated(parsed)) == 48 * (1 + 64 * 3) + 1
    assert tracemalloc.get_traced_memory()[1] < 500_000
    tracemalloc.stop()


def scans(image: bytes, count: int) -> bytes:
    last = image[image.rindex(b"\xff\xda") : -2]
    return image[:-2] + last * (count - image.count(b"\xff\xda")) + image[-2:]


def test_too_many_scans(undecoded):
    found = undecoded(scans(PROGRESSIVE, MAX_SCANS + 1))
    assert (found.reason, found.message) == (Reason.OVERSIZED_IMAGE, f"the JPEG has more than {MAX_SCANS} scans")
    assert undecoded(scans(PROGRESSIVE, 100_000)).message == found.message


def test_as_many_scans_as_allowed_may_be_there():
    dc_only = encode(NOISE.convert("CMYK"), "JPEG", progressive=True)  # the most that libjpeg writes
    assert dc_only.count(b"\xff\xda") == 18
    assert images.decode(dc_only, 28, 28, 3, MAX_PIXELS).shape == (28, 28, 3)
    jpegs.parse(scans(PROGRESSIVE, MAX_SCANS), MAX_PIXELS)


@pytest.mark.parametrize("marker", [0xFE, 0xE1, 0xE2, 0xC4, 0xDB, 0xDD, 0xCC])
@pytest.mark.parametrize("image", [JPEG, PROGRESSIVE], ids=["baseline", "progressive"])
def test_too_many_segments(image, marker, undecoded):
    many = jpeg_segment(marker, b"") * (MAX_PARTS + 1)
    assert undecoded(image[:2] + many + image[2:]).reason is Reason.OVERSIZED_IMAGE
    last = image.rindex(b"\xff\xda")
    assert undecoded(image[:last] + many + image[last:]).reason is Reason.OVERSIZED_IMAGE
    assert undecoded(image[:-2] + many + image[-2:]).reason is Reason.OVERSIZED_IMAGE


@pytest.mark.parametrize("kind", [b"IDAT", b"tEXt", b"fdAT"])
def test_too_many_chunks(kind, undecoded):
    many = png_chunk(kind, b"") * MAX_PARTS
    assert undecoded(PNG[:33] + many + PNG[33:]).reason is Reason.OVERSIZED_IMAGE


def test_pixels_in_many_small_chunks_are_decoded():
    parsed = pngs.parse(PNG, MAX_PIXELS)
    size = len(parsed.compressed) // 1_000 + 1
    pieces = [parsed.compressed[start : start + size] for start in range(0, len(parsed.compressed), size)]
    image = PNG[:33] + b"".join(png_chunk(b"IDAT", piece) for piece in pieces) + PNG_END
    assert np.array_equal(images.decode(image, 48, 64, 3, MAX_PIXELS), np.asarray(NOISE))


UNSUPPORTED = {0xC3: "lossless", 0xC5: "hierarchical", 0xC9: "arithmetic-coded", 0xCA: "arithmetic-coded"}


@pytest.mark.parametrize(("marker", "kind"), UNSUPPORTED.items())
def test_kinds_of_jpeg_that_are_not_decoded(marker, kind, undecoded):
    found = undecoded(JPEG.replace(b"\xff\xc0", bytes([0xFF, marker])))
    assert (found.reason, kind in found.message) == (Reason.UNDECODABLE_IMAGE, True)


def damaged_frame(offset: int, value: int) -> bytes:
    frame = JPEG.index(b"\xff\xc0")
    return JPEG[: frame + offset] + bytes([value]) + JPEG[frame + offset + 1 :]


@pytest.mark.parametrize(
    "image",
    [
        damaged_frame(4, 12),  # bits
        damaged_frame(9, 2),  # components
        damaged_frame(9, 0),
        damaged_frame(3, 8),  # length
        damaged_frame(11, 0),  # subsampling
        damaged_frame(14, 0x15),
        jpeg_that_claims(0, 64),  # the height follows in DNL
        jpeg_that_claims(48, 0),
        JPEG[:2] + JPEG[JPEG.index(b"\xff\xda") :],  # a scan of nothing
        JPEG[:2],
        JPEG[:2] + JPEG[-2:],
        JPEG[: JPEG.index(b"\xff\xda")] + JPEG[-2:],
        JPEG[: JPEG.index(b"\xff\xda")] + jpeg_segment(0xDA, b"") + JPEG[-2:],
        JPEG[: JPEG.index(b"\xff\xc0")] * 2 + JPEG[2:],
        JPEG[:-2] + JPEG[2:],  # two frames
        JPEG[:2] + b"\xff\xe0\0\1" + JPEG[2:],
    ],
)
def test_senseless_jpegs(image, undecoded):
    assert undecoded(image).reason is Reason.UNDECODABLE_IMAGE


@pytest.mark.parametrize("colors", [0, 2, 3, 4, 6])
def test_senseless_headers_of_a_png(colors, undecoded):
    rest = PNG[33:]
    for bits in (0, 3, 5, 32, 255):
        assert undecoded(png_header(48, 64, bits, colors) + rest).reason is Reason.UNDECODABLE_IMAGE
    for size in ((0, 64), (48, 0), (0, 0)):
        assert undecoded(png_header(*size, 8, colors) + rest).reason is Reason.UNDECODABLE_IMAGE
    if colors == 3:
        assert "palette" in undecoded(png_header(48, 64, 8, 3) + rest).message
        assert "palette" in undecoded(png_header(48, 64, 8, 3) + png_chunk(b"PLTE", b"ab") + rest).message
        assert "palette" in undecoded(png_header(48, 64, 8, 3) + png_chunk(b"PLTE", bytes(771)) + rest).message


def test_senseless_pngs(undecoded):
    methods = [PNG[16:26] + bytes(bytes_) for bytes_ in ([1, 0, 0], [0, 1, 0], [0, 64, 0], [0, 0, 2])]
    for image in (
        *(PNG[:8] + png_chunk(b"IHDR", header) + PNG[33:] for header in methods),
        PNG[:8],
        PNG[:20],
        PNG[:8] + PNG[33:],
        PNG[:8] + png_chunk(b"CgBI", bytes(4)) + PNG[8:],  # Apple's own kind
        PNG[:33] + png_chunk(b"NEWc", b"") + PNG[33:],  # critical, so that nobody may step over it
        PNG[:33] + PNG_END,
        png_header(48, 64, 8, 1) + PNG[33:],
    ):
        assert undecoded(image).reason is Reason.UNDECODABLE_IMAGE


@pytest.mark.parametrize("interlace", [False, True])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
def test_a_png_without_all_its_rows(mode, interlace):
    whole = encode(NOISE.convert("L").convert("I;16") if mode == "I;16" else NOISE.convert(mode), "PNG")
    start = PNG[:8] + png_chunk(b"IHDR", whole[16:28] + bytes([interlace])) + whole[33 : whole.index(b"IDAT") - 4]

    def image(rows: bytes) -> bytes:
        return start + png_chunk(b"IDAT", zlib.compress(rows)) + PNG_END

    size = pngs._expected_bytes(pngs.parse(image(b""), MAX_PIXELS))
    for kept in (size - 1, size // 2, 5, 0):
        found = rejection(image(bytes(kept)))
        assert found.reason is Reason.UNDECODABLE_IMAGE
        assert "cut off" in found.message
    assert images.decode(image(bytes(size)), 28, 28, 3, MAX_PIXELS).shape == (28, 28, 3)


def test_a_png_cut_anywhere_is_rejected():
    idat_end = PNG.rindex(b"IEND") - 4
    for cut in range(0, idat_end, 97):
        assert rejection(PNG[:cut]).reason is Reason.UNDECODABLE_IMAGE
    assert rejection(PNG[: idat_end - 1]).reason is Reason.UNDECODABLE_IMAGE


def test_a_bit_flipped_in_what_is_used_of_a_png_is_found():
    generator = np.random.default_rng(0)
    for place in generator.integers(16, PNG.rindex(b"IEND"), 300):
        flipped = bytearray(PNG)
        flipped[place] ^= 1 << int(generator.integers(8))
        found = rejection(bytes(flipped))
        assert found.reason in (Reason.UNDECODABLE_IMAGE, Reason.OVERSIZED_IMAGE)
        assert place < 33 or found.reason is Reason.UNDECODABLE_IMAGE


@pytest.mark.parametrize("kind", [b"PLTE", b"tRNS", b"sBIT", b"eXIf", b"IDAT"])
def test_a_message_names_the_damaged_chunk(kind):
    image = PNG[:33] + png_chunk(kind, bytes(3))[:-1] + b"\1" + PNG[33:]
    assert rejection(image).message == f"the PNG's chunk {kind.decode()} is damaged: wrong checksum"


def test_pixels_that_a_right_checksum_covers_may_be_damaged_all_the_same():
    parsed = pngs.parse(PNG, MAX_PIXELS)
    damaged = parsed.compressed[:-1] + bytes([parsed.compressed[-1] ^ 1])  # the stream's own checksum
    for compressed in (damaged, parsed.compressed[:-4], b"junk" * 500):
        image = PNG[:33] + png_chunk(b"IDAT", compressed) + PNG_END
        assert rejection(image).reason is Reason.UNDECODABLE_IMAGE
    rows = bytearray(zlib.decompress(parsed.compressed))
    rows[0] = 5  # there are filters 0 to 4
    image = PNG[:33] + png_chunk(b"IDAT", zlib.compress(rows)) + PNG_END
    assert rejection(image).reason is Reason.UNDECODABLE_IMAGE


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}])
@pytest.mark.parametrize("ending", [b"", b"\xff\xd9"])
def test_a_jpeg_cut_anywhere_is_rejected(mode, options, ending):
    image = encode(NOISE.convert(mode), "JPEG", **options)
    first = image.index(b"\xff\xda")
    # Further scans of a progressive JPEG refine what the first holds; a file may end before them.
    refined = "progressive" in options and ending
    last = end_of_scan(image) if refined else len(image)
    for cut in (2, 30, first, first + 20, *range(first + 30, last - 12, (last - first) // 12)):
        assert rejection(image[:cut] + ending).reason is Reason.UNDECODABLE_IMAGE


def test_a_jpeg_without_one_of_its_colors_is_rejected():
    for options in ({}, {"progressive": True}):
        grey = encode(NOISE.convert("L"), "JPEG", **options)
        frame = grey.index(b"\xff\xc2" if options else b"\xff\xc0")
        three = jpeg_segment(grey[frame + 1], grey[frame + 4 : frame + 9] + b"\3\1\x11\0\2\x11\0\3\x11\0")
        assert "not all of its colors" in rejection(grey[:frame] + three + grey[frame + 13 :]).message


@pytest.mark.parametrize("flip", range(4))
def test_compressed_data_of_a_jpeg_that_does_not_fit_the_picture(flip):
    first = JPEG.index(b"\xff\xda") + 14
    damaged = JPEG[: first + 200 * flip] + b"\xff\0" * 40 + JPEG[first + 200 * flip :]
    assert rejection(damaged).reason is Reason.UNDECODABLE_IMAGE


def test_unusual_subsampling_is_decoded_by_pillow():
    """Brightness sampled 4 x 2 and colors once, which libjpeg-turbo's own interface refuses.

    All blocks of a grey picture are the same two bits, so that their order does not matter, only their number.
    """
    grey = encode(Image.new("RGB", (64, 32), (128, 128, 128)), "JPEG", subsampling=0, optimize=True)
    image = bytearray(jpeg_that_claims(48, 96, grey))
    image[image.index(b"\xff\xc0") + 11] = 0x42
    with pytest.raises(ValueError, match="subsampling"):
        jpegs._decode(jpegs.parse(bytes(image), MAX_PIXELS).file, "RGB")
    for channels in (1, 3):
        assert (images.decode(bytes(image), 48, 96, channels, MAX_PIXELS) == 128).all()
