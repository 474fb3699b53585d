import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from record_images import DIGITS_NHW, digit, encode, gradient, png_of

from stream_learner.contract.vocabulary import Reason
from stream_learner.formats import images
from stream_learner.formats.record import RejectError

MAX_PIXELS = 1_000_000
SIZES = [(1, 1), (1, 40), (40, 1), (7, 5), (16, 16), (33, 200)]


def decode(image: bytes, height: int = 16, width: int = 16, channels: int = 3) -> np.ndarray:
    return images.decode(image, height, width, channels, MAX_PIXELS)


def reason(image: bytes, max_pixels: int = MAX_PIXELS) -> Reason:
    with pytest.raises(RejectError) as caught:
        images.decode(image, 16, 16, 3, max_pixels)
    return caught.value.reason


def differs_by(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b).max())


FORMATS = [("JPEG", m) for m in ("L", "RGB", "CMYK")] + [("PNG", m) for m in ("1", "L", "LA", "P", "RGB", "RGBA")]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("format_", "mode"), FORMATS)
def test_any_size_and_colour_becomes_the_models(format_, mode, size, channels):
    pixels_HWC = decode(encode(gradient(*size).convert(mode), format_), channels=channels)
    assert pixels_HWC.shape == (16, 16, channels)
    assert pixels_HWC.dtype == np.uint8
    assert pixels_HWC.flags.c_contiguous


def test_a_digit_of_the_models_size_keeps_every_pixel():
    assert np.array_equal(decode(digit(3), 8, 8, 1)[:, :, 0], DIGITS_NHW[3])
    assert np.array_equal(decode(digit(3), 8, 8, 3), np.repeat(DIGITS_NHW[3][:, :, None], 3, axis=2))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_resizing_is_pillows_bilinear_filter(size, channels, mode):
    picture = gradient(*size)
    wanted = picture.convert(mode).resize((16, 16), Image.Resampling.BILINEAR)
    wanted_HWC = np.asarray(wanted).reshape(16, 16, channels)
    assert np.array_equal(decode(encode(picture, "PNG"), channels=channels), wanted_HWC)
    assert differs_by(decode(encode(picture, "JPEG", quality=100, subsampling=0), channels=channels), wanted_HWC) <= 6


def test_height_and_width_are_not_mixed_up():
    assert (
        decode(encode(gradient(30, 20), "PNG"), 30, 20)[:, :, 0].max(axis=0).tolist()
        == np.linspace(0, 255, 20).astype(np.uint8).tolist()
    )
    assert decode(encode(gradient(30, 20), "JPEG"), 12, 24).shape == (12, 24, 3)


def test_cmyk_keeps_its_colours():
    decoded = decode(encode(gradient(16, 16).convert("CMYK"), "JPEG", quality=100))
    assert differs_by(decoded, np.asarray(gradient(16, 16))) <= 12


def test_a_progressive_jpeg_is_a_jpeg():
    plain, progressive = (encode(gradient(16, 16), "JPEG", progressive=p) for p in (False, True))
    assert np.array_equal(decode(plain), decode(progressive))


@pytest.mark.parametrize("image", [b"x", b"cat.png", encode(gradient(8, 8), "GIF"), encode(gradient(8, 8), "BMP")])
def test_what_is_neither_jpeg_nor_png_is_rejected(image):
    with pytest.raises(RejectError, match=r"^not a JPEG or PNG$") as caught:
        decode(image)
    assert caught.value.reason is Reason.UNDECODABLE_IMAGE


REAL = [
    digit(0),
    encode(gradient(9, 21), "JPEG"),
    encode(gradient(9, 21).convert("CMYK"), "JPEG"),
    encode(gradient(9, 21).convert("P"), "PNG"),
    encode(gradient(9, 21).convert("L").convert("I;16"), "PNG"),
]


def never_fails(image: bytes) -> None:
    with contextlib.suppress(RejectError):
        assert decode(image, 8, 8).shape == (8, 8, 3)


@given(st.sampled_from([b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n"]), st.binary(max_size=200))
def test_arbitrary_bytes_are_an_image_or_a_rejection(start, rest):
    never_fails(start + rest)


@given(st.sampled_from(REAL), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=8))
def test_a_damaged_image_is_an_image_or_a_rejection(image, damage):
    damaged = bytearray(image)
    for place, value in damage:
        damaged[place % len(damaged)] = value
    never_fails(bytes(damaged))


def again(image: bytes, pixels_HWC: np.ndarray) -> bytes:
    """Store an image. It must decode to the same pixels, with their number as the limit."""
    stored = images.stored(image, pixels_HWC)
    height, width, channels = pixels_HWC.shape
    assert np.array_equal(images.decode(stored, height, width, channels, height * width), pixels_HWC)
    return stored


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("format_", "mode"), FORMATS)
def test_what_is_stored_gives_the_same_pixels_again(format_, mode, size, channels):
    image = encode(gradient(*size).convert(mode), format_)
    stored = again(image, decode(image, channels=channels))
    assert (stored == image) == (size == (16, 16))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_what_is_stored_of_sixteen_bits_gives_the_same_pixels_again(channels):
    image = png_of(np.full((16, 16, channels), 0x1234, np.uint16))
    assert again(image, decode(image)) != image


def test_bytes_that_are_no_picture_are_not_stored():
    image = encode(gradient(16, 16), "JPEG", comment=bytes(5000))
    pixels_HWC = decode(image)
    stored = images.stored(image, pixels_HWC)
    assert len(stored) < 1000
    assert np.array_equal(decode(stored), pixels_HWC)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_brought_to_the_models_as_an_encoded_image_is(channels):
    colored = np.array(gradient(33, 20).convert("RGB"))
    grey = np.array(gradient(40, 16).convert("L"))[..., None]
    batch = images.batch([colored, png_of(colored), grey, png_of(grey)], 16, 16, channels, MAX_PIXELS)
    assert batch.shape == (4, 16, 16, channels)
    assert np.array_equal(batch[0], batch[1])
    assert np.array_equal(batch[2], batch[3])
    assert images.batch([], 16, 16, channels, MAX_PIXELS).shape == (0, 16, 16, channels)


@pytest.mark.parametrize("pixels", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3))])
def test_an_array_that_is_no_pixels_is_called_so(pixels):
    with pytest.raises(ValueError, match="give encoded bytes, or uint8 pixels"):
        images.batch([pixels], 16, 16, 3, MAX_PIXELS)
