"""Messages that hold many records each, as an outsider writes and reads them with Arrow.

It uses no code of the worker.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
from feed import MAX_RECORD_BYTES, TOMBSTONE, UNREADABLE, Draft

KEY = b"envelope"
# Images in a message. The rest of what the worker accepts is room for the other columns.
MAX_BYTES = MAX_RECORD_BYTES * 3 // 4
OF_MESSAGES = (TOMBSTONE, UNREADABLE, "oversized_image")
SCHEMA = pa.schema(
    [
        ("image", pa.binary()),
        ("label", pa.string()),
        ("weight", pa.float64()),
        ("split", pa.string()),
        ("id", pa.binary()),
    ]
)


def packed(drafts: Iterable[Draft], rows: int) -> Iterator[Draft]:
    """Put records into messages of up to `rows` rows each. The order stays.

    Records that can only be whole messages stay as they are. If they are no deletion markers, they are rejected.
    """
    waiting: list[Draft] = []
    for draft in drafts:
        fits = len(waiting) < rows and sum(len(row.value or b"") for row in [*waiting, draft]) <= MAX_BYTES
        if waiting and not (fits and _can_be_row(draft)):
            yield _message(waiting)
            waiting = []
        if _can_be_row(draft):
            waiting.append(draft)
        else:
            yield draft if draft.fate in OF_MESSAGES else draft._replace(fate="bad_envelope")
    if waiting:
        yield _message(waiting)


def row(draft: Draft) -> dict[str, Any]:
    """Return a record as a row, without optional fields that it lacks. Raises ValueError if it cannot be one."""
    headers = dict(draft.headers)
    label, weight, split, id_ = (headers.get(name) for name in ("label", "weight", "split", "id"))
    optional = {
        "weight": None if weight is None else float(weight),
        "split": split and split.decode(),
        "id": id_,
    }
    columns = {"image": draft.value, "label": label if label is None else label.decode()}
    return columns | {name: value for name, value in optional.items() if value is not None}


def rows_in(value: bytes | None) -> list[dict[str, Any]]:
    """Return the rows of a message. Raises ArrowInvalid if it holds none."""
    return pa.ipc.open_stream(value or b"").read_all().to_pylist()


def _can_be_row(draft: Draft) -> bool:
    if draft.fate in (TOMBSTONE, UNREADABLE) or len(draft.value or b"") > MAX_BYTES:
        return False
    try:
        row(draft)
    except ValueError:
        return False
    return True


def _message(rows: Sequence[Draft]) -> Draft:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, SCHEMA) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist([row(draft) for draft in rows], SCHEMA))
    return Draft(KEY, sink.getvalue().to_pybytes(), [], None, tuple(rows))
