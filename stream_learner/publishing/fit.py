"""Shorten windows and manifests that exceed the size limit of their topics."""

from typing import Any, TypeVar

import msgspec

from stream_learner.contract.manifest import Manifest, encode
from stream_learner.contract.window import Window
from stream_learner.errors import TopicsError

# Optional lists in the order in which they are omitted: the least useful first.
OMITTED_FIRST: dict[type, list[str]] = {
    Window: [
        "drifts",
        "served.releases.accuracy.per_class",
        "forgetting.per_class",
        "recent.accuracy.per_class",
        "prequential.per_class",
        "validation.per_class",
        "test.per_class",
        "rejected_by_topic",
        "weights",
        "lag",
    ],
    Manifest: ["release.forgetting.per_class", "release.validation.per_class", "release.test.per_class"],
}

Document = TypeVar("Document", Window, Manifest)


def fit(document: Document, max_bytes: int) -> tuple[Document, bytes]:
    """Empty optional lists until the document fits. Return the document and its JSON.

    `omitted` in the document names the emptied lists. Raises TopicsError when the document is too large even if all
    these lists are empty.
    """
    data = encode(document)
    for path in OMITTED_FIRST[type(document)]:
        if len(data) <= max_bytes:
            break
        emptied = _emptied(document, path)
        if emptied != document:
            document = msgspec.structs.replace(emptied, omitted=[*document.omitted, path])
            data = encode(document)
    if len(data) > max_bytes:
        raise TopicsError(
            f"the {type(document).__name__.lower()} has {len(data)} bytes, but only {max_bytes} fit in its topic. "
            "Nothing was published; read fewer topics or partitions, lower model.max_classes, checkpoint.keep or "
            "release.keep, or raise memory.segment_bytes"
        )
    return document, data


def _emptied(document: Any, path: str) -> Any:
    """Return the document with an empty list or map at a path, if the path exists. A path leads into each list item."""
    if isinstance(document, list):
        return [_emptied(item, path) for item in document]
    name, _, rest = path.partition(".")
    value = getattr(document, name)
    if value is None:
        return document
    return msgspec.structs.replace(document, **{name: _emptied(value, rest) if rest else type(value)()})
