"""Nulls in records to send, where kafka-python's producer takes only bytes.

Kafka allows a header without a value, and a record without key and value. `KafkaProducer.send` refuses both, and its
record batches can hold both. So `NULL` takes the place of such a null until the record is written into its batch.
"""

from kafka.record import memory_records
from kafka.record.default_records import DefaultRecordBatchBuilder, DefaultRecordMetadata

NULL = bytes(bytearray(b"null"))
"""This very object means null, as a key or as a header's value; equal bytes do not."""


class NullBuilder(DefaultRecordBatchBuilder):
    """A record batch that writes null for `NULL`."""

    def append(
        self,
        offset: int,
        timestamp: int | None,
        key: bytes | None,
        value: bytes | None,
        headers: list[tuple[str, bytes]],
    ) -> DefaultRecordMetadata | None:
        """Add a record; return None if the batch is full."""
        nullable = [(name, None if content is NULL else content) for name, content in headers]
        return super().append(offset, timestamp, None if key is NULL else key, value, nullable)


# The producer has no argument for it.
memory_records.DefaultRecordBatchBuilder = NullBuilder
