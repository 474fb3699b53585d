"""Partitions of an input are read in the order of production; none keeps the others waiting."""

import time
from contextlib import closing

import numpy as np
import pytest
from confluent_kafka import Producer
from reading import POLL_S, NewSource, nothing_comes, ordered_producer, produce, read, values

from stream_learner.config import MIB, InputSettings, KafkaSettings
from stream_learner.formats.record import Gap, Record
from stream_learner.streams import offsets, source
from stream_learner.streams.source import Source

RECORDS = 3000
BEGIN_MS = 1_700_000_000_000


@pytest.mark.parametrize(("limit", "limit_bytes"), [("MAX_AHEAD_BYTES", 20_000), ("MAX_POLL_BYTES", 300_000)])
def test_a_backlog_is_read_in_the_order_of_production(
    kafka: KafkaSettings,
    new_topic,
    new_source: NewSource,
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
    limit_bytes: int,
):
    """The order depends neither on the brokers nor on which answer comes first. Empty partitions cause no wait.

    So little is read ahead, of each or of all, that each partition is read in many turns.
    """
    monkeypatch.setattr(source, limit, limit_bytes)
    topic = new_topic(partitions=4)
    random = np.random.default_rng(0)
    partition_of = random.choice(3, RECORDS, p=[0.7, 0.25, 0.05])  # the fourth stays empty
    producer = ordered_producer(kafka)
    for i in sorted(range(RECORDS), key=lambda i: -partition_of[i]):
        producer.produce(topic, bytes(1000), partition=partition_of[i], timestamp=BEGIN_MS + i)
        producer.poll(0)
    producer.flush()
    opened = new_source(topic, {topic: dict.fromkeys(range(4), 0)})
    began = time.monotonic()
    items = read(opened, {topic: {p: int((partition_of == p).sum()) for p in range(3)}})
    assert [item.timestamp_ms for item in items if isinstance(item, Record)] == [*range(BEGIN_MS, BEGIN_MS + RECORDS)]
    assert time.monotonic() - began < RECORDS / 100


def test_partitions_that_have_no_room_for_a_record_each_are_read_by_turns(
    kafka: KafkaSettings, new_topic, new_source: NewSource, monkeypatch: pytest.MonkeyPatch
):
    """A partition without a record here cannot be asked for one, so there is no wait for it."""
    partitions, each = 30, 10
    monkeypatch.setattr(source, "MAX_POLL_BYTES", 100_000)
    topic = new_topic(partitions=partitions)
    produce(kafka, topic, [bytes(10_000)] * each, *range(partitions))
    items = read(new_source(topic), {topic: dict.fromkeys(range(partitions), each)})
    assert len([item for item in items if isinstance(item, Record)]) == partitions * each


