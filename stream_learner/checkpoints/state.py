"""State and releases as bytes: safetensors, with the JSON part in its metadata. Never pickle."""

from typing import Any

import msgspec
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from stream_learner.contract import documents
from stream_learner.errors import out_of_memory

DOCUMENT = "document"
# The format's own bound.
MAX_HEADER_BYTES = 100_000_000

Tensors = dict[str, Tensor]


class _Header(msgspec.Struct):
    metadata: dict[str, str] = msgspec.field(name="__metadata__")


def encode(tensors: Tensors, document: dict[str, Any] | None = None) -> bytes:
    """Tensors (contiguous, on the CPU) and a JSON document, as one safetensors file."""
    metadata = {DOCUMENT: msgspec.json.encode(document, order="deterministic").decode()} if document else None
    return save(tensors, metadata)


def decode_tensors(data: bytes) -> Tensors:
    """Decode safetensors. Raises ValueError when the bytes are not that."""
    try:
        return load(data)
    # Beside its own error it raises these for types that torch does not have and shapes that no tensor can have.
    except (SafetensorError, KeyError, RuntimeError, AssertionError, TypeError, ValueError) as error:
        if out_of_memory(error):
            raise
        raise ValueError(f"not safetensors: {error}") from None


def decode_document(data: bytes) -> dict[str, Any]:
    """Decode the JSON part. Raises ValueError when there is none."""
    # The format: 8 bytes little-endian length, then a JSON header (https://github.com/huggingface/safetensors).
    length = int.from_bytes(data[:8], "little")
    try:
        if length > min(MAX_HEADER_BYTES, len(data) - 8):
            raise ValueError(f"its header would have {length} bytes")
        metadata = documents.decode(data[8 : 8 + length], _Header, MAX_HEADER_BYTES).metadata
        return documents.decode(metadata[DOCUMENT].encode(), dict[str, Any], MAX_HEADER_BYTES)
    except (ValueError, KeyError) as error:
        raise ValueError(f"no document in the metadata: {error}") from None
