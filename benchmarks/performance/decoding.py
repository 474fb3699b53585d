"""The decoder of the worker, on records in memory."""

from collections.abc import Iterator
from functools import partial
from itertools import cycle

from benchmarks.performance import inputs
from benchmarks.performance.apart import measure_apart
from benchmarks.performance.rounds import TOPIC, Sides, Subject
from stream_learner import config
from stream_learner.formats.record import Record
from stream_learner.local.datasets import Example

IMAGES = 500
AT_ONCE = 50


def examples() -> dict[str, list[Example]]:
    """Return the images of each side: grey PNGs of 28 pixels, and RGB JPEGs of 32 and 224 pixels."""
    return {
        "png28": list(inputs.images("png"))[:IMAGES],
        "jpeg32": inputs.jpegs(32, IMAGES),
        "jpeg224": inputs.jpegs(224, IMAGES),
    }


def sides(subject: Subject) -> Sides:
    """Return a side for each kind of image, which the network gets in its own size."""
    return {
        name: partial(
            measure_apart,
            _decoded,
            [*subject.overrides(), f"model.height={size}", f"model.width={size}", f"model.channels={channels}"],
            images,
        )
        for (name, images), (size, channels) in zip(examples().items(), ((28, 1), (32, 3), (224, 3)), strict=True)
    }


def _decoded(overrides: list[str], images: list[Example]) -> Iterator[int]:
    """Decode records. Yield their number after each few."""
    from stream_learner.formats.decoder import Decoder

    decode = Decoder.from_settings(config.load(None, overrides))
    headers = [[("label", e.label.encode()), ("id", e.id.encode())] for e in images]
    records = cycle(
        Record(TOPIC, 0, i, 0, e.id.encode(), e.image, header)
        for i, (e, header) in enumerate(zip(images, headers, strict=True))
    )
    while True:
        for _ in range(AT_ONCE):
            decode(next(records))
        yield AT_ONCE
