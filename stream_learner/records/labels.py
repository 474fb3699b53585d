"""Label text in one form: what looks the same to a person is the same label."""

import unicodedata

import msgspec

from stream_learner.records.record import Label, Reason, RejectError

MAX_LABEL_BYTES = 256
TOO_LONG = f"the label is longer than {MAX_LABEL_BYTES} bytes of UTF-8"
# Before normalisation, which takes quadratic time on long runs of combining marks. NFC makes at most four characters
# into one of at least two bytes, so no label within the bound in bytes has more.
MAX_RAW_LABEL_CHARACTERS = 4 * MAX_LABEL_BYTES
# Control characters (NUL and binary integers have them), formatting (bidi marks, zero-width characters, a byte order
# mark), lone surrogates, line and paragraph separators.
REFUSED_CATEGORIES = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# Of all classes, as JSON: manifests name each label. A thousand labels of 256 bytes fit, whatever is in them.
MAX_LABELS_BYTES = 512 * 1024
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
