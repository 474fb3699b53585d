"""Bytes on a real broker that are no records: each offset is accounted for, and reading continues."""

import re
import subprocess
import sys
import zlib
from collections.abc import Callable
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

import lz4.frame
import pytest
import raw_batches
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from kafka.codec import gzip_encode, lz4_encode, snappy_encode, zstd_encode
from kafka.protocol.consumer import IsolationLevel
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.legacy_records import LegacyRecordBatchBuilder
from kafka.record.memory_records import MemoryRecords
from kafka.structs import TopicPartition
from raw_batches import Raw, batch, payload, record, send, varint

from stream_learner.config import MIB, InputSettings, KafkaSettings, Settings
from stream_learner.errors import InputError
from stream_learner.formats.record import Gap, Record
from stream_learner.local.broker import Broker
from stream_learner.streams import reader as reading
from stream_learner.streams import record_batch
from stream_learner.streams.connection import reader
from stream_learner.streams.journal import read_committed
from stream_learner.streams.reader import Budget, Damaged, _NoBatchError, _Records
from stream_learner.streams.replay import Replay
from stream_learner.streams.source import Source

POLL_S = 0.2
POLLS = 200
GOOD = [Raw(b"good", [(b"label", b"cat")])]
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip_encode,
    "snappy": snappy_encode,
    "lz4": lz4_encode,
    "zstd": zstd_encode,
}


def read(kafka: KafkaSettings, topic: str, end: int, on_lost: str = "stop") -> list[Record | Gap]:
    """Read a source up to the offset `end`. Each item must come after the one before."""
    settings = InputSettings.model_validate({"topics": [topic], "on_lost": on_lost})
    items: list[Record | Gap] = []
    at = 0
    with closing(Source(kafka, settings, {topic: {0: 0}})) as source:
        for _ in range(POLLS):
            for item in source.poll(POLL_S):
                items.append(item)
                next_offset = item.offset + 1 if isinstance(item, Record) else item.next_offset
                assert next_offset > at
                at = next_offset
            if at >= end:
                return items
    raise AssertionError(f"read to {at}, not to {end}")


def seen(items: list[Record | Gap]) -> list[tuple[int, bytes | str | None]]:
    """Offset, and value or why there is none."""
    return [(item.offset, item.unreadable or item.value) for item in items if isinstance(item, Record)]


def reread(kafka: KafkaSettings, topic: str, end: int) -> list[Record]:
    with closing(Replay(kafka, topic, 0, 0)) as replay:
        return replay.read(end)


def test_a_header_name_that_is_not_utf8_costs_one_record(kafka: KafkaSettings, new_topic: Callable[..., str]):
    topic = new_topic()
    bad = Raw(b"bad", [(b"\xe9tat", b"x"), (b"label", b"cat")])
    send(kafka, topic, batch(payload([*GOOD, bad, *GOOD]), 3))
    send(kafka, topic, batch(payload(GOOD), 1))
    items = read(kafka, topic, 4)
    why = r"the record is malformed (the header name b'\xe9tat' is not UTF-8)"
    assert seen(items) == [(0, b"good"), (1, why), (2, b"good"), (3, b"good")]
    assert items[1] == Record(topic, 0, 1, raw_batches.TIMESTAMP_MS, None, None, [], why)
    assert reread(kafka, topic, 4) == items


@pytest.mark.parametrize("codec", COMPRESS)
def test_a_batch_over_the_bound_is_not_decompressed(
    kafka: KafkaSettings, new_topic: Callable[..., str], monkeypatch: pytest.MonkeyPatch, codec: str
):
    monkeypatch.setattr(record_batch, "MAX_DECOMPRESSED_BYTES", MIB)
    topic = new_topic()
    send(kafka, topic, batch(payload(GOOD), 1))
    bomb = payload([Raw(bytes(2 * MIB)), Raw(b"small")])
    send(kafka, topic, batch(COMPRESS[codec](bomb), 2, codec))
    send(kafka, topic, batch(payload(GOOD), 1))
    why = f"its batch decompresses to more than {MIB} bytes"
    items = read(kafka, topic, 4)
    assert seen(items) == [(0, b"good"), (1, why), (2, why), (3, b"good")]
    assert reread(kafka, topic, 4) == items


