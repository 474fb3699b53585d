import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_learner.config import LabelsSettings, load
from stream_learner.contract.vocabulary import Reason
from stream_learner.errors import UsageError
from stream_learner.formats.labels import MAX_LABEL_BYTES, LabelRules, parse_label
from stream_learner.formats.record import RejectError


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


def rules(**settings: Any) -> LabelRules:
    return LabelRules.from_settings(LabelsSettings.model_validate(settings))


def test_without_rules_every_label_is_learned_as_it_is():
    assert [rules().apply(label) for label in ("cat", 7, "7")] == ["cat", 7, "7"]


def test_only_labels_that_are_allowed_are_learned():
    allowing = rules(allowed=[" cat ", "cafe\u0301", 7])
    assert [allowing.apply(label) for label in ("cat", "caf\u00e9", "7", 7)] == ["cat", "caf\u00e9", "7", 7]
    for label in ("dog", "Cat", 8):
        assert allowing.resolve(label) is None
        with pytest.raises(RejectError, match=r"is not in labels\.allowed") as caught:
            allowing.apply(label)
        assert caught.value.reason is Reason.LABEL_NOT_ALLOWED


def test_aliases_stand_for_their_labels_whatever_the_type():
    naming = rules(
        aliases={" kitty": "cat ", "1": 7, '"cat"': "cat", "\u212b": "angstrom"}, allowed=["cat", 7, "angstrom"]
    )
    meant = [naming.apply(label) for label in ("kitty", 1, "1", '"cat"', "\u00c5", "cat", 7)]
    assert meant == ["cat", 7, 7, "cat", "angstrom", "cat", 7]


def test_a_file_holds_one_label_a_line(tmp_path: Path):
    file = tmp_path / "labels.txt"
    file.write_bytes("\ufeffcat\r\n\r\n  hot dog \n7\n\ncafe\u0301".encode())
    assert rules(allowed=str(file)).allowed == {"cat", "hot dog", "7", "caf\u00e9"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"allowed": ["cat", ""]}, "labels.allowed: '': the record has no label"),
        ({"allowed": ["c\u200bat"]}, "a control or formatting character"),
        ({"allowed": ["x" * 257]}, "longer than 256 bytes"),
        ({"aliases": {"\0": "cat"}}, "labels.aliases"),
        ({"aliases": {"kitty": " "}}, "labels.aliases"),
        ({"aliases": {"kitty": "tabby", "tabby": "cat"}}, "stands for 'tabby', which is itself an alias"),
        ({"aliases": {"a": "b", "b": "a"}}, "which is itself an alias"),
        ({"aliases": {"a": "a"}}, "which is itself an alias"),
        ({"aliases": {"1": 2, "2": 3}}, "which is itself an alias"),
        ({"aliases": {"a": "b", " a": "c"}}, "'a' stands for both 'b' and 'c'"),
        ({"aliases": {"kitty": "cat"}, "allowed": ["dog"]}, "stands for 'cat', which is not in labels.allowed"),
    ],
)
def test_rules_that_contradict_themselves_are_refused(settings, message):
    with pytest.raises(UsageError) as caught:
        rules(**settings)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), (b" \n\n", "contains no label"), (b"cat\n\xff\n", "is not UTF-8"), (b"c\0t", "U+0000")],
)
def test_a_file_that_gives_no_labels_is_refused(content, message, tmp_path: Path):
    file = tmp_path / "labels.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        rules(allowed=str(file))
    assert message in str(caught.value)
    assert "labels.allowed" in str(caught.value)


def test_rules_come_from_a_file_the_command_line_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file, base = tmp_path / "worker.toml", ["run.id=a", "input.topics=['images']"]
    file.write_text('[labels]\nallowed = ["cat", 7]\naliases = { "kitty" = "cat", "x" = 7 }\nmin_records = 3\n')
    from_file = load(file, base).labels
    assert (from_file.allowed, from_file.aliases, from_file.min_records) == (["cat", 7], {"kitty": "cat", "x": 7}, 3)
    by_set = load(None, [*base, 'labels.aliases={"kitty"="cat"}', "labels.allowed=known/labels.txt"]).labels
    assert (by_set.allowed, by_set.aliases) == (Path("known/labels.txt"), {"kitty": "cat"})
    monkeypatch.setenv("STREAM_LEARNER_LABELS__ALIASES", json.dumps({"kitty": "cat"}))
    monkeypatch.setenv("STREAM_LEARNER_LABELS__ALLOWED", json.dumps(["cat", "dog"]))
    by_environment = load(None, base).labels
    assert (by_environment.allowed, by_environment.aliases) == (["cat", "dog"], {"kitty": "cat"})
    monkeypatch.setenv("STREAM_LEARNER_LABELS__ALLOWED", "known/labels.txt")
    assert load(None, base).labels.allowed == Path("known/labels.txt")


@pytest.mark.parametrize("value", ["[]", "[true]", "[1.5]", "[9223372036854775808]", "3"])
def test_what_are_no_labels_is_refused_by_the_settings(value):
    with pytest.raises(UsageError, match=r"labels\.allowed"):
        load(None, ["run.id=a", "input.topics=['images']", f"labels.allowed={value}"])
