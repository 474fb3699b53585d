"""Random edits of JSON documents, for hypothesis."""

import copy
from typing import Any

from hypothesis import strategies as st

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 3),
    st.sampled_from([2**31, 2**63, 2**64, -(2**63) - 1, 10**30]),
    st.floats(allow_subnormal=False),  # torch has switched them off
    st.text(max_size=5),
    st.sampled_from(["..", "os:system", "file:///etc/passwd", "x" * 300, "2025-01-01", "sha256:" + "0" * 64]),
)
VALUES = st.recursive(
    LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=3), v, max_size=3), max_leaves=5
)


@st.composite
def edited(draw: st.DrawFn, document: Any, most: int = 3) -> Any:
    """The document with up to `most` of its places deleted, replaced, doubled or copied from somewhere else in it."""
    changed = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, most))):
        container, place = _place(draw, changed)
        if container is None:
            return draw(VALUES)
        match draw(st.sampled_from(["delete", "replace", "double", "copy"])):
            case "delete":
                del container[place]
            case "double" if isinstance(container, list):
                container.append(copy.deepcopy(container[place]))
            case "copy":
                source, at = _place(draw, document)
                container[place] = copy.deepcopy(source[at] if source is not None else None)
            case _:
                container[place] = draw(VALUES)
    return changed


def _place(draw: st.DrawFn, document: Any) -> tuple[Any, Any]:
    """Choose a container in the document and one of its keys or indices. Both are None if the document is empty."""
    container, place = None, None
    value = document
    while isinstance(value, dict | list) and value and (container is None or draw(st.integers(0, 3))):
        container = value
        place = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
        value = value[place]
    return container, place
