"""Bodies of requests for predictions: whatever arrives gives images, or an error that says why not."""

import json
import struct
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_learner.follow.serving import protocol, rest
from stream_learner.follow.serving.protocol import RequestError

SHAPE = (2, 3, 1)
SIZE = 6
MAX_IMAGES = 3

sizes = st.integers(-1, 40) | st.sampled_from([2**31, 2**40, 2**64, None, "6"])
inputs = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["images", "ids", "x"]),
        "datatype": st.sampled_from(["UINT8", "BYTES", "FP32", ""]),
        "shape": st.sampled_from([[1, *SHAPE], [2, *SHAPE], [1], [2]]) | st.lists(sizes, max_size=4),
        "data": st.lists(st.integers(-1, 256) | st.sampled_from(["", "YQ==", [1], None, 0.5]), max_size=8),
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": sizes}),
    },
)
documents = st.fixed_dictionaries(
    {},
    optional={
        "inputs": st.lists(inputs, max_size=2),
        "outputs": st.lists(st.fixed_dictionaries({"name": st.sampled_from(["labels", "x"])}), max_size=2) | st.none(),
        "id": st.text(max_size=3) | st.none(),
    },
)


def read(body: bytes, header_length: bytes | None) -> protocol.Images | None:
    """Return the images of a body, or None when it is refused."""
    try:
        request = rest.decode(body, header_length)
        return protocol.images(request.inputs, SHAPE, MAX_IMAGES)
    except RequestError:
        return None


def check(images: protocol.Images | None) -> None:
    if isinstance(images, np.ndarray):
        assert images.dtype == np.uint8
        assert images.shape[1:] == SHAPE
    if images is not None:
        assert 1 <= len(images) <= MAX_IMAGES


@settings(max_examples=50)
@given(documents, st.binary(max_size=40), st.integers(-2, 2) | st.none())
def test_documents(document: dict[str, Any], binary: bytes, shift: int | None) -> None:
    header = json.dumps(document).encode()
    check(read(header + binary, None if shift is None else b"%d" % (len(header) + shift)))


@given(st.binary(max_size=60), st.binary(max_size=3) | st.none())
def test_bytes(body: bytes, header_length: bytes | None) -> None:
    check(read(body, header_length))


@given(st.lists(st.binary(max_size=5), min_size=1, max_size=MAX_IMAGES))
def test_elements(elements: list[bytes]) -> None:
    """The binary form of each list of elements is read as this list, and no part of it is read."""
    raw = b"".join(struct.pack("<I", len(element)) + element for element in elements)
    described = {"name": "images", "datatype": "BYTES", "shape": [len(elements)]}
    for size in range(len(raw) + 1):
        header = json.dumps({"inputs": [described | {"parameters": {"binary_data_size": size}}]}).encode()
        found = read(header + raw[:size], b"%d" % len(header))
        assert found == (elements if size == len(raw) else None)
