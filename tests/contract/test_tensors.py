import json
from contextlib import suppress

import numpy as np
import pytest
from edits import edited
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load as load_with_torch

from stream_learner.contract.tensors import decode, decode_document, encode

TENSORS = {
    "model/head.weight": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32),
    "model/empty": np.empty((0, 4), np.float32),
    "optimizer/0/step": np.array(7.0, np.float32),
    "memory/pixels": np.arange(24, dtype=np.uint8).reshape(2, 3, 4, 1),
    "memory/keys": np.array([2**62, 1]),
}
DOCUMENT = {"labels": ["é", 7], "loss_normaliser": 31.999999999999996, "records": 2**40, "new_rows_from": None}
DATA = encode(TENSORS, DOCUMENT)


def test_tensors_and_document_come_back_as_they_were():
    decoded = decode(DATA)
    assert decoded.keys() == TENSORS.keys()
    for name, array in TENSORS.items():
        assert decoded[name].dtype == array.dtype
        np.testing.assert_array_equal(decoded[name], array)
    assert decode_document(DATA) == DOCUMENT


def test_the_same_state_gives_the_same_bytes():
    backwards = {name: array.copy() for name, array in reversed(TENSORS.items())}
    assert encode(backwards, dict(reversed(DOCUMENT.items()))) == DATA


def test_any_safetensors_reader_can_read_a_release():
    assert load_with_torch(encode(TENSORS)).keys() == TENSORS.keys()


def test_without_a_document_there_is_none_to_decode():
    with pytest.raises(ValueError, match="no document in the metadata"):
        decode_document(encode(TENSORS))


repeatable = settings(deadline=None, derandomize=True)


@repeatable
@given(st.one_of(st.binary(max_size=100), st.integers(0, len(DATA) - 1).map(lambda end: DATA[:end])))
def test_what_is_no_state_is_refused(data):
    with pytest.raises(ValueError, match="not safetensors"):
        decode(data)


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
    for decoder in (decode, decode_document):
        with suppress(ValueError):
            decoder(data)


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
    with pytest.raises(
        ValueError, match="no document in the metadata: its header claims to have 18446744073709551615 by"
    ):
        decode_document(b"\xff" * 8 + header)
