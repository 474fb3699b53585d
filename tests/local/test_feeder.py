import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from data_files import write_image
from kafka.structs import TopicPartition

from stream_learner.config import KafkaSettings
from stream_learner.errors import KafkaUnavailableError, TopicsError
from stream_learner.formats.arrow import Arrow
from stream_learner.local.broker import Broker
from stream_learner.local.datasets import Dataset, open_dataset
from stream_learner.local.feeder import ORDERS, by_class, drifting, feed, shuffled
from stream_learner.streams.connection import reader


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return open_dataset(None)


def read_back(kafka: KafkaSettings, topic: str, end_offsets: dict[int, int]) -> list:
    """Records of all partitions, in the order of their offsets within each."""
    consumer = reader(kafka)
    places = [TopicPartition(topic, partition) for partition in end_offsets]
    consumer.assign(places)
    consumer.seek_to_beginning(*places)
    records = []
    while any(consumer.position(place) < end_offsets[place.partition] for place in places):
        for batch in consumer.poll(timeout_ms=1000).values():
            records += batch
    consumer.close()
    return records


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_an_order_holds_each_example_once_and_follows_its_seed(order, digits: Dataset):
    targets = np.asarray(digits.targets)
    indices = order(targets, np.random.default_rng(1))
    assert sorted(indices) == list(range(len(digits)))
    assert np.array_equal(indices, order(targets, np.random.default_rng(1)))
    assert not np.array_equal(indices, order(targets, np.random.default_rng(2)))


def test_by_class_is_one_class_after_the_other(digits: Dataset):
    targets = np.asarray(digits.targets)
    ordered = targets[by_class(targets, np.random.default_rng(0))]
    assert np.array_equal(ordered, np.sort(targets))


def test_drifting_moves_through_the_classes_and_mixes_neighbours(digits: Dataset):
    targets = np.asarray(digits.targets)
    ordered = targets[drifting(targets, np.random.default_rng(0))]
    tenths = [part.mean() for part in np.array_split(ordered, 10)]
    assert tenths == sorted(tenths)
    assert all(len(set(part)) > 1 for part in np.array_split(ordered, 10))


def test_every_record_arrives_in_the_plain_form(kafka: KafkaSettings, new_topic: Callable[..., str], digits: Dataset):
    topic, seen = new_topic(partitions=3), []
    fed = feed(digits, kafka, topic, on_progress=lambda *progress: seen.append(progress))
    assert seen[-1] == (len(digits), len(digits))
    assert fed.records == sum(fed.end_offsets.values()) == len(digits)
    assert sorted(fed.end_offsets) == [0, 1, 2]
    assert all(fed.end_offsets.values())
    examples = {example.id: example for example in digits}
    records = read_back(kafka, topic, fed.end_offsets)
    assert {record.key.decode() for record in records} == examples.keys()
    for record in records:
        example = examples[record.key.decode()]
        assert record.value == example.image
        assert dict(record.headers) == {"label": example.label.encode(), "id": example.id.encode()}


def test_a_name_that_is_no_utf_8_and_a_label_to_normalise(kafka: KafkaSettings, new_topic, tmp_path: Path):
    image = write_image(tmp_path / " cafe\u0301" / os.fsdecode(b"\xe9.jpg"))
    topic = new_topic()
    (record,) = read_back(kafka, topic, feed(open_dataset(tmp_path), kafka, topic).end_offsets)
    name = " cafe\u0301/".encode() + b"\xe9.jpg"
    assert (record.key, record.value) == (name, image.read_bytes())
    assert dict(record.headers) == {"label": "caf\u00e9".encode(), "id": name}


def test_what_is_held_out_says_its_split(kafka: KafkaSettings, new_topic, tmp_path: Path):
    for name in ("train/cat/1.png", "test/cat/2.png"):
        write_image(tmp_path / name)
    topic = new_topic()
    records = read_back(kafka, topic, feed(open_dataset(tmp_path, "all"), kafka, topic).end_offsets)
    assert {record.key: dict(record.headers).get("split") for record in records} == {
        b"train/cat/1.png": None,
        b"test/cat/2.png": b"test",
    }


def test_each_epoch_has_another_order_and_the_same_ids(kafka: KafkaSettings, new_topic, digits: Dataset):
    topic = new_topic()
    few = replace(digits, ids=digits.ids[:50], targets=digits.targets[:50])
    fed = feed(few, kafka, topic, epochs=2)
    keys = [record.key for record in read_back(kafka, topic, fed.end_offsets)]
    assert set(Counter(keys).values()) == {2}
    assert keys[:50] != keys[50:]


def test_limit_counts_records_over_all_epochs(kafka: KafkaSettings, new_topic, digits: Dataset):
    few = replace(digits, ids=digits.ids[:50], targets=digits.targets[:50])
    assert feed(few, kafka, new_topic(), epochs=3, limit=70) == (70, {0: 70})


def test_a_second_feed_adds_to_the_first(kafka: KafkaSettings, new_topic, digits: Dataset):
    topic = new_topic()
    feed(digits, kafka, topic, limit=5)
    assert feed(digits, kafka, topic, limit=5) == (5, {0: 10})


def test_the_rate_is_kept_and_a_stop_ends_the_wait(kafka: KafkaSettings, new_topic, digits: Dataset):
    stop = Event()

    def read(index: int) -> bytes:
        stop.set()
        return digits.read(index)

    # At one record an hour the second is not due yet, when the first one's image sets the stop.
    fed = feed(replace(digits, read=read), kafka, new_topic(), rate=1 / 3600, stop=stop)
    assert fed == (1, {0: 1})


def test_no_such_topic(kafka: KafkaSettings, unique_name: str, digits: Dataset):
    with pytest.raises(TopicsError, match=f"{unique_name} is missing"):
        feed(digits, kafka, unique_name)


def test_a_record_that_is_refused_is_an_error(kafka: KafkaSettings, new_topic, digits: Dataset):
    with pytest.raises(KafkaUnavailableError, match=r"MessageSizeTooLarge|RecordTooLarge"):
        feed(digits, kafka, new_topic(max_message_bytes=100), limit=1)


def test_a_broker_that_falls_silent_is_an_error(broker: Broker, new_topic, digits: Dataset):
    def read(index: int) -> bytes:
        broker.freeze()
        return digits.read(index)

    topic = new_topic()
    impatient = KafkaSettings(bootstrap_servers=broker.bootstrap_servers, request_timeout_s=3)
    try:
        with pytest.raises(KafkaUnavailableError, match=f"feeding {topic}"):
            feed(replace(digits, read=read), impatient, topic, limit=1)
    finally:
        broker.thaw()


def test_many_records_in_a_message(kafka: KafkaSettings, new_topic, digits: Dataset):
    topic = new_topic()
    fed = feed(digits, kafka, topic, rows=40, limit=100)
    assert fed == (100, {0: 3})
    rows = [row for read in read_back(kafka, topic, fed.end_offsets) for row in Arrow().read(read).fields]
    order = shuffled(np.asarray(digits.targets), np.random.default_rng([0, 0]))[:100]
    sent = [digits[index] for index in order.tolist()]
    assert [(row.image, row.label, row.id) for row in rows] == [(x.image, x.label, x.id.encode()) for x in sent]
