"""Dead letters, written and read back."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_learner.contract.dead_letter import MAX_MESSAGE_BYTES, NAMES, PREFIX, DeadLetter
from stream_learner.contract.manifest import digest
from stream_learner.contract.vocabulary import Reason

MANY_BYTES = 10_000
OURS = [(PREFIX + name, f"{i}".encode()) for i, name in enumerate(NAMES)]
ABOUT = [("truncated", b"true"), ("digest", b"sha256:" + b"0" * 64)]


def letter(**changes: Any) -> DeadLetter:
    given: dict[str, Any] = {
        "topic": "images",
        "partition": 2,
        "offset": 2**63 - 1,
        "stage": "decode",
        "reason": Reason.NO_LABEL,
        "message": "the record has no label",
        "key": b"key",
        "value": b"value",
        "headers": [("id", b"7")],
    }
    return DeadLetter(**given | changes)


def test_it_has_the_headers_of_kafka_connect():
    assert letter().encode(MANY_BYTES) == (
        b"key",
        b"value",
        [
            ("id", b"7"),
            ("__connect.errors.topic", b"images"),
            ("__connect.errors.partition", b"2"),
            ("__connect.errors.offset", b"9223372036854775807"),
            ("__connect.errors.stage", b"decode"),
            ("__connect.errors.exception.class.name", b"no_label"),
            ("__connect.errors.exception.message", b"the record has no label"),
        ],
    )


def test_of_a_message_that_is_rejected_late_it_has_the_rows_that_were_read():
    written = letter(rows_read=7)
    _, _, headers = written.encode(MANY_BYTES)
    assert headers[-1] == ("__connect.errors.rows.read", b"7")
    assert DeadLetter.parse(*written.encode(MANY_BYTES)) == written


contents = st.none() | st.binary(max_size=50)
names = st.sampled_from([*dict(OURS), *dict(ABOUT), "id", "label"]) | st.text(max_size=8)


@given(
    place=st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**63 - 1)),
    key=contents,
    value=contents,
    headers=st.lists(st.tuples(names, contents), max_size=8),
    reason=st.sampled_from(Reason),
    message=st.text(max_size=100),
)
def test_what_is_written_is_read(place, key, value, headers, reason, message):
    partition, offset = place
    written = letter(
        partition=partition, offset=offset, key=key, value=value, headers=headers, reason=reason, message=message
    )
    read = DeadLetter.parse(*written.encode(MANY_BYTES))
    own = [header for header in headers if not header[0].startswith(PREFIX)]
    assert read == letter(
        partition=partition, offset=offset, key=key, value=value, headers=own, reason=reason, message=message
    )
    assert not read.truncated
    assert read.encode(MANY_BYTES) == written.encode(MANY_BYTES)


@pytest.mark.parametrize("headers", [ABOUT, [*ABOUT, *OURS, *ABOUT]])
@pytest.mark.parametrize("value", [None, b"value"])
def test_headers_named_like_ours_are_the_records_own_or_left_out(headers, value):
    read = DeadLetter.parse(*letter(value=value, headers=headers).encode(MANY_BYTES))
    assert not read.truncated
    assert read.headers == [header for header in headers if header not in OURS]
    assert read.topic == "images"


@pytest.mark.parametrize("headers", [[], ABOUT, [("id", b"x" * MANY_BYTES)]])
@pytest.mark.parametrize("value", [None, b"", b"x" * MANY_BYTES])
def test_a_record_that_is_too_large_leaves_its_digest(headers, value):
    key = b"k" * MANY_BYTES
    written = letter(key=key, value=value, headers=headers)
    read = DeadLetter.parse(*written.encode(MANY_BYTES - 1))
    assert read == letter(key=key[:1000], value=None, headers=[], digest=digest(value or b""))
    assert read.truncated
    assert DeadLetter.parse(*read.encode(MANY_BYTES)) == read


@pytest.mark.parametrize("limit", [MANY_BYTES, 0])
def test_a_row_has_its_index(limit):
    written = letter(row=0, headers=[("__connect.errors.row", b"7")])
    read = DeadLetter.parse(*written.encode(limit))
    assert (read.row, read.headers) == (0, [])
    assert letter().row is None


def test_a_record_is_copied_up_to_the_limit():
    written = letter(key=b"k" * 100, value=b"v" * 100, headers=[("n" * 40, b"c" * 50), ("é", None)])
    size = 100 + 100 + (40 + 50 + 10) + (2 + 10)
    assert DeadLetter.parse(*written.encode(size)) == written
    assert DeadLetter.parse(*written.encode(size - 1)).truncated


def test_a_long_message_is_cut_between_characters():
    read = DeadLetter.parse(*letter(message="x" + "é" * MAX_MESSAGE_BYTES).encode(MANY_BYTES))
    assert read.message == "x" + "é" * 499


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        *(({PREFIX + name: None}, f"not a dead letter: it has no header __connect.errors.{name}") for name in NAMES),
        ({PREFIX + "topic": b"\xff"}, "not a dead letter: the header __connect.errors.topic is not UTF-8 text"),
        ({PREFIX + "partition": b"-1"}, "not a dead letter: '-1' is not a partition or offset"),
        ({PREFIX + "offset": b"1_0"}, "not a dead letter: '1_0' is not a partition or offset"),
        ({PREFIX + "offset": "٣".encode()}, "not a dead letter: '٣' is not a partition or offset"),
        ({PREFIX + "offset": b"9" * 10_000}, "not a dead letter: '9999"),
        ({"truncated": b"true"}, "not a dead letter: it has no header digest"),
    ],
)
def test_another_record_is_refused(changed, message):
    key, value, headers = letter().encode(MANY_BYTES)
    headers = [*headers, *((name, content) for name, content in changed.items() if content is not None)]
    missing = [name for name, content in changed.items() if content is None]
    with pytest.raises(ValueError, match=r"^not a dead letter: ") as caught:
        DeadLetter.parse(key, value, [header for header in headers if header[0] not in missing])
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 100


@given(key=contents, value=contents, headers=st.lists(st.tuples(names, contents), max_size=12))
def test_any_record_is_a_dead_letter_or_refused(key, value, headers):
    try:
        read = DeadLetter.parse(key, value, headers)
    except ValueError:
        return
    assert (read.key, read.value) == (key, value)
