import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_learner.text import printable, printable_lines, without_credentials


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a cat, un été, 猫, 🐈", "a cat, un été, 猫, 🐈"),
        ("\x1b[2J\x07", "\\u001b[2J\\u0007"),
        ("\x7f\x9b31m", "\\u007f\\u009b31m"),
        ("a\r\nb\tc", "a\\u000d\\u000ab\\u0009c"),
        ("\u202egnp.\u2066", "\\u202egnp.\\u2066"),
        ("\u200b\ufeff\u2028\u2029\u0085", "\\u200b\\ufeff\\u2028\\u2029\\u0085"),
        ("\udcff", "\\udcff"),
        ("\U000e0001", "\\udb40\\udc01"),
        ("s3://key:secret@bucket/folder", "s3://***@bucket/folder"),
        ("az://c/f?sig=abc&se=1: refused", "az://c/f?*** refused"),
        ("at http://u:p@ss@host:1/?a=b and ftp://v@h", "at http://***@host:1/?*** and ftp://***@h"),
        ("s3://key:with/slash@bucket/p", "s3://***@bucket/p"),
        ("http://minio:9000/bucket@x", "http://minio:9000/bucket@x"),
        ("s3://bucket/a:b@c", "s3://bucket/a:b@c"),
        ("why? user@host", "why? user@host"),
        ("no folder s3:/me:secret@bucket", "no folder s3:/***@bucket"),
    ],
)
def test_what_does_not_print_is_escaped_and_credentials_are_not_shown(text: str, shown: str):
    assert printable(text) == shown


@given(st.text())
def test_every_text_prints_on_one_line(text: str):
    shown = printable(text)
    assert shown.isprintable()
    assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert len(shown.splitlines()) <= 1


@given(st.dictionaries(st.text(), st.text() | st.integers()))
def test_json_stays_the_same_document(document: dict[str, str | int]):
    shown = printable_lines(json.dumps(document, indent=2, ensure_ascii=False))
    found = json.loads(shown)
    if not any(":/" in str(text) for pair in document.items() for text in pair):
        assert found == document


def test_lines_stay_lines():
    assert printable_lines("a\nb\x1b") == "a\nb\\u001b"


def test_a_url_without_credentials_stays_as_it_is():
    for url in ("s3://bucket/folder", "file:///home/me/@work", ".stream-learner/objects", "https://h:1/a@b"):
        assert without_credentials(url) == url
