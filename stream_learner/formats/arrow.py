"""The format of messages that hold many records each, as an Arrow IPC stream."""

import math
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from stream_learner.contract.vocabulary import Reason
from stream_learner.errors import UsageError
from stream_learner.formats.format import Format
from stream_learner.formats.labels import INT64, MAX_RAW_LABEL_CHARACTERS
from stream_learner.formats.record import MAX_ROWS, Fields, Record, RejectError, Rows

try:
    import pyarrow as pa
    from pyarrow import types
except ImportError as error:
    raise UsageError("input.format = arrow needs pyarrow: pip install 'stream-learner[arrow]'") from error

MAX_PARTS = 1_000
"""Largest number of record batches and dictionaries in a message."""
MAX_SCHEMA_BYTES = 256 * 1024
"""Largest schema of a message, with its metadata. Each column costs memory and time, even if it is not used."""
PADDING = 8
"""Alignment of a stream's parts, in bytes."""
NEEDED = ("image", "label")
OPTIONAL = ("weight", "split", "id", "timestamp")
# Values of `header_type` in the metadata of a part, and the places of fields in its tables (Arrow's Message.fbs).
SCHEMA, DICTIONARY, BATCH = 1, 2, 3
V5 = 4
VERSION, HEADER_TYPE, HEADER, CUSTOM_METADATA = 0, 1, 2, 4
DATA_OF_DICTIONARY = 1
LENGTH, COMPRESSION = 0, 3


class Arrow(Format):
    """The value is an Arrow IPC stream. Each row is a record, with the columns `image` and `label`.

    The columns `weight`, `split`, `id` and `timestamp` are optional. Other columns are ignored.
    """

    def read(self, record: Record) -> Rows:
        if not record.value:
            raise _bad("the message has no value")
        try:
            rows = [fields for batch in _batches(record.value) for fields in _fields(batch)]
        except (pa.ArrowException, OSError, ValueError, struct.error) as error:
            raise _bad(f"the value is not a sound Arrow IPC stream: {error}") from None
        return Rows(rows, lambda fields: encode([fields]))


def encode(rows: Sequence[Fields]) -> bytes:
    """Encode records as an Arrow IPC stream of one record batch.

    Images are all encoded, or are all pixels of one shape. Raises ValueError otherwise.
    """
    columns = {
        "image": _image_column([fields.image for fields in rows]),
        "label": _label_column([fields.label for fields in rows]),
    }
    optional = {
        "weight": (pa.float64(), [fields.weight for fields in rows]),
        "split": (pa.string(), [fields.split for fields in rows]),
        "id": (pa.binary(), [fields.id for fields in rows]),
        "timestamp": (pa.int64(), [fields.timestamp_ms for fields in rows]),
    }
    for name, (kind, values) in optional.items():
        if any(value is not None for value in values):
            columns[name] = pa.array(values, kind)
    batch = pa.record_batch(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def _label_column(labels: Sequence[Any]) -> Any:
    """Return a column that `read` takes, also for labels that no sample may have, because dead letters have them."""
    if all(label is None for label in labels):
        return pa.array(labels, pa.string())
    is_large = any(isinstance(label, int) and label not in INT64 for label in labels)
    return pa.array(labels, pa.uint64() if is_large else None)


def _image_column(images: Sequence[bytes | np.ndarray | None]) -> Any:
    pixels = [image for image in images if isinstance(image, np.ndarray)]
    if not pixels:
        return pa.array(images, pa.binary())
    if len(pixels) < len(images):
        raise ValueError("some images are encoded and some are pixels; give one kind")
    shape = pixels[0].shape
    flat = pa.array(np.stack(pixels).reshape(-1), pa.uint8())
    stored = pa.FixedSizeListArray.from_arrays(flat, pixels[0].size)
    if len(shape) == 1:
        return stored
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.uint8(), shape), stored)


def _bad(message: str) -> RejectError:
    return RejectError(Reason.BAD_ENVELOPE, message)


