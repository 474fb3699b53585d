"""The input on a real broker: every offset once and in order, whatever record or gap it holds."""

import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from confluent_kafka import Producer
from kafka.structs import TopicPartition
from reading import POLL_S, NewSource, make_topic, nothing_comes, produce, read, values

from stream_learner.config import InputSettings, KafkaSettings
from stream_learner.errors import InputError, KafkaUnavailableError
from stream_learner.formats.record import Gap, Record
from stream_learner.local.broker import Broker
from stream_learner.streams import offsets, source
from stream_learner.streams.connection import ask
from stream_learner.streams.source import Source


def test_all_partitions_are_read_from_the_beginning(kafka: KafkaSettings, new_topic, new_source: NewSource):
    topic = new_topic(partitions=2)
    produce(kafka, topic, [b"a", b"b"])
    produce(kafka, topic, [b"c"], partition=1)
    items = read(new_source(topic), {topic: {0: 2, 1: 1}})
    assert values(items) == [b"a", b"b"]
    assert values(items, 1) == [b"c"]


def test_reading_goes_on_from_positions(kafka: KafkaSettings, new_topic, new_source: NewSource):
    topic = new_topic(partitions=2)
    produce(kafka, topic, [b"a", b"b", b"c"])
    produce(kafka, topic, [b"d"], partition=1)
    source = new_source(topic, {topic: {0: 2, 1: 1}})
    assert values(read(source, {topic: {0: 3}})) == [b"c"]
    assert source.ends()[topic][0] == 3


def test_a_record_arrives_whole(kafka: KafkaSettings, new_topic, new_source: NewSource):
    topic = new_topic()
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    headers = [("label", b"cat"), ("label", b"\xff"), ("empty", b"")]
    producer.produce(topic, b"image", b"key", headers=[*headers], timestamp=1_700_000_000_123)
    producer.produce(topic, None)
    producer.flush()
    first, second = read(new_source(topic), {topic: {0: 2}})
    assert first == Record(topic, 0, 0, 1_700_000_000_123, b"key", b"image", headers)
    assert second == Record(topic, 0, 1, second[3], None, None, [])


def test_offsets_without_a_record_are_gaps(kafka: KafkaSettings, new_topic, new_source: NewSource):
    """Markers that end a transaction, and what was aborted."""
    topic = new_topic()
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": topic})
    producer.init_transactions()
    for value, end in [(b"a", producer.commit_transaction), (b"b", producer.abort_transaction)] * 2:
        producer.begin_transaction()
        producer.produce(topic, value)
        producer.flush()
        end()
    _, end = offsets.bounds(kafka, [topic])
    assert end == {topic: {0: 8}}
    items = read(new_source(topic), end)
    assert values(items) == [b"a", b"a"]
    assert items[-1] == Gap(topic, 0, 8)


def test_an_open_transaction_is_waited_for(kafka: KafkaSettings, new_topic, new_source: NewSource):
    topic = new_topic()
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": topic})
    producer.init_transactions()
    producer.begin_transaction()
    producer.produce(topic, b"a")
    producer.flush()
    source = new_source(topic)
    assert nothing_comes(source)
    producer.commit_transaction()
    assert values(read(source, {topic: {0: 2}})) == [b"a"]


