"""Small data sets for tests, made from code."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def encoded(value: int, width: int = 6, height: int = 4, mode: str = "RGB", format: str = "PNG") -> bytes:  # noqa: A002
    file = io.BytesIO()
    Image.new(mode, (width, height), value).save(file, format)
    return file.getvalue()


def write_parquet(
    file: Path, labels: list, column: str = "image", metadata: dict | None = None, **image
) -> list[bytes]:
    images = [encoded(value, **image) for value in range(len(labels))]
    write_rows(file, list(images), labels, column, metadata)
    return images


def write_rows(
    file: Path, images: list[bytes | None], labels: list, column: str = "image", metadata: dict | None = None
) -> None:
    rows = [{"bytes": image, "path": None} for image in images]
    fields = [(column, pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.array(labels).type)]
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: rows, "label": labels}, schema=pa.schema(fields, metadata)), file)


def write_image(file: Path, image: bytes | None = None) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(encoded(0) if image is None else image)
    return file
