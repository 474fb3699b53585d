"""Normalise labels, so that labels that look the same are the same class."""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import msgspec

from stream_learner.config import LabelsSettings
from stream_learner.contract.vocabulary import Label, Reason
from stream_learner.errors import UsageError
from stream_learner.formats.record import RejectError

MAX_LABEL_BYTES = 256
TOO_LONG = f"the label is longer than {MAX_LABEL_BYTES} bytes of UTF-8"
# Checked before normalisation, which takes quadratic time on long runs of combining marks. NFC joins at most four
# characters into one, which then has at least two bytes. So a label with more characters than this exceeds
# MAX_LABEL_BYTES after NFC too.
MAX_RAW_LABEL_CHARACTERS = 4 * MAX_LABEL_BYTES
# Control characters (as in NUL and binary integers), formatting characters (bidi marks, zero-width characters, a byte
# order mark), lone surrogates, line and paragraph separators.
REFUSED_CATEGORIES = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# Limit on the JSON bytes of all labels together, because every manifest lists them. A thousand labels of 256 bytes fit.
MAX_LABELS_BYTES = 512 * 1024
# Number of labels whose normal form is remembered. Labels repeat, and their check takes a microsecond.
LABELS_REMEMBERED = 4096
INT64 = range(-(2**63), 2**63)


def parse_label(raw: Label | bytes | None) -> Label:
    """Normalise a label: text in Unicode NFC without surrounding blanks, or an integer of 64 bits.

    Bytes are UTF-8 text. Raises RejectError (`no_label`, `bad_label`).
    """
    if isinstance(raw, int) and not isinstance(raw, bool):
        if raw not in INT64:
            raise RejectError(Reason.BAD_LABEL, "the label is an integer of more than 64 bits")
        return int(raw)
    try:
        text = raw.decode() if isinstance(raw, bytes) else raw
    except UnicodeDecodeError:
        raise RejectError(Reason.BAD_LABEL, "the label is not UTF-8 text") from None
    if text is not None and not isinstance(text, str):
        raise RejectError(Reason.BAD_LABEL, f"the label is of type {type(text).__name__}, not text or an integer")
    if not text or not (text := text.strip()):
        raise RejectError(Reason.NO_LABEL, "the record has no label")
    if len(text) > MAX_RAW_LABEL_CHARACTERS:
        raise RejectError(Reason.BAD_LABEL, TOO_LONG)
    return _normalised(text)


@lru_cache(LABELS_REMEMBERED)
def _normalised(text: str) -> str:
    text = unicodedata.normalize("NFC", text)
    for character in text:
        if unicodedata.category(character) in REFUSED_CATEGORIES:
            message = f"the label contains U+{ord(character):04X}, a control or formatting character"
            raise RejectError(Reason.BAD_LABEL, message)
    if len(text.encode()) > MAX_LABEL_BYTES:
        raise RejectError(Reason.BAD_LABEL, TOO_LONG)
    return text


def encoded_bytes(label: Label) -> int:
    """Return the size of a label in a JSON list."""
    return len(msgspec.json.encode(label)) + len(",")


@dataclass(frozen=True)
class LabelRules:
    """The labels that are learned, and the names under which they are learned.

    Labels are compared as text, so `7` in the settings also means the integer 7 of a user's format. `allowed` is None
    if all labels are allowed.
    """

    allowed: frozenset[str] | None = None
    aliases: Mapping[str, Label] = field(default_factory=dict)

    @classmethod
    def from_settings(cls, settings: LabelsSettings) -> "LabelRules":
        """Build the rules.

        Raises UsageError when a label is malformed, the file cannot be read, or an alias stands for another alias or
        for a label that is not allowed.
        """
        allowed = settings.allowed
        if isinstance(allowed, Path):
            allowed = _read(allowed)
        names = None if allowed is None else frozenset(str(_parsed(label, "allowed")) for label in allowed)
        aliases: dict[str, Label] = {}
        for alias, target in settings.aliases.items():
            alias, target = str(_parsed(alias, "aliases")), _parsed(target, "aliases")
            if aliases.setdefault(alias, target) != target:
                raise UsageError(f"labels.aliases: {alias!r} stands for both {aliases[alias]!r} and {target!r}")
            if names is not None and str(target) not in names:
                raise UsageError(f"labels.aliases: {alias!r} stands for {target!r}, which is not in labels.allowed")
        for alias, target in aliases.items():
            if str(target) in aliases:
                message = f"{alias!r} stands for {target!r}, which is itself an alias; let both stand for a label"
                raise UsageError(f"labels.aliases: {message}")
        return cls(names, aliases)

    def resolve(self, label: Label) -> Label | None:
        """Return the label that a parsed label is learned as; None when it is not allowed."""
        meant = self.aliases.get(str(label), label)
        return meant if self.allowed is None or str(meant) in self.allowed else None

    def apply(self, label: Label) -> Label:
        """Return the label that a parsed label is learned as. Raises RejectError (`label_not_allowed`)."""
        meant = self.resolve(label)
        if meant is None:
            raise RejectError(Reason.LABEL_NOT_ALLOWED, f"the label {label!r} is not in labels.allowed")
        return meant


def _parsed(label: Label, setting: str) -> Label:
    try:
        return parse_label(label)
    except RejectError as reject:
        raise UsageError(f"labels.{setting}: {label!r}: {reject.message}") from None


def _read(path: Path) -> list[str]:
    """Return the labels of a text file with one label per line. Skip blank lines and a byte order mark."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UsageError(f"labels.allowed: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"labels.allowed: {path} is not UTF-8 text: {error}") from None
    if not (labels := [line for line in lines if line.strip()]):
        raise UsageError(f"labels.allowed: {path} contains no label")
    return labels
