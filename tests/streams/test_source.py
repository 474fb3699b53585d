"""The input on a real broker: every offset once and in order, whatever record or gap it holds."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confluent_kafka import Producer
from kafka.structs import TopicPartition

from stream_learner.config import MIB, InputSettings, KafkaSettings
from stream_learner.contract.spans import Positions
from stream_learner.errors import InputError, KafkaUnavailableError
from stream_learner.formats.record import Gap, Record
from stream_learner.local.broker import Broker
from stream_learner.streams import connection, offsets, source
from stream_learner.streams.connection import ask
from stream_learner.streams.source import Source

POLL_S = 0.2
RECORDS = 3000
BEGIN_MS = 1_700_000_000_000
POLLS = 200

NewSource = Callable[..., Source]


@pytest.fixture
def new_source(kafka: KafkaSettings) -> Iterator[NewSource]:
    """Opens sources that are closed after the test."""
    sources: list[Source] = []

    def new_source(topic: str, positions: Positions | None = None, **settings: Any) -> Source:
        chosen = InputSettings.model_validate({"topics": [topic]} | settings)
        sources.append(Source(kafka, chosen, positions or {}))
        return sources[-1]

    yield new_source
    for opened in sources:
        opened.close()


def make_topic(kafka: KafkaSettings, name: str, partitions: int = 1) -> None:
    topic = {"num_partitions": partitions, "replication_factor": 1}
    ask(kafka, "making a topic", lambda admin: admin.create_topics({name: topic}, wait_for_metadata=True))


def ordered_producer(kafka: KafkaSettings) -> Producer:
    """A producer whose batches stay in order when a broker that has just made the topic refuses the first ones."""
    return Producer({"bootstrap.servers": kafka.bootstrap_servers, "enable.idempotence": True})


def produce(kafka: KafkaSettings, topic: str, values: list[bytes], partition: int = 0) -> None:
    producer = ordered_producer(kafka)
    for value in values:
        producer.produce(topic, value, partition=partition)
    producer.flush()


def read(source: Source, end: Positions) -> list[Record | Gap]:
    """What the source gives until it stands at the end of every partition."""
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


@pytest.mark.parametrize(("limit", "limit_bytes"), [("MAX_AHEAD_BYTES", 20_000), ("MAX_POLL_BYTES", 300_000)])
def test_a_backlog_is_read_in_the_order_of_production(
    kafka: KafkaSettings,
    new_topic,
    new_source: NewSource,
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
    limit_bytes: int,
):
    """However partitions lie on the brokers, and whichever answer comes first; nobody waits for those that are read.

    So little is read ahead, of each or of all, that each partition is read in many turns."""
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
    """Of those without a record here nobody can be asked for one, so nobody waits for them."""
    partitions, each = 30, 10
    monkeypatch.setattr(source, "MAX_POLL_BYTES", 100_000)
    topic = new_topic(partitions=partitions)
    for partition in range(partitions):
        produce(kafka, topic, [bytes(10_000)] * each, partition)
    items = read(new_source(topic), {topic: dict.fromkeys(range(partitions), each)})
    assert len([item for item in items if isinstance(item, Record)]) == partitions * each


def test_batches_of_many_partitions_come_together_although_each_is_larger_than_its_share(
    kafka: KafkaSettings, new_topic, monkeypatch: pytest.MonkeyPatch
):
    partitions = 40
    monkeypatch.setattr(connection, "RESPONSE_BYTES", 4 * MIB)
    topic = new_topic(partitions=partitions)
    for partition in range(partitions):
        produce(kafka, topic, [bytes(300_000)], partition)
    heard: list[str] = []
    with closing(Source(kafka, InputSettings(topics=[topic]), {}, heard.append)) as opened:
        read(opened, {topic: dict.fromkeys(range(partitions), 1)})
    assert heard.count("fetch") < partitions / 2


def test_nobody_waits_for_partitions_that_cannot_be_asked_for(
    kafka: KafkaSettings, new_topic, monkeypatch: pytest.MonkeyPatch
):
    """Because the rests of what others sent take all the room for responses. Time stands still."""
    partitions, each = 40, 10
    monkeypatch.setattr(connection, "RESPONSE_BYTES", MIB)
    monkeypatch.setattr(source, "MAX_POLL_BYTES", 800_000)
    topic = new_topic(partitions=partitions)
    for partition in range(partitions):
        produce(kafka, topic, [bytes(10_000)] * each, partition)
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
    """Before any record of its partition was given, too; of one that cannot be read yet, that is no older than the
    last."""
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
    """One response holds millions of small records that compress well; other partitions have their turn in between."""
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
    with closing(Source(kafka, InputSettings(topics=[topic]), {}, clock=lambda: 0.0)) as opened:
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
