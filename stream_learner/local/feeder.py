"""A data set to a topic: in which order, how fast, and nothing lost without a word."""

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from threading import Event
from typing import NamedTuple

import numpy as np
from kafka import KafkaProducer

from stream_learner.config import MIB, KafkaSettings
from stream_learner.local.datasets import Dataset
from stream_learner.streams import offsets
from stream_learner.streams.connection import client_config, connect, kafka_failures

# kafka-python bounds neither what waits to be sent nor what waits to be acknowledged.
MAX_UNACKNOWLEDGED_BYTES = 64 * MIB
MAX_RECORD_BYTES = 17 * MIB
PROGRESS_EVERY_S = 0.1
# Standard deviation of a class's moment in the stream, in widths of a class.
DRIFT_WIDTH = 1.0

Order = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""Class index of each example to the examples' indices in the order in which they are sent, each once."""


def shuffled(targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """All classes mixed, as if the stream were stationary."""
    return rng.permutation(len(targets))


def by_class(targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One class after the other, shuffled inside: the hardest case of incremental learning."""
    mixed = rng.permutation(len(targets))
    return mixed[np.argsort(targets[mixed], kind="stable")]


def drifting(targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The mix of classes changes smoothly: each class comes and goes as a Gaussian (Shanahan et al. 2021)."""
    return np.argsort(rng.normal(targets, DRIFT_WIDTH), kind="stable")


ORDERS: dict[str, Order] = {"shuffled": shuffled, "by_class": by_class, "drifting": drifting}


class Fed(NamedTuple):
    """What a feed did: records acknowledged, and the end offset of each partition after them."""

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
    on_progress: Callable[[int], None] = lambda _: None,
    stop: Event | None = None,
) -> Fed:
    """Sends `epochs` passes over a data set, each in a new order; at most `limit` records in all.

    A record is in the plain form: the image as value, the id as key (so it chooses the partition) and header, the
    label as header, and the split of an example that is held out. `rate` is in records/s; None is as fast as it goes.
    `on_progress` gets the number of acknowledged records now and then and at the end. Once `stop` is set nothing more
    is sent, and what was sent is awaited.
    Raises KafkaUnavailableError when a record is not acknowledged, TopicsError when there is no such topic.
    """
    offsets.bounds(kafka, [topic])  # refuses a topic that is missing before anything is read
    indices = itertools.islice(_schedule(dataset, order, seed, epochs), limit)
    with kafka_failures(kafka, f"feeding {topic}", "Write"):
        records = _produce(dataset, indices, kafka, topic, rate, on_progress, stop or Event())
    return Fed(records, offsets.bounds(kafka, [topic])[1][topic])


def _schedule(dataset: Dataset, order: Order, seed: int, epochs: int) -> Iterator[int]:
    targets = np.asarray(dataset.targets)
    for epoch in range(epochs):
        yield from order(targets, np.random.default_rng([seed, epoch])).tolist()


def _produce(
    dataset: Dataset,
    indices: Iterator[int],
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
    unacknowledged_bytes = acknowledged = 0
    started = shown = time.monotonic()
    try:
        for sent, index in enumerate(indices):
            # A schedule, so that what one record is late the next ones make up for.
            ahead_s = started + sent / rate - time.monotonic() if rate else 0.0
            if stop.wait(ahead_s) if ahead_s > 0 else stop.is_set():
                break
            example = dataset[index]
            key = example.id.encode(errors="surrogateescape")  # a file's name need not be UTF-8
            headers = [("label", example.label.encode()), ("id", key)]
            headers += [("split", example.split.encode())] if example.split else []
            unacknowledged.append((producer.send(topic, example.image, key, headers), len(example.image)))
            unacknowledged_bytes += len(example.image)
            while unacknowledged and (unacknowledged[0][0].is_done or unacknowledged_bytes > MAX_UNACKNOWLEDGED_BYTES):
                future, size = unacknowledged.popleft()
                future.get(delivery_s)
                unacknowledged_bytes -= size
                acknowledged += 1
            if time.monotonic() - shown > PROGRESS_EVERY_S:
                on_progress(acknowledged)
                shown = time.monotonic()
        for future, _ in unacknowledged:
            future.get(delivery_s)
        acknowledged += len(unacknowledged)
        on_progress(acknowledged)
    finally:
        producer.close(delivery_s)
    return acknowledged
