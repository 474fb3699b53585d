"""Writes single records to the topics beside a run."""

from collections.abc import Sequence

from kafka import KafkaProducer

from stream_learner.config import AnySettings
from stream_learner.streams.bootstrap import connect
from stream_learner.streams.connection import client_config, kafka_failures
from stream_learner.streams.topics import topic_ids


def write(
    settings: AnySettings, topic: str, key: bytes, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()
) -> None:
    """Write a record, and wait until the brokers confirm it. Open a connection for this record alone.

    Raises TopicsError when the topic is missing, KafkaUnavailableError.
    """
    topic_ids(settings, [topic])  # the producer would wait for a missing topic
    delivery_s = 2 * settings.kafka.request_timeout_s
    config = client_config(settings.kafka) | {
        "acks": "all",
        # A record that a retry writes twice changes nothing. An idempotent producer without Write on any topic would be
        # refused with an error that does not name the topic.
        "enable_idempotence": False,
        "delivery_timeout_ms": int(delivery_s * 1000),
        "max_block_ms": int(delivery_s * 1000),
        "metrics_enabled": False,
    }
    with kafka_failures(settings.kafka, f"writing to topic {topic}", "Write"):
        producer: KafkaProducer = connect(KafkaProducer, config)
        try:
            producer.send(topic, value, key, headers=list(headers)).get(delivery_s)
        finally:
            producer.close(delivery_s)
