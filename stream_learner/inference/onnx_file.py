"""A self-contained ONNX file: a graph with the parameters of a release in it.

A graph is a protobuf message (https://protobuf.dev/programming-guides/encoding). Only the tensors that lie outside of
the graph are changed, by the field numbers of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from stream_learner.contract.tensors import Arrays
from stream_learner.inference.onnx import PREFIX

# Fields of ModelProto, GraphProto and TensorProto.
GRAPH = 7
INITIALIZER = 5
NAME, RAW_DATA, EXTERNAL_DATA, DATA_LOCATION = 8, 9, 13, 14
# Wire types.
VARINT, I64, BYTES, I32 = 0, 1, 2, 5


class _Field(NamedTuple):
    """A field of a message: its number, the content, and the whole field as it is encoded."""

    number: int
    content: bytes
    encoded: bytes


def self_contained(graph: bytes, parameters: Arrays) -> bytes:
    """Return the graph as a model that holds its parameters.

    Raises ValueError when the bytes are no graph, or when a parameter is missing.
    """
    with_values = partial(_with_values, parameters=parameters)
    return _changed(graph, GRAPH, lambda graph: _changed(graph, INITIALIZER, with_values))


def _with_values(tensor: bytes, parameters: Arrays) -> bytes:
    fields = list(_fields(tensor))
    if all(field.number != EXTERNAL_DATA for field in fields):
        return tensor
    (name,) = (field.content.decode() for field in fields if field.number == NAME)
    array = parameters.get(name.removeprefix(PREFIX))
    if array is None:
        raise ValueError(f"the release has no parameter for the graph's {name}")
    kept = [field.encoded for field in fields if field.number not in (EXTERNAL_DATA, DATA_LOCATION)]
    little_endian = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return b"".join([*kept, _encoded(RAW_DATA, np.ascontiguousarray(little_endian).tobytes())])


def _changed(message: bytes, number: int, change: Callable[[bytes], bytes]) -> bytes:
    """Return a message with the content of all fields of this number changed."""
    return b"".join(
        _encoded(number, change(field.content)) if field.number == number else field.encoded
        for field in _fields(message)
    )


def _fields(message: bytes) -> Iterator[_Field]:
    start = 0
    while start < len(message):
        tag, at = _varint(message, start)
        if tag & 7 == VARINT:
            _, end = _varint(message, at)
        elif tag & 7 == BYTES:
            size, at = _varint(message, at)
            end = at + size
        elif tag & 7 in (I32, I64):
            end = at + (8 if tag & 7 == I64 else 4)
        else:
            raise ValueError("the graph is not a protobuf message")
        if end > len(message):
            raise ValueError("the graph is cut off")
        yield _Field(tag >> 3, message[at:end], message[start:end])
        start = end


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Decode the number at a position. Return it and the position behind it."""
    number = shift = 0
    while at < len(message) and shift < 64:
        number |= (message[at] & 0x7F) << shift
        if message[at] < 0x80:
            return number, at + 1
        at, shift = at + 1, shift + 7
    raise ValueError("the graph is cut off")


def _encoded(number: int, content: bytes) -> bytes:
    """Encode a field whose content is bytes."""
    return _varint_of(number << 3 | BYTES) + _varint_of(len(content)) + content


def _varint_of(number: int) -> bytes:
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])
