"""State and releases as bytes: safetensors, with the JSON part in its metadata. Never pickle."""

from typing import Any

import msgspec
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

DOCUMENT = "document"

Tensors = dict[str, Tensor]


def encode(tensors: Tensors, document: dict[str, Any] | None = None) -> bytes:
    """Tensors (contiguous, on the CPU) and a JSON document, as one safetensors file."""
    metadata = {DOCUMENT: msgspec.json.encode(document, order="deterministic").decode()} if document else None
    return save(tensors, metadata)


def decode_tensors(data: bytes) -> Tensors:
    """Raises ValueError when the bytes are not safetensors."""
    try:
        return load(data)
    except SafetensorError as error:
        raise ValueError(f"not safetensors: {error}") from None


def decode_document(data: bytes) -> dict[str, Any]:
    """The JSON part. Raises ValueError when there is none."""
    # The format: 8 bytes little-endian length, then a JSON header (https://github.com/huggingface/safetensors).
    length = int.from_bytes(data[:8], "little")
    try:
        header = msgspec.json.decode(data[8 : 8 + length])
        return msgspec.json.decode(header["__metadata__"][DOCUMENT])
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise ValueError(f"no document in the metadata: {error}") from None
