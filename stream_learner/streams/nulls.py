"""Send null values in records, although kafka-python's producer accepts only bytes.

Kafka allows a header without a value, and a record without key and value. `KafkaProducer.send` refuses both, although
its record batches can hold both. Therefore callers pass `NULL` for null, and `NullBuilder` writes null into the batch.
"""

from kafka.record import memory_records
from kafka.record.default_records import DefaultRecordBatchBuilder, DefaultRecordMetadata

NULL = bytes(bytearray(b"null"))
"""This object, as a key or a header's value, means null. Another object with equal bytes does not mean null."""


class NullBuilder(DefaultRecordBatchBuilder):
    """Builder of record batches that writes null for `NULL`."""

    def append(
        self,
        offset: int,
        timestamp: int | None,
        key: bytes | None,
        value: bytes | None,
        headers: list[tuple[str, bytes]],
    ) -> DefaultRecordMetadata | None:
        """Add a record. Return None if the batch is full."""
        nullable = [(name, None if content is NULL else content) for name, content in headers]
        return super().append(offset, timestamp, None if key is NULL else key, value, nullable)


# The producer has no argument for the class of its batches.
memory_records.DefaultRecordBatchBuilder = NullBuilder
