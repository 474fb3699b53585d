import pytest
import torch
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
