import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from msgspec.structs import replace

from stream_learner.contract.predictions import MAX_PREDICTION_BYTES, Prediction, decode_prediction

PREDICTION = Prediction(
    run_id="digits",
    epoch=1,
    release=12,
    id="img-é",
    label="cat",
    probabilities={"cat": 0.75, "7": 0.25},
    created_at="2025-01-01T00:00:00.000Z",
)


def as_json(**changed: object) -> bytes:
    return json.dumps(json.loads(PREDICTION.encode()) | changed).encode()


@pytest.mark.parametrize("id_", ["img-é", None, "x" * 256, '"' * 256])
def test_a_prediction_survives_its_encoding(id_: str | None) -> None:
    prediction = replace(PREDICTION, id=id_)
    assert decode_prediction(prediction.key, prediction.encode()) == prediction
    assert prediction.key == (id_ and id_.encode())


def test_labels_keep_their_type_and_have_a_probability() -> None:
    prediction = replace(PREDICTION, label=7)
    assert decode_prediction(prediction.key, prediction.encode()).label == 7
    assert (PREDICTION.probability, prediction.probability) == (0.75, 0.25)


def test_the_largest_prediction_of_a_writer_that_escapes_everything_is_read() -> None:
    labels = ["\u4e00" * 84 + str(i) for i in range(10)]  # at most 256 bytes each, as `labels` allow
    prediction = replace(
        PREDICTION, id="é" * 128, label=labels[0], probabilities=dict.fromkeys(labels, 0.1234567890123)
    )
    value = json.dumps(json.loads(prediction.encode())).encode()
    assert len(value) < MAX_PREDICTION_BYTES
    assert decode_prediction(prediction.key, value) == prediction


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (None, "not a prediction"),
        (b"", "not a prediction"),
        (b"[" * 10_000, "not a prediction"),
        (as_json(x="x" * MAX_PREDICTION_BYTES), "at most 16384 are read"),
        (as_json(schema_version=2), "prediction schema version 2; this program reads 1"),
        (as_json(run_id="a/b"), "run_id"),
        (as_json(epoch=0), "epoch"),
        (as_json(release=2**63), "release"),
        (as_json(release=1.5), "release"),
        (as_json(id=""), "id"),
        (as_json(id="é" * 129), "longer than 256 bytes"),
        (as_json(id="other"), "the key is not the id"),
        (as_json(id=None), "the key is not the id"),
        (as_json(label=None), "label"),
        (as_json(label="x" * 257), "label"),
        (as_json(label="dog"), "the probability of the predicted label is missing"),
        (as_json(probabilities={"cat": 1.5}), "probabilities"),
        (as_json(probabilities={"cat": -0.5}), "probabilities"),
        (as_json(probabilities={"cat": float("nan")}), "not a prediction"),
        (as_json(probabilities={"cat": 1.0} | {str(i): 0.0 for i in range(10)}), "probabilities"),
        (as_json(created_at="2025-01-01T00:00:00"), "not a time in UTC"),
        (PREDICTION.encode().replace("é".encode(), b"\\ud800"), "not a prediction"),
    ],
)
def test_other_records_are_refused_with_the_reason(value: bytes | None, why: str) -> None:
    key = json.loads(value)["id"].encode() if value and b"\xc3\xa9" * 2 in value else PREDICTION.key
    with pytest.raises(ValueError, match=why):
        decode_prediction("é".encode() * 129 if why.startswith("longer") else key, value)


@given(st.none() | st.binary(), st.none() | st.binary())
def test_any_bytes_are_refused_with_a_value_error(key: bytes | None, value: bytes | None) -> None:
    with pytest.raises(ValueError, match="not a prediction"):
        decode_prediction(key, value)


def test_a_prediction_is_valid_by_its_schema() -> None:
    Draft202012Validator(msgspec.json.schema(Prediction)).validate(json.loads(PREDICTION.encode()))
