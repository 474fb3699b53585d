"""Speed of messages with many records (`input.format = "arrow"`), from their bytes to samples.

    python -m benchmarks.envelope [--seconds S] [--rounds N]

Each side decodes the same messages again and again, in one process and in two at the same time. `plain` are PNGs in
records of their own. The sides take turns in each round. Prints records per second: the median, lowest and highest.
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable
from typing import Annotated

import numpy as np
import typer

from stream_learner.config import Settings
from stream_learner.formats import Fields, Record, Rows
from stream_learner.formats.arrow import encode
from stream_learner.formats.decoder import Decoder
from stream_learner.formats.images import png

RECORDS = 4096
SIDES = {
    "pixels 28x28, 256 rows": (28, 256),
    "pixels 28x28, 4096 rows": (28, 4096),
    "pixels 8x8, 4096 rows": (8, 4096),
    "PNG 28x28, 256 rows": (28, -256),
    "plain PNG 28x28": (28, 0),
}
"""Side of the images in pixels, and rows in a message: negative for PNGs, 0 for a record with each."""


def messages(side: int, rows: int) -> list[Record]:
    """Return RECORDS records, each a training sample, with blocks of grey as in drawn digits."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (RECORDS, side // 4, side // 4), np.uint8)
    images = [np.kron(image, np.ones((4, 4), np.uint8))[:, :, None] for image in small]
    labels = [str(label) for label in rng.integers(0, 10, RECORDS)]
    if not rows:
        named = zip(images, labels, strict=True)
        return [_record(png(image), [("label", label.encode()), ("split", b"train")]) for image, label in named]
    pictures = [png(image) for image in images] if rows < 0 else images
    fields = [Fields(image, label, None, "train") for image, label in zip(pictures, labels, strict=True)]
    size = abs(rows)
    return [_record(encode(fields[start : start + size]), []) for start in range(0, RECORDS, size)]


def _record(value: bytes, headers: list[tuple[str, bytes | None]]) -> Record:
    return Record("images", 0, 0, 0, None, value, headers)


def decoder(side: int, rows: int) -> Decoder:
    chosen = {"topics": ["images"], "format": "arrow" if rows else "plain"}
    model = {"height": side, "width": side, "channels": 1}
    return Decoder.from_settings(Settings.model_validate({"run": {"id": "x"}, "input": chosen, "model": model}))


def decoded(decode: Decoder, record: Record) -> int:
    """Decode a message to samples, and return their number."""
    found = decode(record)
    if not isinstance(found, Rows):
        return 1
    for row in range(len(found.fields)):
        decode(record.at_row(row, found))
    return len(found.fields)


def speed(name: str, seconds: float) -> float:
    """Return the records decoded in a second, in this process."""
    decode, given = decoder(*SIDES[name]), messages(*SIDES[name])
    done, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds:
        done += sum(decoded(decode, record) for record in given)
    return done / passed


def measured(name: str, seconds: float, processes: int, run: Callable[..., list[float]]) -> float:
    return sum(run(speed, [(name, seconds)] * processes))


def main(seconds: Annotated[float, typer.Option()] = 1.0, rounds: Annotated[int, typer.Option()] = 3) -> None:
    found: dict[tuple[str, int], list[float]] = {}
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(speed, [("plain PNG 28x28", 0.1)] * 2)  # imports
        for _ in range(rounds):
            for name in SIDES:
                for processes in (1, 2):
                    speeds = found.setdefault((name, processes), [])
                    speeds.append(measured(name, seconds, processes, pool.starmap))
    for (name, processes), speeds in found.items():
        median = statistics.median(speeds)
        print(f"{name:26}{processes} processes  {median:10,.0f}/s  ({min(speeds):,.0f} to {max(speeds):,.0f})")


if __name__ == "__main__":
    typer.run(main)
