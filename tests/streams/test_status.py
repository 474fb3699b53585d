"""What Kafka alone tells of a run; a run that has learned is looked at in tests of the command line."""

from collections.abc import Callable

import pytest
from confluent_kafka import Producer

from stream_learner.config import Settings
from stream_learner.errors import StateError, TopicsError
from stream_learner.streams import topics
from stream_learner.streams.status import Status, read_status


def produce(settings: Settings, topic: str, value: bytes) -> None:
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap_servers})
    producer.produce(topic, value, b"key", partition=0)
    producer.flush()


def test_before_the_first_checkpoint_everything_is_lag(new_settings: Callable[..., Settings]):
    settings = new_settings()
    topics.create(settings, input_partitions=2)
    (topic,) = settings.input.topics
    produce(settings, topic, b"image")
    assert read_status(settings) == Status(None, None, {topic: {0: 0, 1: 0}}, {topic: {0: 1, 1: 0}})


def test_without_topics_there_is_none(new_settings: Callable[..., Settings]):
    with pytest.raises(TopicsError, match="is missing"):
        read_status(new_settings())


@pytest.mark.parametrize("value", [b"{}", b"not JSON", b'{"schema_version": 2}'])
@pytest.mark.parametrize("topic", ["checkpoints", "metrics"])
def test_records_of_something_else_are_called_so(new_settings: Callable[..., Settings], topic: str, value: bytes):
    settings = new_settings()
    topics.create(settings, input_partitions=1)
    produce(settings, f"{settings.prefix}.{topic}", value)
    with pytest.raises(StateError, match=rf"{settings.prefix}\.{topic} holds no (manifest|window) of run"):
        read_status(settings)
