"""Read parquet files in the image layout of Hugging Face's `datasets` library."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from stream_learner.errors import DataError
from stream_learner.local import extra
from stream_learner.local.files import place

IMAGES = ("img", "image")
LABELS = ("label", "fine_label", "labels")


class Rows(NamedTuple):
    """Image bytes, label, id and file of each row of all files. `names` are the class names if labels are numbers."""

    images: list[bytes | None]
    values: list[Any]
    ids: list[str]
    files: list[Path]
    names: list[str] | None


def read(root: Path, files: Sequence[Path], layouts: str) -> Rows:
    """Read all files. Raises UsageError, and DataError that names the accepted `layouts`."""
    with extra("demo"):
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

    rows = Rows([], [], [], [], None)
    for file in files:
        try:
            schema = pq.read_schema(file)
            image, label = _columns(schema)
            own = _class_names(schema.metadata or {}, label)
            table = pq.read_table(file, columns=[image, label])
            rows.images.extend(pc.struct_field(table[image], "bytes").to_pylist())  # pyright: ignore[reportAttributeAccessIssue]
            rows.values.extend(table[label].to_pylist())
        except (ValueError, OSError, pa.ArrowException, msgspec.MsgspecError) as error:
            raise DataError(f"{file} is not in the image layout ({error}); {layouts}") from None
        if rows.names and own and own != rows.names:
            raise DataError(f"{file} has different classes from {files[0]}; give a folder with one configuration")
        rows = rows._replace(names=rows.names or own)
        rows.ids.extend(f"{place(file, root)}/{row}" for row in range(len(table)))
        rows.files.extend([file] * len(table))
    return rows


def _columns(schema: Any) -> tuple[str, str]:
    """Return the names of the image column and the label column. Raises ValueError.

    Among several image columns, `img` and `image` come first.
    """
    import pyarrow as pa

    images = [field.name for field in schema if _holds_images(field.type)]
    images.sort(key=lambda name: name not in IMAGES)
    labels = [name for name in LABELS if name in schema.names]
    if not (images and labels):
        missing = f"is {' or '.join(LABELS)}" if images else "has structs with a binary field `bytes`"
        raise ValueError(f"none of its columns ({', '.join(schema.names)}) {missing}")
    if pa.types.is_nested(schema.field(labels[0]).type):
        raise ValueError(f"`{labels[0]}` has several labels per image")
    return images[0], labels[0]


def _holds_images(column: Any) -> bool:
    from pyarrow import types

    index = column.get_field_index("bytes") if types.is_struct(column) else -1
    binary = types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary
    return index >= 0 and any(is_kind(column[index].type) for is_kind in binary)


def _class_names(metadata: dict[bytes, bytes], label: str) -> list[str] | None:
    """Return the names of integer labels, or None if the file's schema has no names. Raises MsgspecError."""
    if b"huggingface" in metadata:
        features = msgspec.json.decode(metadata[b"huggingface"], type=_HuggingFace).info.features
        return msgspec.convert(features.get(label, {}), _Feature).names
    return msgspec.json.decode(metadata.get(b"classes", b"null"), type=list[str] | None)


class _Feature(msgspec.Struct):
    names: list[str] | None = None


class _Info(msgspec.Struct):
    features: dict[str, Any] = {}


class _HuggingFace(msgspec.Struct):
    info: _Info = msgspec.field(default_factory=_Info)