def _batches(value: bytes) -> Iterator[Any]:
    """Yield the record batches of a stream, with only the columns that are used. Raises RejectError, ArrowException.

    Everything that is read lies in the bytes of the value: compressed parts are refused.
    """
    buffer = pa.py_buffer(value)
    _check_parts(buffer)
    schema = pa.ipc.open_stream(buffer).schema
    used: dict[str, int] = {}
    for place, name in enumerate(schema.names):
        if name in used:
            raise _bad("two columns of the message have the same name")
        if name in NEEDED + OPTIONAL:
            _check_type(name, schema.field(place).type)
            used[name] = place
    for name in NEEDED:
        if name not in used:
            raise _bad(f"the message has no column {name!r}")
    options = pa.ipc.IpcReadOptions(included_fields=[*used.values()], use_threads=False)
    for batch in pa.ipc.open_stream(buffer, options=options):
        if len(batch):
            batch.validate(full=True)
            yield batch


def _check_parts(buffer: Any) -> None:
    """Check the metadata of each part, before any part is read, and that nothing comes after the stream."""
    stream, rows = pa.BufferReader(buffer), 0
    for number, message in enumerate(pa.ipc.MessageReader.open_stream(stream)):
        if number > MAX_PARTS:
            raise _bad(f"the message has more than {MAX_PARTS} record batches and dictionaries; send larger batches")
        metadata = memoryview(message.metadata)
        table = struct.unpack_from("<I", metadata)[0]
        kind = _scalar(metadata, table, HEADER_TYPE, "<B")
        if number == 0 and kind == SCHEMA:
            if len(metadata) > MAX_SCHEMA_BYTES:
                raise _bad(f"the message's schema has more than {MAX_SCHEMA_BYTES} bytes; send fewer columns")
            continue
        if kind not in (DICTIONARY, BATCH):
            raise ValueError(f"part {number} is of kind {kind}")
        part = _table(metadata, table, HEADER)
        if kind == DICTIONARY:
            part = _table(metadata, part, DATA_OF_DICTIONARY)
        # Arrow also reads the compression of a V4 part from the part's custom metadata.
        if _scalar(metadata, table, VERSION, "<h") < V5 or _field(metadata, table, CUSTOM_METADATA):
            raise _bad("the message has an Arrow metadata version before V5, or metadata of single record batches")
        if _field(metadata, part, COMPRESSION):
            raise _bad("the message is compressed inside; use the producer's compression.type instead")
        rows += max(0, _scalar(metadata, part, LENGTH, "<q"))
        if rows > MAX_ROWS:
            raise _bad(f"the message has more than {MAX_ROWS} rows and entries of dictionaries; send smaller messages")
    rest = memoryview(buffer)[stream.tell() :]
    if len(rest) >= PADDING or any(rest):
        raise _bad("the message has bytes after the end of the stream; send each stream as a message of its own")


def _field(metadata: memoryview, table: int, field: int) -> int:
    """Return where a field of a FlatBuffers table is in the metadata, 0 if the table lacks the field."""
    vtable = table - struct.unpack_from("<i", metadata, table)[0]
    if vtable < 0:
        raise ValueError("damaged metadata")
    entry = 4 + 2 * field
    if entry >= struct.unpack_from("<H", metadata, vtable)[0]:
        return 0
    offset = struct.unpack_from("<H", metadata, vtable + entry)[0]
    return table + offset if offset else 0


def _scalar(metadata: memoryview, table: int, field: int, kind: str) -> int:
    place = _field(metadata, table, field)
    return struct.unpack_from(kind, metadata, place)[0] if place else 0


def _table(metadata: memoryview, table: int, field: int) -> int:
    place = _field(metadata, table, field)
    if not place:
        raise ValueError("damaged metadata")
    return place + struct.unpack_from("<I", metadata, place)[0]


def _is_text(kind: Any) -> bool:
    return types.is_string(kind) or types.is_large_string(kind)


def _is_bytes(kind: Any) -> bool:
    return types.is_binary(kind) or types.is_large_binary(kind)


