"""Topics with records, and sources that read them."""

from collections.abc import Callable

from confluent_kafka import Producer

from stream_learner.config import KafkaSettings
from stream_learner.contract.spans import Positions
from stream_learner.formats.record import Gap, Record
from stream_learner.streams.connection import ask
from stream_learner.streams.source import Source

POLL_S = 0.2
POLLS = 200

NewSource = Callable[..., Source]


def make_topic(kafka: KafkaSettings, name: str, partitions: int = 1) -> None:
    topic = {"num_partitions": partitions, "replication_factor": 1}
    ask(kafka, "making a topic", lambda admin: admin.create_topics({name: topic}, wait_for_metadata=True))


def ordered_producer(kafka: KafkaSettings) -> Producer:
    """A producer whose batches stay in order when a broker that has just made the topic refuses the first ones."""
    return Producer({"bootstrap.servers": kafka.bootstrap_servers, "enable.idempotence": True})


def produce(kafka: KafkaSettings, topic: str, values: list[bytes], partition: int = 0, *more: int) -> None:
    """Write the values to each of the partitions."""
    producer = ordered_producer(kafka)
    for written in (partition, *more):
        for value in values:
            producer.produce(topic, value, partition=written)
    producer.flush()


def read(source: Source, end: Positions) -> list[Record | Gap]:
    """Read a source until it stands at the `end` of every partition."""
    items: list[Record | Gap] = []
    at: Positions = {}
    for _ in range(POLLS):
        for item in source.poll(POLL_S):
            items.append(item)
            next_offset = item.offset + 1 if isinstance(item, Record) else item.next_offset
            assert next_offset > at.get(item.topic, {}).get(item.partition, -1)
            at.setdefault(item.topic, {})[item.partition] = next_offset
        if at == end:
            return items
    raise AssertionError(f"read to {at}, not to {end}")


def nothing_comes(source: Source) -> bool:
    return not any(list(source.poll(POLL_S)) for _ in range(5))


def values(items: list[Record | Gap], partition: int = 0) -> list[bytes | None]:
    return [item.value for item in items if isinstance(item, Record) and item.partition == partition]
