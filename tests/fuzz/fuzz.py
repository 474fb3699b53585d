"""Damaged images through the whole decoder: each becomes a sample or a rejection, in bounded time and memory."""

import io
import resource
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np
from mutations import mutated
from PIL import Image
from sklearn.datasets import load_digits

from stream_learner.config import InputSettings, ModelSettings, RunSettings, Settings
from stream_learner.formats import images
from stream_learner.formats.decoder import Decoder
from stream_learner.formats.record import Record, RejectError, Rows, Sample
from stream_learner.local.datasets import open_dataset

SIDE_PX = 28
SLOW_S = 0.05
MAX_GROWTH_MIB = 64
MAX_OWN_BYTES = 64 * 1024
OWN_IMAGES = 200
EXIF_6 = b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
HEADERS = [("label", b"cat")]
ODD_HEADERS = ("label", "weight", "split", "id")

Decode = Callable[[Record], Sample | Rows | None]


@dataclass
class Report:
    inputs: int = 0
    decoded: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    crashes: list[str] = field(default_factory=list)
    """Whatever was raised that is no RejectError, with the number of the input."""
    slowest_ms: float = 0
    over_50_ms: int = 0
    peak_growth_mib: float = 0
    """Growth of the peak memory after the first tenth of the inputs."""

    @property
    def failed(self) -> bool:
        return bool(self.crashes) or self.over_50_ms > 0 or self.peak_growth_mib > MAX_GROWTH_MIB


def fuzz(images_: list[bytes], count: int, seed: int, decoders: list[Decode], advance: Callable[[], object]) -> Report:
    """Decode `count` mutated images. Input N of a seed does not depend on `count`."""
    report, peaks_mib = Report(), [0.0, 0.0]  # of the first tenth, which warms up, and of the rest
    for index in range(count):
        record = record_of(images_, seed, index)
        decode = decoders[index % len(decoders)]
        elapsed_s = min_s = timed(decode, record, index, report)
        # A busy machine stops any process now and then, so that a slowest one is timed again.
        for _ in range(3 if elapsed_s * 1000 > report.slowest_ms else 0):
            min_s = min(min_s, timed(decode, record, index, Report()))
        report.inputs += 1
        report.slowest_ms = max(report.slowest_ms, min_s * 1000)
        report.over_50_ms += min_s > SLOW_S
        if index % 10 == 0:
            part = index >= count // 10
            peaks_mib[part] = max(peaks_mib[part], resident_mib())
        advance()
    report.peak_growth_mib = round(peaks_mib[1] - peaks_mib[0], 1)
    return report


def timed(decode: Decode, record: Record, index: int, report: Report) -> float:
    """Decode a record, count what it became, and return the seconds it took."""
    sample, began = None, time.perf_counter()
    try:
        sample = decode(record)
    except RejectError as error:
        report.rejected[error.reason] += 1
    except Exception:  # noqa: BLE001
        report.crashes.append(f"input {index}: {traceback.format_exc()}")
    elapsed_s = time.perf_counter() - began
    if isinstance(sample, Sample):
        report.decoded += 1
        try:
            check(sample)
        except Exception:  # noqa: BLE001
            report.crashes.append(f"input {index}, decoded: {traceback.format_exc()}")
    return elapsed_s


def check(sample: Sample) -> None:
    """Check that the stored image decodes to the same pixels."""
    height, width, channels = sample.pixels_HWC.shape
    assert (height, width, sample.pixels_HWC.dtype) == (SIDE_PX, SIDE_PX, np.uint8)
    kept = images.stored(sample.image, sample.pixels_HWC)
    assert len(kept) <= sample.pixels_HWC.nbytes + images.HEADER_BYTES
    assert np.array_equal(images.decode(kept, height, width, channels, height * width), sample.pixels_HWC)


def record_of(images_: list[bytes], seed: int, index: int) -> Record:
    random = Random(f"{seed}/{index}")
    value, headers = mutated(images_, random), HEADERS
    if random.random() < 0.02:
        headers = [*HEADERS, (random.choice(ODD_HEADERS), random.randbytes(random.choice((0, 1, 8, 300))))]
    return Record("images", 0, index, 0, None, value, headers)


def decoders() -> list[Decode]:
    """For grey and for RGB."""
    return [
        Decoder.from_settings(
            Settings(
                run=RunSettings(id="fuzz"),
                input=InputSettings(topics=["images"]),
                model=ModelSettings(height=SIDE_PX, width=SIDE_PX, channels=channels),
            )
        )
        for channels in (1, 3)
    ]


def some_images(data: Path | None) -> list[bytes]:
    """Return digits and colors in the modes that JPEG and PNG have, and images of `data` if given."""
    digit = Image.fromarray((load_digits(return_X_y=True)[0][3].reshape(8, 8) * 15).astype(np.uint8)).resize(
        (SIDE_PX, SIDE_PX)
    )
    random = np.random.default_rng(0)
    colors = Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).resize((32, 32))
    found = []
    for picture in (digit, colors, colors.resize((SIDE_PX, SIDE_PX)), colors.resize((61, 40))):
        for mode in ("L", "RGB", "CMYK"):
            found += [encode(picture.convert(mode), "JPEG", **options) for options in JPEG_OPTIONS]
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
            found.append(encode(picture.convert(mode), "PNG"))
        found.append(encode(Image.fromarray(np.asarray(picture.convert("L"), np.uint16) * 257), "PNG"))
        found.append(encode(picture.quantize(4), "PNG", bits=2, transparency=b"\0\x80"))
        found.append(encode(picture.convert("RGB"), "PNG", transparency=(0, 0, 0), exif=EXIF_6, icc_profile=bytes(99)))
    found.append(encode(colors, "PNG", save_all=True, append_images=[colors.rotate(90)]))
    found.append(encode(colors, "MPO", save_all=True, append_images=[colors.rotate(90)]))
    if data:
        own = open_dataset(data)
        step = max(1, len(own) // OWN_IMAGES)
        found += [own[i].image for i in range(0, len(own), step) if len(own[i].image) <= MAX_OWN_BYTES]
    return found


JPEG_OPTIONS = (
    {},
    {"progressive": True},
    {"restart_marker_blocks": 1},
    {"exif": EXIF_6},
    {"quality": 100, "optimize": True},
)


def encode(picture: Image.Image, format_: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, format_, **options)
    return file.getvalue()


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
