"""Messages with many records each: what is read, what is refused, and that damaged ones only raise RejectError."""

import random
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stream_learner.contract.vocabulary import Reason
from stream_learner.formats import Fields, Record, RejectError, arrow
from stream_learner.formats.arrow import MAX_PARTS, MAX_SCHEMA_BYTES, Arrow, encode
from stream_learner.formats.record import MAX_ROWS

DAMAGED = 1500
PIXELS_NHWC = np.arange(4 * 6 * 5 * 3, dtype=np.uint8).reshape(4, 6, 5, 3)
FULL = [Fields(b"a", "cat", 0.5, "test", b"1", 7), Fields(None, "dog"), Fields(b"", None, 2.0, "train", b"", -1)]
IMAGES = pa.array([b"a", b"b"])
V4 = pa.ipc.MetadataVersion.V4


def message(value: bytes | None) -> Record:
    return Record("images", 0, 0, 0, None, value, [])


def read(value: bytes | None) -> list[Fields]:
    return [*Arrow().read(message(value)).fields]


def stream(*batches: Any, **options: Any) -> bytes:
    """Return record batches, each given by its columns, as a stream."""
    made = [pa.record_batch(columns) for columns in batches]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, made[0].schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for batch in made:
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def test_fields_are_read_as_they_were_encoded():
    assert read(encode(FULL)) == FULL


@pytest.mark.parametrize("shape", [(90,), (6, 15), (6, 5, 3)])
def test_pixels_are_read_as_they_were_encoded(shape: tuple[int, ...]):
    images = [*PIXELS_NHWC.reshape(-1, *shape)]
    found = read(encode([Fields(image, label) for label, image in enumerate(images)]))
    assert [fields.label for fields in found] == [0, 1, 2, 3]
    for fields, image in zip(found, images, strict=True):
        assert isinstance(fields.image, np.ndarray)
        assert (fields.image.shape, fields.image.tobytes()) == (shape, image.tobytes())


@pytest.mark.parametrize(
    ("name", "column", "expected"),
    [
        ("image", pa.array([b"a", None], pa.large_binary()), [b"a", None]),
        ("label", pa.array(["b", "a"]).dictionary_encode(), ["b", "a"]),
        ("label", pa.array(["b", None], pa.large_string()), ["b", None]),
        ("label", pa.array([7, 7], pa.int8()).dictionary_encode(), [7, 7]),
        ("label", pa.array([2**64 - 1, None], pa.uint64()), [2**64 - 1, None]),
        ("weight", pa.array([2**64 - 1, None], pa.uint64()), [float(2**64), None]),
        ("weight", pa.array([0.5, 2], pa.float32()), [0.5, 2]),
        ("split", pa.array(["test", None]).dictionary_encode(), ["test", None]),
        ("id", pa.array(["é", None]), ["é".encode(), None]),
        ("timestamp_ms", pa.array([1, None], pa.timestamp("s", "Europe/Rome")), [1000, None]),
        ("timestamp_ms", pa.array([2_999_999, -1], pa.timestamp("ns")), [2, -1]),
        ("timestamp_ms", pa.array([2**62, -5], pa.timestamp("s")), [-1, -5000]),
    ],
)
def test_other_types_of_columns(name: str, column: Any, expected: list[Any]):
    columns = {"image": IMAGES, "label": pa.array(["x", "y"]), name.removesuffix("_ms"): column}
    rows = read(stream(columns))
    assert [getattr(fields, name) for fields in rows] == expected
    assert [read(encode([fields])) for fields in rows] == [[fields] for fields in rows]


def test_a_null_image_among_pixels():
    column = pa.array([[1, 2], None, [3, 4]], pa.list_(pa.uint8(), 2))
    images = [fields.image for fields in read(stream({"image": column, "label": pa.array(["a"] * 3)}))]
    assert [image.tolist() if isinstance(image, np.ndarray) else image for image in images] == [[1, 2], None, [3, 4]]