def test_the_sources_of_a_process_share_what_may_be_read_ahead(
    kafka: KafkaSettings, new_topic, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(source, "MAX_POLL_BYTES", 4 * MIB)
    topic = new_topic()
    produce(kafka, topic, [bytes(100_000)] * 30)
    with closing(Source(kafka, InputSettings(topics=[topic]), {}, sources=4)) as opened:
        while not opened._consumer.full:
            opened.poll(POLL_S)
        ahead = opened.positions[topic][0]
        assert MIB / 4 < ahead * 100_000 < MIB
        items = read(opened, {topic: {0: 30}})
    assert len(items) == 30


def test_batches_of_many_partitions_come_together_although_each_is_larger_than_its_share(
    kafka: KafkaSettings, new_topic, monkeypatch: pytest.MonkeyPatch
):
    partitions = 40
    monkeypatch.setattr(source, "RESPONSE_BYTES", 4 * MIB)
    topic = new_topic(partitions=partitions)
    produce(kafka, topic, [bytes(300_000)], *range(partitions))
    heard: list[str] = []
    with closing(Source(kafka, InputSettings(topics=[topic]), {}, heard.append)) as opened:
        read(opened, {topic: dict.fromkeys(range(partitions), 1)})
    assert heard.count("fetch") < partitions / 2


def test_nobody_waits_for_partitions_that_cannot_be_asked_for(
    kafka: KafkaSettings, new_topic, monkeypatch: pytest.MonkeyPatch
):
    """The remainders of other partitions fill the room for responses. Time stands still."""
    partitions, each = 40, 10
    monkeypatch.setattr(source, "RESPONSE_BYTES", MIB)
    monkeypatch.setattr(source, "MAX_POLL_BYTES", 800_000)
    topic = new_topic(partitions=partitions)
    produce(kafka, topic, [bytes(10_000)] * each, *range(partitions))
    with closing(Source(kafka, InputSettings(topics=[topic]), {}, clock=lambda: 0.0)) as opened:
        read(opened, {topic: dict.fromkeys(range(partitions), each)})


def test_a_partition_whose_records_are_old_does_not_keep_others_waiting(kafka: KafkaSettings, new_topic, new_source):
    topic = new_topic(partitions=2)
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    for i in range(RECORDS):
        producer.produce(topic, b"old", partition=0, timestamp=BEGIN_MS - 10**9)
        producer.produce(topic, b"new", partition=1, timestamp=BEGIN_MS + i)
        producer.poll(0)
    producer.flush()
    opened = new_source(topic)
    items: list[Record | Gap] = []
    while len(values(items, 1)) < 100:
        for item in opened.poll(POLL_S):
            items.append(item)
            opened.took(1.0 if item.partition == 0 else 0.0)  # seconds, as if it were a large image
    assert len(values(items)) < 10


def test_the_oldest_record_that_was_not_given_is_known(kafka: KafkaSettings, new_topic, new_source: NewSource):
    """It is known before a record of its partition was given. One that cannot be read yet is no older than the last."""
    topic = new_topic(partitions=3)
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": topic})
    producer.init_transactions()
    producer.begin_transaction()
    for partition in range(2):
        for i in range(10):
            producer.produce(topic, b"a", partition=partition, timestamp=BEGIN_MS + 100 * partition + i)
    producer.commit_transaction()
    opened = new_source(topic, {topic: dict.fromkeys(range(3), 0)})
    items = iter(())
    # A commit ends the transaction in one partition after the other.
    while len(opened.ends().get(topic, {})) < 3 or None in [opened.oldest_ms(topic, p) for p in range(2)]:
        items = iter(opened.poll(POLL_S))
    assert [opened.oldest_ms(topic, p) for p in range(3)] == [BEGIN_MS, BEGIN_MS + 100, None]
    assert [next(items).partition for _ in range(3)] == [0, 0, 0]
    assert [opened.oldest_ms(topic, p) for p in range(3)] == [BEGIN_MS + 3, BEGIN_MS + 100, None]
    end = offsets.bounds(kafka, [topic])[1][topic]
    producer.begin_transaction()
    producer.produce(topic, b"b", partition=0, timestamp=BEGIN_MS + 1000)
    producer.flush()
    read(opened, {topic: {0: end[0], 1: end[1]}})
    while opened.ends()[topic][0] < end[0] + 1:  # a response may be older than the record
        assert not list(opened.poll(POLL_S))
    assert nothing_comes(opened)
    assert opened.oldest_ms(topic, 0) == BEGIN_MS + 9
    producer.abort_transaction()


def test_a_partition_with_much_to_read_does_not_keep_others_waiting(kafka: KafkaSettings, new_topic, new_source):
    """One response holds millions of small records that compress well. Other partitions have turns in between."""
    topic = new_topic(partitions=2)
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "compression.type": "gzip", "linger.ms": 100})
    for i in range(6 * source.MAX_POLL_RECORDS):
        producer.produce(topic, b"", partition=0)
        producer.poll(0)
        if i < 10:
            producer.produce(topic, b"good", partition=1)
    producer.flush()
    read_first = new_source(topic)
    items: list[Record | Gap] = []
    while len(values(items, 1)) < 10:
        items += read_first.poll(POLL_S)
    assert len(values(items)) <= 2 * source.MAX_POLL_RECORDS
    rest = read(read_first, {topic: {0: 6 * source.MAX_POLL_RECORDS}})
    assert len(values(items) + values(rest)) == 6 * source.MAX_POLL_RECORDS
