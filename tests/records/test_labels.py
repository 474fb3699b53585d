import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_learner.records.labels import MAX_LABEL_BYTES, parse_label
from stream_learner.records.record import Reason, RejectError


@pytest.mark.parametrize(
    ("raw", "label"),
    [
        ("cat", "cat"),
        (b"cat", "cat"),
        (" cat", "cat"),
        (b"cat\r\n", "cat"),
        ("\u3000\u00a0cat\u2003", "cat"),  # ideographic, no-break and em spaces
        ("hot dog", "hot dog"),
        ("cafe\u0301", "caf\u00e9"),  # NFD
        ("\u212bngstr\u00f6m", "\u00c5ngstr\u00f6m"),  # the sign for angstrom is the letter
        ("\u1112\u1161\u11ab", "\ud55c"),  # a Hangul syllable from its parts
        ("\u00e9" * 128, "\u00e9" * 128),
        ("e\u0301" * 128, "\u00e9" * 128),  # 384 bytes in NFD, 256 in NFC
        ("\u1fa7" * 85, "\u1fa7" * 85),
        (unicodedata.normalize("NFD", "\u1fa7" * 85), "\u1fa7" * 85),
        ('"cat"', '"cat"'),
        (7, 7),
        (-(2**63), -(2**63)),
        (2**63 - 1, 2**63 - 1),
    ],
)
def test_what_looks_the_same_is_one_label(raw, label):
    parsed = parse_label(raw)
    assert (type(parsed), parsed) == (type(label), label)
    assert parse_label(parsed) == parsed


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (None, Reason.NO_LABEL),
        (b"", Reason.NO_LABEL),
        ("", Reason.NO_LABEL),
        (" \t\u3000\n", Reason.NO_LABEL),
        (b"\xff\xfe", Reason.BAD_LABEL),
        ("x" * 257, Reason.BAD_LABEL),
        ("\u00e9" * 129, Reason.BAD_LABEL),
        ("e\u0301" * 129, Reason.BAD_LABEL),
        ("\U0001d160" * 64, Reason.BAD_LABEL),  # 256 bytes, and 768 in NFC
        ("x" + "\u0301" * 2_000_000, Reason.BAD_LABEL),
        ("x" + "\u0315\u0300" * 1_000_000, Reason.BAD_LABEL),  # each pair out of order
        ("cat\0", Reason.BAD_LABEL),
        ((7).to_bytes(4, "big"), Reason.BAD_LABEL),
        ((7).to_bytes(4, "little"), Reason.BAD_LABEL),
        ((2**31 - 1).to_bytes(4, "big"), Reason.BAD_LABEL),
        ("a\tb", Reason.BAD_LABEL),
        ("a\x1b[31mb", Reason.BAD_LABEL),  # would colour a terminal
        ("a\x85b", Reason.BAD_LABEL),
        ("cat\u200f", Reason.BAD_LABEL),  # right-to-left mark
        ("\u202ecat", Reason.BAD_LABEL),  # right-to-left override
        ("ca\u2066t\u2069", Reason.BAD_LABEL),  # isolates
        ("ca\u200bt", Reason.BAD_LABEL),  # zero-width space
        ("ca\u00adt", Reason.BAD_LABEL),  # soft hyphen
        ("\ufeffcat", Reason.BAD_LABEL),  # byte order mark
        ("ca\U000e0041t", Reason.BAD_LABEL),  # an invisible tag
        ("a\u2028b", Reason.BAD_LABEL),
        ("a\u2029b", Reason.BAD_LABEL),
        ("a\ud800b", Reason.BAD_LABEL),  # a lone surrogate
        ("\ud800" * 5000, Reason.BAD_LABEL),
        (2**63, Reason.BAD_LABEL),
        (-(2**63) - 1, Reason.BAD_LABEL),
        (True, Reason.BAD_LABEL),
        (1.5, Reason.BAD_LABEL),
        (["cat"], Reason.BAD_LABEL),
    ],
)
def test_what_no_person_can_read_is_refused(raw, reason):
    with pytest.raises(RejectError) as caught:
        parse_label(raw)
    assert caught.value.reason is reason
    assert caught.value.message.isprintable()


@given(st.one_of(st.text(), st.binary(), st.integers(), st.text(st.characters(categories=["Mn", "Lo", "Zs", "Cf"]))))
def test_any_value_is_a_label_in_normal_form_or_refused(raw):
    try:
        label = parse_label(raw)
    except RejectError:
        return
    assert parse_label(label) == label
    if isinstance(label, str):
        assert unicodedata.is_normalized("NFC", label)
        assert label == label.strip()
        assert 0 < len(label.encode()) <= MAX_LABEL_BYTES
