"""Images to learn, in memory and in a topic that was filled before it is read."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from stream_learner.config import KafkaSettings
from stream_learner.local.broker import Broker
from stream_learner.local.datasets import Dataset, open_dataset
from stream_learner.local.feeder import feed

TOPIC = "images"
IMAGES = 10_000
CLASSES = 10
RECORDS = 400_000


def images(data: str) -> Dataset:
    """Return `png`, `jpeg` (images made up by this module) or 10,000 mixed images of the data set in a folder."""
    if data in MADE_UP:
        return _made_up(data, *MADE_UP[data])
    dataset = open_dataset(Path(data))
    indices = np.random.default_rng(0).permutation(len(dataset))[:IMAGES].tolist()
    targets, ids = [dataset.targets[i] for i in indices], [dataset.ids[i] for i in indices]
    return replace(dataset, targets=targets, ids=ids, read=[dataset.read(i) for i in indices].__getitem__)


def fill(broker: Broker, dataset: Dataset, on_progress: Callable[[int, int], None]) -> None:
    """Fill the topic with at least RECORDS records: the data set repeatedly, in one order."""
    kafka: KafkaSettings = broker.settings
    epochs = -(-RECORDS // len(dataset))
    feed(
        dataset, kafka, TOPIC, order=lambda targets, _: np.arange(len(targets)), epochs=epochs, on_progress=on_progress
    )


def _made_up(name: str, side_px: int, channels: int, encode: Callable[[Image.Image], bytes]) -> Dataset:
    """Return a smooth pattern for each class, with noise. About as costly to decode as MNIST and CIFAR-10."""
    random = np.random.default_rng(0)
    patterns = random.integers(64, 192, (CLASSES, 8, 8, channels))
    targets = random.integers(CLASSES, size=IMAGES).tolist()
    encoded = []
    for target in targets:
        pixels_HWC = (patterns[target] + random.integers(-64, 64, (8, 8, channels))).astype(np.uint8)
        image = Image.fromarray(pixels_HWC.squeeze(2) if channels == 1 else pixels_HWC)
        encoded.append(encode(image.resize((side_px, side_px), Image.Resampling.BICUBIC)))
    labels, ids = [str(label) for label in range(CLASSES)], [str(index) for index in range(IMAGES)]
    title = f"{name}{side_px}"
    return Dataset(title, labels, True, targets, ids, side_px, side_px, 1 if channels == 1 else 3, encoded.__getitem__)


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    # Most pixels of MNIST and Fashion-MNIST are background.
    pixels_HW = np.asarray(image)
    Image.fromarray(np.where(pixels_HW > 128, pixels_HW, 0).astype(np.uint8)).save(file, "png")
    return file.getvalue()


def _jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "jpeg", quality=90)
    return file.getvalue()


MADE_UP = {"png": (28, 1, _png), "jpeg": (32, 3, _jpeg)}
