"""Encoding of states and releases as safetensors, never as pickle. The metadata hold the JSON part of a state.

Format: https://github.com/huggingface/safetensors. Readers need only numpy.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from stream_learner.contract import documents
from stream_learner.errors import out_of_memory

DOCUMENT = "document"
# The format's own bound.
MAX_HEADER_BYTES = 100_000_000

Arrays = Mapping[str, np.ndarray]


class _Header(msgspec.Struct):
    metadata: dict[str, str] = msgspec.field(name="__metadata__")


def encode(arrays: Arrays, document: dict[str, Any] | None = None) -> bytes:
    """Encode contiguous arrays and a JSON document as one safetensors file."""
    metadata = {DOCUMENT: msgspec.json.encode(document, order="deterministic").decode()} if document else None
    return save(dict(arrays), metadata)


def decode(data: bytes) -> dict[str, np.ndarray]:
    """Decode the arrays of a safetensors file. Raises ValueError for other bytes."""
    try:
        return load(data)
    # `load` raises its own error for damaged bytes, and other errors for types that numpy lacks or impossible shapes.
    except (SafetensorError, KeyError, RuntimeError, AssertionError, TypeError, ValueError) as error:
        if out_of_memory(error):
            raise
        raise ValueError(f"not safetensors: {error}") from None


def decode_document(data: bytes) -> dict[str, Any]:
    """Decode the JSON part of a state. Raises ValueError when there is none."""
    # 8 bytes little-endian length, then a JSON header.
    length = int.from_bytes(data[:8], "little")
    try:
        if length > min(MAX_HEADER_BYTES, len(data) - 8):
            raise ValueError(f"its header claims to have {length} bytes")
        metadata = documents.decode(data[8 : 8 + length], _Header, MAX_HEADER_BYTES).metadata
        return documents.decode(metadata[DOCUMENT].encode(), dict[str, Any], MAX_HEADER_BYTES)
    except (ValueError, KeyError) as error:
        raise ValueError(f"no document in the metadata: {error}") from None
