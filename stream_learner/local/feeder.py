"""Feed a data set to a topic, with a choice of order and rate. A record that is not acknowledged raises an error."""

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from threading import Event
from typing import NamedTuple

import numpy as np
from kafka import KafkaProducer

from stream_learner.config import MIB, KafkaSettings
from stream_learner.formats.record import Fields
from stream_learner.local.datasets import Dataset, Example
from stream_learner.streams import offsets
from stream_learner.streams.connection import client_config, connect, kafka_failures

# kafka-python does not limit the records that wait to be sent or acknowledged.
MAX_UNACKNOWLEDGED_BYTES = 64 * MIB
MAX_RECORD_BYTES = 17 * MIB
PROGRESS_EVERY_S = 0.1
# Standard deviation of a class's positions in the stream. The centres of adjacent classes are 1 apart.
DRIFT_WIDTH = 1.0

Order = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""Takes the class index of each example. Returns the indices of the examples in sending order."""


def shuffled(targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mix all classes, as in a stationary stream."""
    return rng.permutation(len(targets))


def by_class(targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Send one class after the other, each shuffled. This is the hardest case of incremental learning."""
    mixed = rng.permutation(len(targets))
    return mixed[np.argsort(targets[mixed], kind="stable")]


def drifting(targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change the mix of classes smoothly: each class rises and falls as a Gaussian (Shanahan et al. 2021)."""
    return np.argsort(rng.normal(targets, DRIFT_WIDTH), kind="stable")


ORDERS: dict[str, Order] = {"shuffled": shuffled, "by_class": by_class, "drifting": drifting}


class Message(NamedTuple):
    """A message to send, and the number of records in it."""

    value: bytes
    key: bytes | None
    headers: list[tuple[str, bytes]]
    records: int


class Fed(NamedTuple):
    """Result of a feed: the number of acknowledged records, and the end offset of each partition after the feed."""

    records: int
    end_offsets: dict[int, int]


def feed(
    dataset: Dataset,
    kafka: KafkaSettings,
    topic: str,
    *,
    order: Order = shuffled,
    seed: int = 0,
    epochs: int = 1,
    limit: int | None = None,
    rate: float | None = None,
    rows: int = 1,
    on_progress: Callable[[int, int], None] = lambda *_: None,
    stop: Event | None = None,
) -> Fed:
    """Send `epochs` passes over a data set, each in a new order, and at most `limit` records in total.

    A record is in the plain format: the image as value, the id as key and header, the label as header, and the split of
    a held-out example as header. The key chooses the partition. If `rows` is above 1, each message holds that number of
    records in the Arrow format, and has no key. `rate` is in records/s, None for no limit. `on_progress(acknowledged,
    total)` is called several times a second and at the end. Once `stop` is set, no more records are sent, and the
    function returns when all sent records are acknowledged.

    Raises KafkaUnavailableError when a record is not acknowledged, TopicsError when the topic is missing.
    """
    offsets.bounds(kafka, [topic])  # raises TopicsError for a missing topic before any image is read
    indices = itertools.islice(_schedule(dataset, order, seed, epochs), limit)
    total = min(len(dataset) * epochs, limit or len(dataset) * epochs)
    with kafka_failures(kafka, f"feeding {topic}", "Write"):
        messages = _messages(dataset, indices, rows)
        records = _produce(messages, kafka, topic, rate, lambda done: on_progress(done, total), stop or Event())
    return Fed(records, offsets.bounds(kafka, [topic])[1][topic])


def _schedule(dataset: Dataset, order: Order, seed: int, epochs: int) -> Iterator[int]:
    targets = np.asarray(dataset.targets)
    for epoch in range(epochs):
        yield from order(targets, np.random.default_rng([seed, epoch])).tolist()


def _messages(dataset: Dataset, indices: Iterator[int], rows: int) -> Iterator[Message]:
    if rows == 1:
        yield from (_plain(dataset[index]) for index in indices)
        return
    from stream_learner.formats import arrow

    while chosen := [dataset[index] for index in itertools.islice(indices, rows)]:
        fields = [Fields(x.image, x.label, split=x.split or None, id=_id(x)) for x in chosen]
        yield Message(arrow.encode(fields), None, [], len(fields))


def _plain(example: Example) -> Message:
    key = _id(example)
    headers = [("label", example.label.encode()), ("id", key)]
    headers += [("split", example.split.encode())] if example.split else []
    return Message(example.image, key, headers, 1)


def _id(example: Example) -> bytes:
    return example.id.encode(errors="surrogateescape")  # a file's name may not be UTF-8


def _produce(
    messages: Iterator[Message],
    kafka: KafkaSettings,
    topic: str,
    rate: float | None,
    on_progress: Callable[[int], None],
    stop: Event,
) -> int:
    delivery_s = 2 * kafka.request_timeout_s
    config = client_config(kafka) | {
        "enable_idempotence": True,
        "acks": "all",
        "batch_size": 512 * 1024,
        "linger_ms": 20,
        "max_request_size": MAX_RECORD_BYTES,
        "delivery_timeout_ms": int(delivery_s * 1000),
        "max_block_ms": int(delivery_s * 1000),
    }
    producer: KafkaProducer = connect(KafkaProducer, config)
    unacknowledged = deque()
    unacknowledged_bytes = acknowledged = sent = 0
    started = shown = time.monotonic()
    try:
        while True:
            # Send times count from the start, so that one late record does not delay the later records.
            ahead_s = started + sent / rate - time.monotonic() if rate else 0.0
            if stop.wait(ahead_s) if ahead_s > 0 else stop.is_set():
                break
            if (message := next(messages, None)) is None:
                break
            unacknowledged.append((producer.send(topic, *message[:3]), message))
            unacknowledged_bytes += len(message.value)
            sent += message.records
            while unacknowledged and (unacknowledged[0][0].is_done or unacknowledged_bytes > MAX_UNACKNOWLEDGED_BYTES):
                future, message = unacknowledged.popleft()
                future.get(delivery_s)
                unacknowledged_bytes -= len(message.value)
                acknowledged += message.records
            if time.monotonic() - shown > PROGRESS_EVERY_S:
                on_progress(acknowledged)
                shown = time.monotonic()
        for future, message in unacknowledged:
            future.get(delivery_s)
            acknowledged += message.records
        on_progress(acknowledged)
    finally:
        producer.close(delivery_s)
    return acknowledged
