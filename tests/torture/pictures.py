"""Pictures that the torture test feeds."""

import io
from itertools import cycle
from random import Random
from typing import Any, NamedTuple

import numpy as np
from feed import Images, classes, png
from PIL import Image

from stream_learner.local.datasets import Dataset

PICTURES = 2000
MAX_SIDE_PX = 16


class Pictures(NamedTuple):
    """Images to feed, and the settings of a model for them."""

    images: Images
    settings: dict[str, Any]


def small_pictures(dataset: Dataset, random: Random) -> Pictures:
    """Some of a data set's pictures, of every class in turn, no larger than a cheap model needs."""
    height, width = min(dataset.height, MAX_SIDE_PX), min(dataset.width, MAX_SIDE_PX)
    of_class: dict[int, list[int]] = {}
    for index in random.sample(range(len(dataset)), len(dataset)):
        of_class.setdefault(dataset.targets[index], []).append(index)
    turns = [cycle(indices) for indices in of_class.values()]
    # Three of a class at a time: as `good` wants them.
    chosen = [next(turn) for _ in range(max(1, PICTURES // (3 * len(turns)))) for turn in turns for _ in range(3)]
    images = [(_shrunk(dataset[i].image, height, width, dataset.channels), dataset[i].label.encode()) for i in chosen]
    return Pictures(
        images,
        {
            "model.height": height,
            "model.width": width,
            "model.channels": dataset.channels,
            "model.max_classes": classes(images),
        },
    )


def _shrunk(image: bytes, height: int, width: int, channels: int) -> bytes:
    with Image.open(io.BytesIO(image)) as picture:
        return png(np.asarray(picture.convert("L" if channels == 1 else "RGB").resize((width, height))))
