"""`check_format` refuses formats that break their contract, and says why."""

import itertools
import json
import time
from base64 import b64decode, b64encode

import numpy as np
import pytest

from stream_learner.formats import Fields, Format, Reason, Record, RejectError, RetryLaterError
from stream_learner.formats.images import png
from stream_learner.formats.plain import Plain
from stream_learner.testing import check_format

IMAGE = png(np.zeros((4, 4, 3), np.uint8))
GOOD = [Record("images", 0, 0, 0, None, IMAGE, [("label", b"cat")])]
ENVELOPE = json.dumps({"image": b64encode(IMAGE).decode(), "label": "cat", "weight": 2}).encode()
ENVELOPES = [Record("images", 0, 0, 0, None, ENVELOPE, [])]


class Envelope(Format):
    """An example that keeps the contract."""

    def read(self, record: Record) -> Fields:
        try:
            envelope = json.loads(record.value or b"")
            return Fields(b64decode(envelope["image"]), envelope["label"], envelope.get("weight"))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise RejectError(Reason.BAD_ENVELOPE, f"no image and label in JSON: {error!r}") from None


class NotDerived:
    pass


class Trusting(Format):
    def read(self, record: Record) -> Fields:
        return Fields(record.value, dict(record.headers)["label"])


class TrustsTheForm(Envelope):
    def read(self, record: Record) -> Fields:
        envelope = json.loads(record.value or b"")
        return Fields(b64decode(envelope["image"]), envelope["label"])


class NotDeepEnough(Envelope):
    """Forgets that Python's JSON reader has a limit of depth."""

    def read(self, record: Record) -> Fields:
        try:
            envelope = json.loads(record.value or b"")
            return Fields(b64decode(envelope["image"]), envelope["label"])
        except (ValueError, KeyError, TypeError) as error:
            raise RejectError(Reason.BAD_ENVELOPE, repr(error)) from None


class WaitsForever(Envelope):
    def read(self, record: Record) -> Fields:
        try:
            return super().read(record)
        except RejectError as error:
            raise RetryLaterError(str(error)) from None


class Slow(Envelope):
    def read(self, record: Record) -> Fields:
        if len(record.value or b"") > 1_000_000:
            time.sleep(0.6)
        return super().read(record)


class Undecided(Format):
    _numbers = itertools.count()

    def read(self, record: Record) -> Fields:
        return Fields(record.value, str(next(self._numbers)))


class Anything(Format):
    def read(self, record: Record) -> Fields:
        return (record.value, b"cat")  # pyright: ignore[reportReturnType]


class TextOfAnImage(Format):
    def read(self, record: Record) -> Fields:
        image = record.value if record.value == IMAGE else str(record.value)
        return Fields(image, b"cat")  # pyright: ignore[reportArgumentType]


class WithoutLabels(Format):
    def read(self, record: Record) -> Fields:
        return Fields(record.value, None)


@pytest.mark.parametrize(
    ("wrong", "good", "why"),
    [
        (NotDerived, GOOD, "a format is a class derived from Format"),
        (Plain, [], "give at least one record that the format can read"),
        (Plain, [GOOD[0]._replace(value=b"")], "good record 0 is refused as a sample: the record holds no image"),
        (WithoutLabels, GOOD, "good record 0 is refused as a sample: the record has no label"),
        (Envelope, GOOD, "good record 0 is not read: no image and label in JSON"),
        (Trusting, GOOD, r"read\(\) of good record 0, without headers raised KeyError: 'label'"),
        (TrustsTheForm, ENVELOPES, r"read\(\) of good record 0, its value cut to 0 bytes raised JSONDecodeError"),
        (NotDeepEnough, ENVELOPES, r"read\(\) of a record whose value is b'\[' 100,000 times raised RecursionError"),
        (WaitsForever, ENVELOPES, "raises RetryLaterError: .*; no restart would get past that record"),
        (Slow, ENVELOPES, r"followed by 1 MiB of zeros took \d\.\d s, more than 0.5 s; limit what it does"),
        (Undecided, GOOD, "good record 0 gives other fields each time; a resumed run reads the record again"),
        (Anything, GOOD, r"read\(\) of good record 0 returns tuple, not Fields"),
        (TextOfAnImage, GOOD, "gives an image of type str, not bytes"),
    ],
)
def test_it_is_refused(wrong, good, why):
    with pytest.raises(AssertionError, match=f"(?s)^{wrong.__name__}: .*{why}"):
        check_format(wrong, good=good, longest_s=0.5 if wrong is Slow else 60)


def test_a_setting_that_the_format_does_not_have_is_refused():
    with pytest.raises(AssertionError, match=r"Plain: building it raised UsageError: unknown setting .*url"):
        check_format(Plain, {"url": "http://127.0.0.1"}, good=GOOD)


def test_a_format_that_reads_json_passes():
    check_format(Envelope, good=ENVELOPES)