def _check_type(name: str, kind: Any) -> None:
    plain = kind.value_type if types.is_dictionary(kind) else kind
    if name == "image":
        fits = _is_bytes(kind) or _is_pixels(kind)
    elif name == "label":
        fits = _is_text(plain) or types.is_integer(plain)
    elif name == "weight":
        fits = types.is_floating(kind) or types.is_integer(kind)
    elif name == "split":
        fits = _is_text(plain)
    elif name == "id":
        fits = _is_text(kind) or _is_bytes(kind)
    else:
        fits = types.is_timestamp(kind) or types.is_int64(kind)
    if not fits:
        raise _bad(f"the column {name!r} is of type {kind!s:.100}, which is not read (docs/topics.md)")


def _is_pixels(kind: Any) -> bool:
    if isinstance(kind, pa.FixedShapeTensorType):
        in_order = kind.permutation in (None, [*range(len(kind.shape))])
        is_image = len(kind.shape) in (2, 3) and _is_pixels(kind.storage_type)
        return in_order and is_image and math.prod(kind.shape) == kind.storage_type.list_size
    return types.is_fixed_size_list(kind) and types.is_uint8(kind.value_type) and kind.list_size > 0


def _fields(batch: Any) -> Iterator[Fields]:
    """Return the fields of each row of a validated record batch."""
    missing = [None] * len(batch)
    columns = {name: batch.column(name) for name in batch.schema.names}
    image = columns["image"]
    ids, times = columns.get("id"), columns.get("timestamp")
    return map(
        Fields,
        _pixels(image) if _is_pixels(image.type) else image.to_pylist(),
        _values(columns["label"]),
        _floats(columns["weight"]) if "weight" in columns else missing,
        _values(columns["split"]) if "split" in columns else missing,
        missing if ids is None else _bytes(ids).to_pylist(),
        missing if times is None else _times_ms(times),
    )


def _values(column: Any) -> list[Any]:
    """Return the values of a column. A value of a dictionary is in memory once, however often it is used."""
    if not types.is_dictionary(column.type):
        return column.to_pylist()
    used = column.indices.unique()  # a dictionary may be large, and is there again in each record batch
    values = dict(zip(used.to_pylist(), column.dictionary.take(used).to_pylist(), strict=True))
    if any(isinstance(value, str) and len(value) > MAX_RAW_LABEL_CHARACTERS for value in values.values()):
        # Each dead letter of a row repeats the value.
        raise _bad(f"a dictionary has a text of more than {MAX_RAW_LABEL_CHARACTERS} characters")
    return [values[index] for index in column.indices.to_pylist()]


def _floats(column: Any) -> list[float | None]:
    return [None if value is None else float(value) for value in column.to_pylist()]


def _bytes(column: Any) -> Any:
    large = types.is_large_string(column.type) or types.is_large_binary(column.type)
    return column.cast(pa.large_binary() if large else pa.binary())


def _times_ms(column: Any) -> list[int | None]:
    """Return the times in milliseconds; -1 for a time that does not fit into 64 bits."""
    per_second = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
    unit = per_second[column.type.unit] if types.is_timestamp(column.type) else 1_000
    times = (None if time is None else time * 1000 // unit for time in column.cast(pa.int64()).to_pylist())
    return [time if time is None or time in INT64 else -1 for time in times]


def _pixels(column: Any) -> list[np.ndarray | None]:
    """Return the pixels of each row, views of the message."""
    tensor = isinstance(column.type, pa.FixedShapeTensorType)
    stored = column.storage if tensor else column
    shape = column.type.shape if tensor else [stored.type.list_size]
    flat = stored.flatten()  # without the rows that are null
    if flat.null_count:
        raise _bad("an image has pixels that are null")
    pixels = flat.to_numpy().reshape(-1, *shape)
    if not stored.null_count:
        return list(pixels)
    images = iter(pixels)
    return [next(images) if valid else None for valid in stored.is_valid().to_pylist()]
