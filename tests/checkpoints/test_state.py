import json
from contextlib import suppress

import pytest
import torch
from edits import edited
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load

from stream_learner.checkpoints.state import decode_document, decode_tensors, encode

TENSORS = {
    "model/head.weight": torch.randn(3, 4),
    "model/empty": torch.empty(0, 4),
    "optimizer/0/step": torch.tensor(7.0),
    "memory/pixels": torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4, 1),
    "memory/keys": torch.tensor([2**62, 1]),
}
DOCUMENT = {"labels": ["é", 7], "loss_normaliser": 31.999999999999996, "records": 2**40, "new_rows_from": None}
DATA = encode(TENSORS, DOCUMENT)


def test_tensors_and_document_come_back_as_they_were():
    decoded = decode_tensors(DATA)
    assert decoded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert decoded[name].dtype == tensor.dtype
        assert torch.equal(decoded[name], tensor)
    assert decode_document(DATA) == DOCUMENT


def test_the_same_state_gives_the_same_bytes():
    backwards = {name: tensor.clone() for name, tensor in reversed(TENSORS.items())}
    assert encode(backwards, dict(reversed(DOCUMENT.items()))) == DATA


def test_any_safetensors_reader_can_read_a_release():
    assert load(encode(TENSORS)).keys() == TENSORS.keys()


def test_without_a_document_there_is_none_to_decode():
    with pytest.raises(ValueError, match="no document in the metadata"):
        decode_document(encode(TENSORS))


repeatable = settings(deadline=None, derandomize=True)


@repeatable
@given(st.one_of(st.binary(max_size=100), st.integers(0, len(DATA) - 1).map(lambda end: DATA[:end])))
def test_what_is_no_state_is_refused(data):
    with pytest.raises(ValueError, match="not safetensors"):
        decode_tensors(data)


@repeatable
@given(st.binary(max_size=100))
def test_what_holds_no_document_is_refused(data):
    with pytest.raises(ValueError, match="no document in the metadata"):
        decode_document(data)


HEADER_END = 8 + int.from_bytes(DATA[:8], "little")


def with_header(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + DATA[HEADER_END:]


@repeatable
@given(edited(json.loads(DATA[8:HEADER_END])))
def test_whatever_a_header_says_it_is_a_state_or_refused(header):
    data = with_header(json.dumps(header).encode())
    for decode in (decode_tensors, decode_document):
        with suppress(ValueError):
            decode(data)


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 1_000_000,
        b'{"__metadata__": {"document": "' + b"[" * 1_000_000 + b'"}}',
        b'{"__metadata__": {"document": "[]"}}',
        b'{"__metadata__": {"document": 1}}',
        b'{"__metadata__": {"document": "{\\"a\\": "}}',
    ],
)
def test_a_document_is_bounded_before_it_is_parsed(header):
    with pytest.raises(ValueError, match="no document in the metadata"):
        decode_document(with_header(header))
    with pytest.raises(ValueError, match="no document in the metadata: its header would have 18446744073709551615 by"):
        decode_document(b"\xff" * 8 + header)