def zeros(size: int, codec: str) -> bytes:
    """Compress `size` zero bytes that are never in memory together."""
    if codec == "gzip":
        compressor = zlib.compressobj(1, wbits=31)
    elif codec == "lz4":
        lz4_ = lz4.frame.LZ4FrameCompressor()
        return lz4_.begin() + b"".join(lz4_.compress(bytes(MIB)) for _ in range(size // MIB)) + lz4_.flush()
    else:
        compressor = zstandard.ZstdCompressor().compressobj()
    return b"".join(compressor.compress(bytes(MIB)) for _ in range(size // MIB)) + compressor.flush()


@pytest.mark.parametrize("codec", ["gzip", "lz4", "zstd"])
def test_a_bomb_takes_no_more_memory_than_its_bound(tmp_path: Path, codec: str):
    """In a process that may have 256 MiB more than it has: 512 MiB are in the bomb."""
    (tmp_path / "bomb").write_bytes(zeros(512 * MIB, codec))
    program = f"""
import resource, pathlib
from stream_learner.streams.decompression import decompress
from stream_learner.streams.record_batch import MAX_DECOMPRESSED_BYTES
has = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (has + 256 * 2**20,) * 2)
try:
    decompress({raw_batches.CODECS[codec]}, pathlib.Path("bomb").read_bytes(), MAX_DECOMPRESSED_BYTES)
except ValueError as error:
    print(error)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "its batch decompresses to more than 67108864 bytes\n"


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (
            Raw(b"x", offset_delta=1_000_000),
            r"its batch is malformed from here on \(offset 1000001 does not come next\)",
        ),
        (Raw(b"x", offset_delta=0), r"its batch is malformed from here on \(offset 1 does not come next\)"),
        (Raw(b"x", [(b"h", None)] * 1001), r"the record is malformed \(1001 headers\)"),
    ],
)
def test_what_brokers_let_through_costs_its_producer_alone(
    kafka: KafkaSettings, new_topic: Callable[..., str], raw: Raw, why: str
):
    """Apache's brokers check a batch's structure, and not the offsets inside."""
    topic = new_topic()
    send(kafka, topic, batch(payload(GOOD), 1))
    send(kafka, topic, batch(record(GOOD[0]) + record(raw, 1), 2))
    send(kafka, topic, batch(payload(GOOD), 1))
    items = read(kafka, topic, 4)
    assert [offset for offset, _ in seen(items)] == [0, 1, 2, 3]
    (rejected,) = [item.unreadable for item in items if isinstance(item, Record) and item.unreadable]
    assert re.fullmatch(why, rejected)
    assert reread(kafka, topic, 4) == items


def parsed(data: bytes, count: int, **fields: Any) -> list[tuple[int, bytes | str | None]]:
    """Parse a batch whose bytes no broker has seen."""
    return [(record.offset, record.unreadable or record.value) for record in in_batch(batch(data, count, **fields))]


def in_batch(data: bytes) -> list[Record]:
    return list(record_batch.Batch(DefaultRecordBatch(data), TopicPartition("t", 0)))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80" * 20,
        varint(-5),
        varint(1000) + b"too short",
        varint(0),
        bytes(100),
        record(GOOD[0])[:-1],
        record(Raw(b"x", offset_delta=-1)),
        record(Raw(b"x", offset_delta=2**40)),
    ],
)
def test_offsets_of_a_malformed_batch_are_all_there(data: bytes):
    found = parsed(data, 3, base_offset=10)
    assert [offset for offset, _ in found] == [10, 11, 12]
    assert all(isinstance(why, str) and "malformed" in why for _, why in found)
    after_a_good_one = parsed(record(GOOD[0]) + data, 3)
    assert after_a_good_one[0] == (0, b"good")
    assert [offset for offset, _ in after_a_good_one] == [0, 1, 2]


@pytest.mark.parametrize("count", [-1, 2**31 - 1])
def test_a_count_that_cannot_be_is_not_believed(count: int):
    (found,) = parsed(payload(GOOD), count, last_offset_delta=0)
    assert found == (0, f"its batch has {count} records, not 0 to 500000")


@given(st.data())
def test_whatever_the_bytes_are_each_offset_comes_once(data: st.DataObject):
    whole = payload([Raw(b"value", [(b"label", b"cat")], b"key"), Raw(None), Raw(b"", [(b"a", None)])])
    bytes_ = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        bytes_[data.draw(st.integers(0, len(bytes_) - 1))] = data.draw(st.integers(0, 255))
    codec = data.draw(st.sampled_from(list(raw_batches.CODECS)))
    assert [offset for offset, _ in parsed(bytes(bytes_), 3, codec=codec)] == [0, 1, 2]


def test_a_timestamp_that_is_no_int64_becomes_the_batchs():
    (found,) = in_batch(batch(payload([Raw(b"x", timestamp_delta=2**63 - 1)]), 1))
    assert found.timestamp_ms == raw_batches.TIMESTAMP_MS


def test_a_record_of_every_shape_is_read_as_it_was_sent():
    shapes = [Raw(None), Raw(b"", key=b""), Raw(b"v", [(b"", b""), ("ü".encode(), None)], b"k", timestamp_delta=-7)]
    at = raw_batches.TIMESTAMP_MS
    assert in_batch(batch(payload(shapes), 3, base_offset=5)) == [
        Record("t", 0, 5, at, None, None, []),
        Record("t", 0, 6, at, b"", b"", []),
        Record("t", 0, 7, at - 7, b"k", b"v", [("", b""), ("ü", None)]),
    ]


# -- a damaged disk


def damage(broker: Broker, topic: str, old: bytes, new: bytes) -> None:
    """Change bytes of the topic's first segment, as a bad disk does. They must occur once."""
    segment = broker.folder / "data" / f"{topic}-0" / f"{0:020}.log"
    data = segment.read_bytes()
    assert data.count(old) == 1
    with segment.open("r+b") as file:
        file.seek(data.index(old))
        file.write(new)


@pytest.fixture
def damaged(broker: Broker, kafka: KafkaSettings, new_topic: Callable[..., str]) -> str:
    """A topic with a batch of offsets 2 to 4 that is not what was sent, and good ones around it."""
    topic = new_topic()
    for values in ([b"a", b"b"], [b"c", b"broken", b"e"], [b"f"]):
        send(kafka, topic, batch(payload([Raw(value) for value in values]), len(values)))
    damage(broker, topic, b"broken", b"brOken")
    return topic


def test_a_damaged_batch_ends_reading_where_it_begins(kafka: KafkaSettings, damaged: str):
    settings = InputSettings(topics=[damaged])
    with closing(Source(kafka, settings, {damaged: {0: 0}})) as source:
        items: list[Record | Gap] = []
        with pytest.raises(InputError, match=rf"{damaged}\[0\] that holds offset 2 is damaged.*skip offsets 2 to 5"):
            items.extend(chain.from_iterable(source.poll(POLL_S) for _ in range(POLLS)))
    assert seen(items) == [(0, b"a"), (1, b"b")]


def test_a_damaged_batch_may_be_passed_over(kafka: KafkaSettings, damaged: str):
    items = read(kafka, damaged, 6, on_lost="continue")
    assert items[2] == Gap(damaged, 0, 5, lost=True)
    assert seen(items) == [(0, b"a"), (1, b"b"), (5, b"f")]


def test_a_rebuild_passes_over_what_was_lost_and_needs_the_rest(kafka: KafkaSettings, damaged: str):
    with closing(Replay(kafka, damaged, 0, 0)) as replay:
        assert seen([*replay.read(2)]) == [(0, b"a"), (1, b"b")]
        replay.skip(5)
        assert seen([*replay.read(6)]) == [(5, b"f")]
    with pytest.raises(InputError, match="offset 2 to 5 are needed, but their batch is damaged"):
        reread(kafka, damaged, 6)


def test_a_damaged_last_batch_is_passed_over_too(broker: Broker, kafka: KafkaSettings, new_topic: Callable[..., str]):
    topic = new_topic()
    send(kafka, topic, batch(payload([Raw(b"broken"), Raw(b"b")]), 2))
    damage(broker, topic, b"broken", b"brOken")
    assert read(kafka, topic, 2, on_lost="continue") == [Gap(topic, 0, 2, lost=True)]
    send(kafka, topic, batch(payload(GOOD), 1))
    assert seen(read(kafka, topic, 3, on_lost="continue")) == [(2, b"good")]


def test_bytes_that_are_no_batch_are_passed_over_one_offset_at_a_time():
    """Brokers mostly notice themselves that the length of a batch is damaged."""
    good = batch(payload([Raw(b"a"), Raw(b"b")]), 2)
    ends = [message.end for message in take(good + good[:8] + bytes(4) + good[12:]) if isinstance(message, Damaged)]
    assert ends == [3]
    with pytest.raises(_NoBatchError):
        take(good[:8] + b"\x7f\xff\xff\xff" + good[12:])


# -- what brokers of today write no more, or rarely


def take(data: bytes) -> list[Any]:
    """Take from a fetched response what a consumer of committed records gives, from offset 0 on."""
    place, records = TopicPartition("t", 0), MemoryRecords(data)
    committed = IsolationLevel.READ_COMMITTED
    of_reader = {"budget": Budget(), "moved": set(), "filled": print, "highwater": lambda _: None}
    return _Records(0, place, records, **of_reader, isolation_level=committed).take(100)


@pytest.mark.parametrize("magic", [0, 1])
def test_records_of_before_kafka_0_11_are_read_unless_they_are_compressed(magic: int):
    def built(codec: int) -> bytes:
        builder = LegacyRecordBatchBuilder(magic, codec, 10_000)
        for offset in range(2):
            builder.append(offset, raw_batches.TIMESTAMP_MS, b"key", b"value")
        return bytes(builder.build())

    timestamp_ms = raw_batches.TIMESTAMP_MS if magic else -1
    assert take(built(0)) == [Record("t", 0, offset, timestamp_ms, b"key", b"value", []) for offset in range(2)]
    # Brokers give a compressed batch the offset of its last record.
    of_the_last = (1).to_bytes(8, "big") + built(raw_batches.CODECS["gzip"])[8:]
    gzipped = take(of_the_last)
    assert [record.offset for record in gzipped] == [0, 1]
    assert {record.unreadable for record in gzipped} == {
        "its batch is of a message format before Kafka 0.11, and compressed"
    }


def test_a_control_batch_that_compaction_left_empty_is_passed_over():
    transactional, control = 0x10, 0x20
    marker = batch(b"", 0, last_offset_delta=0, attributes=transactional | control, producer_id=1)
    after = batch(payload(GOOD), 1, base_offset=1)
    assert [(message.offset, message.value) for message in take(marker + after)] == [(1, b"good")]


# -- memory


def test_a_poll_gives_no_more_than_its_bytes(
    kafka: KafkaSettings, new_topic: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(reading, "MAX_POLL_BYTES", MIB)
    topic = new_topic()
    large = zstd_encode(payload([Raw(bytes([i]) * MIB) for i in range(4)]))
    for _ in range(3):
        send(kafka, topic, batch(large, 4, "zstd"))
    with closing(reader(kafka)) as consumer:
        place = TopicPartition(topic, 0)
        consumer.assign([place])
        consumer.seek(place, 0)
        polls: list[list[Any]] = []
        while sum(map(len, polls)) < 12:
            polls.append(consumer.poll(timeout_ms=int(1000 * POLL_S)).get(place, []))
    assert [message.offset for messages in polls for message in messages] == list(range(12))
    assert max(len(messages) for messages in polls) == 1


def test_other_topics_of_the_program_are_read_past_such_records(kafka: KafkaSettings, new_topic: Callable[..., str]):
    """As null values, which anybody can write there in any case."""
    topic = new_topic()
    send(kafka, topic, batch(payload([Raw(b"x", [(b"\xff", b"")]), *GOOD]), 2))
    settings = Settings.model_validate({"run": {"id": "r"}, "input": {"topics": ["t"]}, "kafka": kafka})
    assert [record.value for record in read_committed(settings, topic)] == [None, b"good"]
