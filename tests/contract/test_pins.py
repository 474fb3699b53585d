import json

import pytest
from msgspec.structs import replace

from stream_learner.contract.manifest import encode
from stream_learner.contract.pins import MAX_PIN_BYTES, Chosen, Pin, decode_pin

PIN = Pin(
    program="test 1",
    run_id="digits",
    action="pin",
    release=Chosen(2, 12, "sha256:" + "0" * 64),
    created_at="2025-01-01T00:00:00.000Z",
)
WITHDRAWAL = replace(PIN, action="withdraw")


@pytest.mark.parametrize("pin", [PIN, replace(PIN, action="unpin", release=None), WITHDRAWAL])
def test_a_pin_survives_its_encoding(pin: Pin) -> None:
    assert decode_pin(pin.key, encode(pin)) == pin


def test_the_keys() -> None:
    assert PIN.key == b"digits"
    assert WITHDRAWAL.key == b"withdrawn/2/12"


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"schema_version": 2}, "pin schema version 2; this program reads 1"),
        ({"action": "delete"}, "not a pin: Invalid enum value 'delete'"),
        ({"action": "unpin"}, "does not fit the action unpin"),
        ({"release": None}, "does not fit the action pin"),
        ({"action": "withdraw"}, "the key does not fit the document"),
        ({"run_id": "../x"}, "not a pin: "),
        ({"created_at": "yesterday"}, "is not a time in UTC"),
        ({"created_at": "2025-01-01\x1b00:00:00Z"}, "is not a time in UTC"),
        ({"created_at": "2025-01-01T00:00:00\x9bZ"}, "is not a time in UTC"),
        ({"release": {"epoch": 0, "sequence": 1, "digest": "sha256:" + "0" * 64}}, "not a pin: "),
        ({"more": "x" * MAX_PIN_BYTES}, "at most 16384 are read"),
    ],
)
def test_other_documents_are_refused(changed: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError, match="pin") as refused:
        decode_pin(PIN.key, json.dumps(json.loads(encode(PIN)) | changed).encode())
    assert why in str(refused.value)


def test_no_value_is_refused() -> None:
    with pytest.raises(ValueError, match="not a pin"):
        decode_pin(PIN.key, None)