def test_batches_with_their_own_dictionaries_and_other_columns():
    def batch(*labels: str) -> dict[str, Any]:
        nested = pa.array([[{"x": 1}]] * 2)
        return {"note": nested, "image": IMAGES, "label": pa.array(labels).dictionary_encode(), "more": nested}

    assert [fields.label for fields in read(stream(batch("a", "b"), batch("c", "a")))] == ["a", "b", "c", "a"]


def without(name: str) -> dict[str, Any]:
    columns = {"image": IMAGES, "label": pa.array(["x", "y"])}
    del columns[name]
    return columns


def replaced(name: str, column: Any, **options: Any) -> bytes:
    columns = {"image": IMAGES, "label": pa.array(["x", "y"]), name: column}
    return stream(columns, **options)


def of_dictionary(values: Any) -> bytes:
    labels = pa.DictionaryArray.from_arrays(pa.array([1, 0]), pa.array(values))
    return replaced("label", labels)


def with_metadata(size: int = 1, **options: Any) -> bytes:
    """Return a stream with a record batch that has metadata of its own, which names a codec as in Arrow 0.17."""
    batch = pa.record_batch({"image": pa.array([bytes(size)]), "label": pa.array(["x"])})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_batch(batch, custom_metadata={"ARROW:experimental_compression": "zstd"})
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: None, "no value"),
        (lambda: b"", "no value"),
        (lambda: b"\x89PNG\r\n", "not a sound Arrow IPC stream"),
        (lambda: encode(FULL)[:-60], "not a sound Arrow IPC stream"),
        (lambda: stream(without("label")), "no column 'label'"),
        (lambda: stream(without("image")), "no column 'image'"),
        (lambda: replaced("image", pa.array(["a", "b"])), "'image' is of type string"),
        (lambda: replaced("image", pa.array([b"a", b"b"], pa.binary_view())), "'image' is of type binary_view"),
        (lambda: replaced("image", pa.array([[1], [2]], pa.list_(pa.int8(), 1))), "'image' is of type"),
        (lambda: replaced("image", pa.array([[1], [None]], pa.list_(pa.uint8(), 1))), "pixels that are null"),
        (lambda: replaced("label", pa.array([1.5, 2])), "'label' is of type double"),
        (lambda: replaced("label", pa.array([["a"], ["b"]])), "'label' is of type list"),
        (lambda: replaced("label", pa.nulls(2)), "'label' is of type null"),
        (lambda: replaced("label", pa.array(["x" * 2000] * 2).dictionary_encode()), "more than 1024 characters"),
        (lambda: stream({"image": IMAGES, "label": IMAGES.cast("string")}, compression="zstd"), "compressed inside"),
        (lambda: replaced("label", pa.array(["a"] * 2).dictionary_encode())[:-200], "not a sound"),
        (lambda: encode([Fields(b"", "a")] * (MAX_ROWS + 1)), f"more than {MAX_ROWS} rows"),
        (lambda: stream(*[{"image": IMAGES, "label": IMAGES.cast("string")}] * (MAX_PARTS + 1)), "record batches"),
        (lambda: of_dictionary(range(MAX_ROWS)), f"more than {MAX_ROWS} rows and entries of dictionaries"),
        (lambda: with_metadata(), "metadata of single record batches"),
        (lambda: replaced("label", IMAGES.cast("string"), metadata_version=V4), "before V5"),
        (lambda: replaced("x" * MAX_SCHEMA_BYTES, IMAGES), "schema has more than"),
        (lambda: encode(FULL) + encode(FULL), "after the end of the stream"),
        (lambda: encode(FULL) + bytes(8), "after the end of the stream"),
        (lambda: encode(FULL) + b"\0\0\1", "after the end of the stream"),
        (lambda: encode([Fields(PIXELS_NHWC[0], 1)]).replace(b"[6,5,3]", b"[6,5,9]"), r"image|sound"),
    ],
)
def test_what_is_refused(make: Callable[[], bytes | None], why: str):
    with pytest.raises(RejectError, match=why) as refused:
        read(make())
    assert refused.value.reason is Reason.BAD_ENVELOPE


