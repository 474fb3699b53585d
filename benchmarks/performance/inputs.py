"""Images to learn, in memory and in topics that are filled before they are read."""

import io
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from confluent_kafka import Producer
from kafka import KafkaAdminClient
from PIL import Image
from rich.progress import Progress

from benchmarks.performance.rounds import console
from stream_learner import config
from stream_learner.errors import DataError
from stream_learner.local.broker import Broker
from stream_learner.local.datasets import Dataset, Example, open_dataset
from stream_learner.streams import offsets, topics
from stream_learner.streams.connection import ask

IMAGES = 10_000
CLASSES = 10
RECORDS = 400_000
COMMENT = b"\xff\xfe"
MAX_COMMENT_BYTES = 65_533
PRODUCER = {"linger.ms": 20, "batch.size": 1_000_000, "message.max.bytes": 16_000_000}


class Topics:
    """Filled topics of a broker that starts when the first one is needed. Each topic is filled once."""

    def __init__(self, stack: ExitStack):
        """`stack` stops the broker and deletes its data."""
        self._stack = stack
        self._broker: Broker | None = None
        self._filled: set[str] = set()

    @property
    def broker(self) -> Broker:
        if self._broker is None:
            folder = Path(self._stack.enter_context(TemporaryDirectory()))
            self._broker = self._stack.enter_context(Broker(folder / "kafka"))
        return self._broker

    def fill(
        self, topic: str, examples: Sequence[Example], records: int, partitions: int = 1, empty: int = 0
    ) -> Broker:
        """Fill a topic with the examples repeatedly, in one order. Its last `empty` partitions get none."""
        if topic not in self._filled:
            kafka = [f"kafka.bootstrap_servers={self.broker.bootstrap_servers}", f"input.topics=['{topic}']"]
            topics.create(config.load(None, [*kafka, "run.id=input"]), input_partitions=partitions)
            with Progress(console=console, transient=True) as progress:
                bar = progress.add_task(f"filling {topic}", total=records)
                self._produce(
                    topic, examples, records, partitions - empty, lambda done: progress.update(bar, completed=done)
                )
            os.sync()  # otherwise the disk is still busy when the measurement begins
            self._filled.add(topic)
        return self.broker

    def drop(self, topic: str) -> None:
        """Delete a topic."""
        self._filled.discard(topic)

        def delete(client: KafkaAdminClient) -> None:
            client.delete_topics([topic])

        ask(self.broker.settings, f"deleting {topic}", delete)

    def _produce(
        self,
        topic: str,
        examples: Sequence[Example],
        records: int,
        partitions: int,
        show: Callable[[int], None],
    ) -> None:
        producer = Producer(PRODUCER | {"bootstrap.servers": self.broker.bootstrap_servers})
        messages: list[tuple[bytes, bytes, list[tuple[str, str | bytes | None]]]] = [
            (e.image, e.id.encode(), [("label", e.label.encode()), ("id", e.id.encode())]) for e in examples
        ]
        for number in range(records):
            value, key, headers = messages[number % len(messages)]
            while True:
                try:
                    producer.produce(topic, value, key, number % partitions, headers=headers)
                    break
                except BufferError:  # librdkafka's queue is full
                    producer.poll(0.1)
            if number % 10_000 == 0:
                producer.poll(0)
                show(number)
        producer.flush()
        held = sum(offsets.bounds(self.broker.settings, [topic])[1][topic].values())
        if held != records:
            raise RuntimeError(f"the topic {topic} holds {held} of {records} records")


def images(data: str) -> Dataset:
    """Return `png`, `jpeg` (images made up by this module) or 10,000 mixed images of the data set in a folder.

    The labels of a data set become the numbers of its classes. Raises DataError for a data set that the loops cannot
    learn: they have 10 classes, and images of one size and square, because they do not resize.
    """
    if data in MADE_UP:
        side_px, channels, encode = MADE_UP[data]
        return _made_up(data, side_px, channels, encode)
    dataset = open_dataset(Path(data))
    if len(dataset.labels) > CLASSES:
        raise DataError(f"{data} has {len(dataset.labels)} classes; give a data set of at most {CLASSES}")
    indices = np.random.default_rng(0).permutation(len(dataset))[:IMAGES].tolist()
    encoded = [dataset.read(i) for i in indices]
    sizes = {Image.open(io.BytesIO(image)).size for image in encoded}
    if sizes != {(side_px := dataset.height, side_px)} or dataset.width != side_px:
        raise DataError(
            f"{data} has images of {len(sizes)} sizes, such as {max(sizes)}; give square images of one size"
        )
    labels, targets = [str(index) for index in range(CLASSES)], [dataset.targets[i] for i in indices]
    ids = [dataset.ids[i] for i in indices]
    return replace(dataset, labels=labels, targets=targets, ids=ids, read=encoded.__getitem__)


def jpegs(side_px: int, count: int) -> list[Example]:
    """Return JPEGs of this size."""
    return list(_made_up("jpeg", side_px, 3, _jpeg, count))


def noise(side_px: int, count: int) -> list[Example]:
    """Return RGB images that PNG cannot compress: a file takes about as many bytes as the pixels."""
    random = np.random.default_rng(0)
    found = []
    for index in range(count):
        file = io.BytesIO()
        pixels_HWC = random.integers(256, size=(side_px, side_px, 3), dtype=np.uint8)
        Image.fromarray(pixels_HWC).save(file, "png", compress_level=1)
        found.append(Example(file.getvalue(), str(index % CLASSES), str(index)))
    return found


def flat() -> list[Example]:
    """Return an image of one grey for each class: the smallest files."""
    found = []
    for label in range(CLASSES):
        file = io.BytesIO()
        Image.new("L", (28, 28), 20 * label).save(file, "png")
        found.append(Example(file.getvalue(), str(label), str(label)))
    return found


def padded(example: Example, size_bytes: int) -> Example:
    """Return a JPEG with comments after its first marker, so that the file has this size."""
    start, rest = example.image[:2], example.image[2:]
    missing, comments = size_bytes - len(example.image), []
    while missing > 4:
        length = min(missing, MAX_COMMENT_BYTES + 4)
        comments.append(COMMENT + (length - 2).to_bytes(2, "big") + bytes(length - 4))
        missing -= length
    return example._replace(image=start + b"".join(comments) + rest)


def _made_up(
    name: str, side_px: int, channels: int, encode: Callable[[Image.Image], bytes], count: int = IMAGES
) -> Dataset:
    """Return a smooth pattern for each class, with noise. About as costly to decode as MNIST and CIFAR-10."""
    random = np.random.default_rng(0)
    patterns = random.integers(64, 192, (CLASSES, 8, 8, channels))
    targets = random.integers(CLASSES, size=count).tolist()
    encoded = []
    for target in targets:
        pixels_HWC = (patterns[target] + random.integers(-64, 64, (8, 8, channels))).astype(np.uint8)
        image = Image.fromarray(pixels_HWC.squeeze(2) if channels == 1 else pixels_HWC)
        encoded.append(encode(image.resize((side_px, side_px), Image.Resampling.BICUBIC)))
    labels, ids = [str(label) for label in range(CLASSES)], [str(index) for index in range(count)]
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
