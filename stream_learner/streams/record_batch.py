"""Parser of record batches (KIP-98, magic 2) that continues after malformed records.

kafka-python's own parser stops the whole partition at the first malformed record.
"""

from collections.abc import Iterator

from kafka.record.default_records import DefaultRecordBatch
from kafka.record.util import decode_varint
from kafka.structs import TopicPartition

from stream_learner.config import MIB
from stream_learner.formats.record import Record
from stream_learner.streams.decompression import decompress

# Maximum size of a decompressed batch: this size, or this multiple of the compressed size if the multiple is larger.
MAX_DECOMPRESSED_BYTES = 64 * MIB
MAX_RATIO = 4
# Each record and each header costs memory and time, even if it has few bytes.
MAX_RECORDS = 500_000
MAX_HEADERS = 1_000
INT64 = range(-(2**63), 2**63)


class Batch:
    """A record batch of a partition, with a correct CRC. Its content is not trusted."""

    def __init__(self, batch: DefaultRecordBatch, place: TopicPartition):
        self._batch = batch
        self._place = place
        compressed = memoryview(batch._buffer)[batch._pos :].tobytes()
        self._why: str | None = None
        self._data = b""
        try:
            if not 0 <= batch.records_count <= MAX_RECORDS:
                raise ValueError(f"its batch has {batch.records_count} records, not 0 to {MAX_RECORDS}")
            limit = max(MAX_DECOMPRESSED_BYTES, MAX_RATIO * len(compressed))
            self._data = decompress(batch.compression_type, compressed, limit)
        except ValueError as error:
            self._why = str(error)

    @property
    def cost_bytes(self) -> int:
        """Number of bytes that were decompressed to read the batch. For a failed decompression, the usual limit."""
        if not self._batch.compression_type:
            return 0
        return MAX_DECOMPRESSED_BYTES if self._why else len(self._data)

    def __iter__(self) -> Iterator[Record]:
        """Yield every record in the order of offsets. A record that cannot be read says why it is `unreadable`."""
        batch, data, why = self._batch, self._data, self._why
        (topic, partition), base_offset, last_offset = self._place, batch.base_offset, batch.last_offset
        appended = batch.timestamp_type == DefaultRecordBatch.LOG_APPEND_TIME
        first_timestamp, max_timestamp = batch.first_timestamp, batch.max_timestamp
        expected, at = base_offset, 0
        for _ in range(0 if why else batch.records_count):
            try:
                timestamp_delta, offset_delta, content_at, at = _start(data, at)
            except (ValueError, IndexError) as error:
                why = f"its batch is malformed from here on ({error})"
                break
            offset = base_offset + offset_delta
            if not expected <= offset <= last_offset:
                why = f"its batch is malformed from here on (offset {offset} does not come next)"
                break
            timestamp_ms = first_timestamp + timestamp_delta
            if appended or timestamp_ms not in INT64:
                timestamp_ms = max_timestamp
            try:
                content, unreadable = _content(data, content_at, at), None
            except (ValueError, IndexError) as error:
                content, unreadable = (None, None, []), f"the record is malformed ({error})"
            yield Record(topic, partition, offset, timestamp_ms, *content, unreadable)
            expected = offset + 1
        if why:
            for offset in range(expected, last_offset + 1):
                yield Record(topic, partition, offset, max_timestamp, None, None, [], why)


def _start(data: bytes, at: int) -> tuple[int, int, int, int]:
    """Return a record's timestamp delta and offset delta, and where its content begins and ends.

    Raises ValueError or IndexError if the record's end is not known.
    """
    length, at = decode_varint(data, at)
    end = at + length
    if length < 0 or end > len(data):
        raise ValueError(f"a record of {length} bytes")
    timestamp_delta, at = decode_varint(data, at + 1)  # skips the record's attributes, which are not used
    offset_delta, at = decode_varint(data, at)
    return timestamp_delta, offset_delta, at, end


def _content(data: bytes, at: int, end: int) -> tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]]]:
    """Return key, value and headers. Raises ValueError or IndexError if they are malformed."""
    key, at = _bytes(data, at, end)
    value, at = _bytes(data, at, end)
    count, at = decode_varint(data, at)
    if not 0 <= count <= MAX_HEADERS:
        raise ValueError(f"{count} headers")
    headers = []
    for _ in range(count):
        raw_name, at = _bytes(data, at, end)
        if raw_name is None:
            raise ValueError("a header without a name")
        try:
            name = raw_name.decode()
        except UnicodeDecodeError:
            raise ValueError(f"the header name {raw_name[:100]!r} is not UTF-8") from None
        content, at = _bytes(data, at, end)
        headers.append((name, content))
    if at != end:
        raise ValueError(f"{end - at} bytes too many")
    return key, value, headers


def _bytes(data: bytes, at: int, end: int) -> tuple[bytes | None, int]:
    size, at = decode_varint(data, at)
    if size < 0:
        return None, at
    if size > end - at:
        raise ValueError(f"a field of {size} bytes where {end - at} are left")
    return data[at : at + size], at + size