def test_compressed_dictionaries_are_refused_before_they_are_read():
    bomb = stream(
        {"image": pa.array([b""]), "label": pa.array(["x" * 1_000_000]).dictionary_encode()}, compression="zstd"
    )
    assert len(bomb) < 10_000
    with pytest.raises(RejectError, match="compressed inside"):
        read(bomb)


def test_compression_that_only_the_metadata_of_a_batch_tells_is_refused():
    """In messages of V4, Arrow reads the codec there if the field of the compression is absent."""
    bomb = bytearray(with_metadata(1_000_000, compression="zstd", metadata_version=V4))
    source = pa.BufferReader(bytes(bomb))
    _, part = pa.ipc.MessageReader.open_stream(source)
    metadata = memoryview(part.metadata)
    header = arrow._table(metadata, struct.unpack_from("<I", metadata)[0], arrow.HEADER)
    vtable = header - struct.unpack_from("<i", metadata, header)[0]
    struct.pack_into("<H", bomb, bomb.index(bytes(metadata)) + vtable + 4 + 2 * arrow.COMPRESSION, 0)
    assert len(bomb) < 1000
    assert pa.ipc.open_stream(bytes(bomb)).read_all().nbytes > 1_000_000
    with pytest.raises(RejectError, match="before V5"):
        read(bytes(bomb))


def test_a_dictionary_is_read_in_each_batch_as_far_as_it_is_used():
    labels = pa.DictionaryArray.from_arrays(pa.array([2, None, 2]), pa.array(["a", "x" * 2000, "c"]))
    batch = {"image": pa.array([b"a"] * 3), "label": labels}
    empty = {"image": IMAGES[:0], "label": labels[:0]}
    assert [fields.label for fields in read(stream(batch, empty, batch))] == ["c", None, "c"] * 2


@pytest.mark.parametrize("end", [b"", bytes(7)])
def test_padding_after_the_end_and_an_end_without_a_marker(end: bytes):
    assert read(encode(FULL) + end) == read(encode(FULL).removesuffix(b"\xff\xff\xff\xff\0\0\0\0") + end) == FULL


def test_columns_of_one_name_are_refused():
    batch = pa.RecordBatch.from_arrays([IMAGES, IMAGES, IMAGES.cast("string")], ["image", "image", "label"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(RejectError, match="same name"):
        read(sink.getvalue().to_pybytes())


def test_damaged_messages_are_read_or_refused():
    """Random bits and lengths. Each row that is read can be encoded, as a dead letter."""
    rng = random.Random(0)
    whole = [
        encode(FULL),
        encode([Fields(image, 3) for image in PIXELS_NHWC]),
        replaced("label", pa.array(["b", "a"]).dictionary_encode()),
    ]
    refused = 0
    for _ in range(DAMAGED):
        data = bytearray(rng.choice(whole))
        for _ in range(rng.choice((1, 1, 2, 8))):
            place = rng.randrange(len(data) - 4)
            if rng.random() < 0.5:
                data[place] ^= 1 << rng.randrange(8)
            else:
                struct.pack_into("<i", data, place, rng.choice((-1, 0, 2**31 - 1, rng.randrange(256))))
        try:
            rows = Arrow().read(message(bytes(data)))
        except RejectError:
            refused += 1
        else:
            for fields in rows.fields[:2]:
                rows.encode(fields)
    assert 0 < refused < DAMAGED


def test_raw_pixels_of_two_shapes_are_not_encoded():
    with pytest.raises(ValueError, match="some images are encoded"):
        arrow.encode([Fields(b"a", "x"), Fields(PIXELS_NHWC[0], "x")])