def test_partitions_added_while_it_runs_are_read_from_their_beginning(
    kafka: KafkaSettings, new_topic, new_source: NewSource, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(source, "PARTITION_CHECK_S", 0.1)
    topic = new_topic()
    produce(kafka, topic, [b"a"])
    opened = new_source(topic)
    read(opened, {topic: {0: 1}})
    ask(kafka, "adding a partition", lambda admin: admin.create_partitions({topic: 2}))
    produce(kafka, topic, [b"b", b"c"], partition=1)
    assert values(read(opened, {topic: {1: 2}}), 1) == [b"b", b"c"]
    produce(kafka, topic, [b"d"])
    assert values(read(opened, {topic: {0: 2}})) == [b"d"]


def test_partitions_at_their_end_are_not_waited_for_when_one_is_added(
    kafka: KafkaSettings, new_topic: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    """Time stands still, so a wait would not end."""
    monkeypatch.setattr(source, "PARTITION_CHECK_S", 0.0)
    topic = new_topic(partitions=2)
    impatient = kafka.model_copy(update={"request_timeout_s": 3.0})  # looks for partitions every second
    with closing(Source(impatient, InputSettings(topics=[topic]), {}, clock=lambda: 0.0)) as opened:
        produce(kafka, topic, [b"a"])
        read(opened, {topic: {0: 1}})
        ask(kafka, "adding a partition", lambda admin: admin.create_partitions({topic: 3}))
        while len(opened.positions[topic]) < 3:
            assert nothing_comes(opened)
        produce(kafka, topic, [b"b"])
        assert values(read(opened, {topic: {0: 2}})) == [b"b"]


def test_records_that_fell_off_are_an_error(kafka: KafkaSettings, new_topic, new_source: NewSource):
    topic = new_topic()
    produce(kafka, topic, [b"a", b"b"])
    ask(kafka, "deleting", lambda admin: admin.delete_records({TopicPartition(topic, 0): 1}))
    with pytest.raises(InputError, match="deleted by retention"):
        read(new_source(topic, {topic: {0: 0}}), {})


def test_records_that_fell_off_may_be_passed_over(kafka: KafkaSettings, new_topic, new_source: NewSource):
    topic = new_topic(partitions=2)
    produce(kafka, topic, [b"a", b"b", b"c"], partition=0)
    produce(kafka, topic, [b"d", b"e"], partition=1)
    ask(kafka, "deleting", lambda admin: admin.delete_records({TopicPartition(topic, 0): 2}))
    opened = new_source(topic, {topic: {0: 0, 1: 0}}, on_lost="continue")
    items = read(opened, {topic: {0: 3, 1: 2}})
    assert opened.starts() == {topic: {0: 2, 1: 0}}
    assert Gap(topic, 0, 2, lost=True) in items
    assert values(items) == [b"c"]
    assert values(items, 1) == [b"d", b"e"]


def test_a_position_beyond_the_end_is_an_error(kafka: KafkaSettings, new_topic, new_source: NewSource):
    topic = new_topic()
    produce(kafka, topic, [b"a"])
    with pytest.raises(InputError, match="ends at offset 1, before 5, the next offset to read"):
        read(new_source(topic, {topic: {0: 5}}), {})


def test_every_answer_is_heard_with_records_or_without(kafka: KafkaSettings, new_topic: Callable[..., str]):
    heard: list[str] = []
    impatient = kafka.model_copy(update={"request_timeout_s": 1.0})  # so it asks for metadata every third of a second
    with closing(Source(impatient, InputSettings(topics=[new_topic()]), {}, heard.append)) as source:
        for _ in range(2):
            while set(heard) != {"fetch", "metadata"}:
                assert not list(source.poll(POLL_S))
            heard.clear()


def test_a_poll_waits_for_the_pending_request_and_starts_no_task(
    kafka: KafkaSettings, new_topic, new_source: NewSource, monkeypatch: pytest.MonkeyPatch
):
    topic = new_topic()
    opened = new_source(topic)
    network, tasks = opened._consumer._net, []
    run = network.run
    monkeypatch.setattr(network, "run", lambda *task: tasks.append(task) or run(*task))
    assert not list(opened.poll(0))  # sends a request, which the broker answers after NEWS_S or at the next record
    tasks.clear()
    for _ in range(50):
        assert not list(opened.poll(0))
    assert len(tasks) < 10  # a slow machine may meet answers
    with ThreadPoolExecutor(1) as thread:
        polled = thread.submit(lambda: list(opened.poll(90)))
        produce(kafka, topic, [b"a"])
        assert values(polled.result(60)) == [b"a"]


def test_a_learner_that_is_slow_asks_for_nothing(
    kafka: KafkaSettings, new_topic, new_source: NewSource, monkeypatch: pytest.MonkeyPatch
):
    """While all that may be read ahead is here, no fetch is missed, however long that takes."""
    monkeypatch.setattr(source, "MAX_AHEAD_BYTES", 100_000)
    monkeypatch.setattr(source, "MAX_POLL_BYTES", 200_000)
    topic = new_topic(partitions=2)
    for partition in range(2):
        produce(kafka, topic, [bytes(10_000)] * 200, partition)
    opened = new_source(topic)
    items = iter(())
    while len(opened._consumer.full) < 2:
        items = iter(opened.poll(POLL_S))
    opened._read(POLL_S)  # which pauses what is full, so that nothing is asked for
    assert opened.unanswered == ("", 0)
    assert next(items)


def test_while_the_broker_is_away_there_is_nothing_and_no_error(tmp_path: Path):
    with Broker(tmp_path) as broker:
        outlive(broker)


def outlive(broker: Broker) -> None:
    make_topic(broker.settings, "images")
    produce(broker.settings, "images", [b"a"])
    heard: list[str] = []
    with closing(Source(broker.settings, InputSettings(topics=["images"]), {}, heard.append)) as source:
        read(source, {"images": {0: 1}})
        broker.freeze()
        assert nothing_comes(source)
        broker.kill()
        heard.clear()
        assert nothing_comes(source)
        assert not heard
        broker.start()
        produce(broker.settings, "images", [b"b"])
        assert values(read(source, {"images": {0: 2}})) == [b"b"]


def test_a_partition_without_a_leader_is_named(tmp_path: Path):
    """Of a broker with two disks one fails: partitions there have no leader any more, the others are read."""
    disks = "metadata.log.dir=data\nlog.dirs=data,disk\nlog.flush.offset.checkpoint.interval.ms=200\n"
    with Broker(tmp_path, properties=disks) as broker:
        make_topic(broker.settings, "images", partitions=2)
        waited = time.monotonic()
        while not (folders := list((tmp_path / "disk").glob("images-*"))):
            assert time.monotonic() - waited < 60
            time.sleep(0.1)
        (lost,) = (int(folder.name.rpartition("-")[2]) for folder in folders)
        with closing(Source(broker.settings, InputSettings(topics=["images"]), {})) as source:
            assert nothing_comes(source)
            shutil.rmtree(tmp_path / "disk")
            produce(broker.settings, "images", [b"a"], 1 - lost)
            assert values(read(source, {"images": {1 - lost: 1}}), 1 - lost) == [b"a"]
            waited = time.monotonic()
            while source.unanswered[1] < 5:
                assert time.monotonic() - waited < 60
                assert nothing_comes(source)
            assert source.unanswered[0] == f"images[{lost}]"


def test_it_cannot_be_opened_without_a_broker():
    nowhere = KafkaSettings(bootstrap_servers="127.0.0.1:1", request_timeout_s=0.2)
    with pytest.raises(KafkaUnavailableError, match="opening the input"):
        Source(nowhere, InputSettings(topics=["images"]), {})
