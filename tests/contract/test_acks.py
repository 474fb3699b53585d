import json

import pytest

from stream_learner.contract.acks import MAX_ACK_BYTES, Ack, decode_ack
from stream_learner.contract.manifest import encode

ACK = Ack(
    program="test 1",
    run_id="digits",
    name="server-1",
    host="here",
    epoch=1,
    sequence=12,
    since="2025-01-01T00:00:00.000Z",
)


def test_an_acknowledgement_survives_its_encoding() -> None:
    assert decode_ack(b"server-1", encode(ACK)) == ACK


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"schema_version": 2}, "acknowledgement schema version 2; this program reads 1"),
        ({"name": "server-2"}, "the key is not the name"),
        ({"name": "a b"}, "not an acknowledgement: "),
        ({"sequence": 0}, "not an acknowledgement: "),
        ({"since": "now"}, "is not a time in UTC"),
        ({"more": "x" * MAX_ACK_BYTES}, "at most 16384 are read"),
    ],
)
def test_other_documents_are_refused(changed: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError, match="acknowledgement") as refused:
        decode_ack(ACK.key, json.dumps(json.loads(encode(ACK)) | changed).encode())
    assert why in str(refused.value)
