"""Writes records to the topics beside a run, one at a time or many."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from kafka import KafkaProducer

from stream_learner.config import AnySettings, KafkaSettings
from stream_learner.streams.bootstrap import connect
from stream_learner.streams.connection import client_config, kafka_failures
from stream_learner.streams.topics import topic_ids


def open_producer(settings: AnySettings, topic: str, **more: Any) -> KafkaProducer:
    """Open a producer for a topic beside a run. All in-sync replicas confirm its records.

    `more` holds further settings of the producer. Raises TopicsError when the topic is missing, KafkaUnavailableError.
    """
    topic_ids(settings, [topic])  # the producer would wait for a missing topic
    delivery_ms = int(delivery_s(settings.kafka) * 1000)
    config = client_config(settings.kafka) | {
        "acks": "all",
        "delivery_timeout_ms": delivery_ms,
        "max_block_ms": delivery_ms,
        "metrics_enabled": False,
    }
    with write_failures(settings.kafka, topic):
        return connect(KafkaProducer, config | more)


def write_failures(kafka: KafkaSettings, topic: str) -> AbstractContextManager[None]:
    """Turn kafka-python's errors while writing to a topic into KafkaUnavailableError."""
    return kafka_failures(kafka, f"writing to topic {topic}", "Write")


def delivery_s(kafka: KafkaSettings) -> float:
    """Return the seconds after which a record that the brokers have not confirmed has failed."""
    return 2 * kafka.request_timeout_s


def write(
    settings: AnySettings, topic: str, key: bytes, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()
) -> None:
    """Write a record, and wait until the brokers confirm it. Open a connection for this record alone.

    Raises TopicsError when the topic is missing, KafkaUnavailableError.
    """
    # A record that a retry writes twice changes nothing. An idempotent producer without Write on any topic would be
    # refused with an error that does not name the topic.
    producer = open_producer(settings, topic, enable_idempotence=False)
    with write_failures(settings.kafka, topic):
        try:
            producer.send(topic, value, key, headers=list(headers)).get(delivery_s(settings.kafka))
        finally:
            producer.close(delivery_s(settings.kafka))
