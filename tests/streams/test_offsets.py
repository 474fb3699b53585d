from collections.abc import Callable

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka import TopicPartition as Position
from kafka.structs import TopicPartition

from stream_learner.config import KafkaSettings, Settings
from stream_learner.errors import TopicsError
from stream_learner.streams import offsets, topics
from stream_learner.streams.connection import ask


def test_bounds_of_every_partition(kafka: KafkaSettings, new_topic: Callable[..., str]):
    topic = new_topic(partitions=3)
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    for partition, count in enumerate([0, 2, 3]):
        for _ in range(count):
            producer.produce(topic, b"image", partition=partition)
    producer.flush()
    assert offsets.bounds(kafka, [topic]) == ({topic: {0: 0, 1: 0, 2: 0}}, {topic: {0: 0, 1: 2, 2: 3}})
    ask(kafka, "deleting", lambda admin: admin.delete_records({TopicPartition(topic, 2): 1}))
    assert offsets.bounds(kafka, [topic])[0] == {topic: {0: 0, 1: 0, 2: 1}}


def test_a_topic_that_is_missing_is_named(kafka: KafkaSettings, new_topic: Callable[..., str]):
    with pytest.raises(TopicsError, match=r"^topic no-such-topic is missing"):
        offsets.bounds(kafka, [new_topic(), "no-such-topic"])


def test_mirrored_positions_are_those_of_the_runs_group(new_settings: Callable[..., Settings]):
    settings = new_settings()
    assert offsets.mirrored_positions(settings) == {}
    topics.create(settings, input_partitions=2)
    (topic,) = settings.input.topics
    group = {"bootstrap.servers": settings.kafka.bootstrap_servers, "group.id": settings.transactional_id}
    consumer = Consumer(group)
    consumer.commit(offsets=[Position(topic, 0, 0), Position(topic, 1, 7, "by hand")], asynchronous=False)
    consumer.close()
    assert offsets.mirrored_positions(settings) == {topic: {0: (0, 0), 1: (7, 0)}}
