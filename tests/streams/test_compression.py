"""Records with every compression codec are read."""

from collections.abc import Callable

import pytest
from confluent_kafka import Producer

from stream_learner.config import InputSettings, KafkaSettings
from stream_learner.formats.record import Record
from stream_learner.streams.source import Source


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_every_codec_of_kafka_is_read(kafka: KafkaSettings, new_topic: Callable[..., str], codec: str):
    topic = new_topic()
    value = b"an image, say" * 100
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "compression.type": codec})
    producer.produce(topic, value)
    assert producer.flush(30) == 0
    source = Source(kafka, InputSettings(topics=[topic]), {topic: {0: 0}})
    try:
        while not (items := source.poll(1)):
            pass
    finally:
        source.close()
    (record,) = items
    assert isinstance(record, Record)
    assert record.value == value
