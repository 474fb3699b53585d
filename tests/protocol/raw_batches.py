"""Record batches made byte by byte, as by a hostile producer (KIP-98), and a function to send them."""

import struct
from typing import NamedTuple

from crc32c import crc32c
from kafka import KafkaAdminClient
from kafka.protocol.producer import ProduceRequest
from kafka.record.util import encode_varint

from stream_learner.config import KafkaSettings
from stream_learner.streams.connection import ask

CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
TIMESTAMP_MS = 1_700_000_000_000
ATTRIBUTES_AT = 21
HEADER = struct.Struct(">hiqqqhii")


class Raw(NamedTuple):
    """A record. Header names are bytes: producers may send what is not UTF-8."""

    value: bytes | None
    headers: list[tuple[bytes, bytes | None]] = []  # noqa: RUF012 (never changed)
    key: bytes | None = None
    offset_delta: int | None = None
    timestamp_delta: int = 0


def varint(value: int) -> bytes:
    out = bytearray()
    encode_varint(value, out.append)
    return bytes(out)


def sized(data: bytes | None) -> bytes:
    return varint(-1) if data is None else varint(len(data)) + data


def record(raw: Raw, index: int = 0) -> bytes:
    delta = index if raw.offset_delta is None else raw.offset_delta
    body = b"\0" + varint(raw.timestamp_delta) + varint(delta) + sized(raw.key) + sized(raw.value)
    body += varint(len(raw.headers)) + b"".join(sized(name) + sized(value) for name, value in raw.headers)
    return varint(len(body)) + body


def payload(records: list[Raw]) -> bytes:
    return b"".join(record(raw, i) for i, raw in enumerate(records))


def batch(
    data: bytes,
    count: int,
    codec: str = "none",
    base_offset: int = 0,
    last_offset_delta: int | None = None,
    attributes: int = 0,
    producer_id: int = -1,
) -> bytes:
    """A batch of `count` records, whose payload is `data`, compressed already. Its checksum is right."""
    last = count - 1 if last_offset_delta is None else last_offset_delta
    fields = HEADER.pack(CODECS[codec] | attributes, last, TIMESTAMP_MS, TIMESTAMP_MS, producer_id, -1, -1, count)
    body = fields + data
    return struct.pack(">qiibI", base_offset, len(body) + 9, -1, 2, crc32c(body)) + body


def send(kafka: KafkaSettings, topic: str, raw_batch: bytes, partition: int = 0) -> int:
    """Send a batch as it is, and return its first offset. Fails when the broker refuses it."""
    data = ProduceRequest.TopicProduceData
    request = ProduceRequest(
        transactional_id=None,
        acks=-1,
        timeout_ms=30_000,
        topic_data=[data(name=topic, partition_data=[data.PartitionProduceData(index=partition, records=raw_batch)])],
        max_version=9,
    )

    def question(client: KafkaAdminClient) -> int:
        (node,) = client._manager.cluster.brokers()
        response = client._manager.run(client._manager.send, request, node.node_id)
        (answer,) = response.responses[0].partition_responses
        assert answer.error_code == 0, (answer.error_code, answer.error_message)
        return answer.base_offset

    return ask(kafka, "sending a raw batch", question)
