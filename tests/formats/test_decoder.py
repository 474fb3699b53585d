import dataclasses
import doctest
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from record_images import DIGITS_NHW, digit, encode, record

from stream_learner.config import InputSettings, ModelSettings, RunSettings, Settings, SplitSettings
from stream_learner.contract.vocabulary import Reason, Split
from stream_learner.errors import UsageError
from stream_learner.formats import format  # noqa: A004 (the module's name)
from stream_learner.formats.decoder import Decoder, parse_split, parse_weight
from stream_learner.formats.format import Format
from stream_learner.formats.plain import Plain
from stream_learner.formats.record import MAX_ROWS, Fields, Record, RejectError, Rows, Sample


def decoder(
    format: str = "plain",  # noqa: A002 (the setting's name)
    format_settings: dict[str, Any] | None = None,
    **split: Any,
) -> Decoder:
    return Decoder.from_settings(
        Settings(
            run=RunSettings(id="digits"),
            input=InputSettings(
                topics=["images", "more"],
                format=format,
                format_settings=format_settings or {},
                max_record_bytes=10_000,
                max_image_pixels=10_000,
            ),
            model=ModelSettings(height=8, width=8, channels=1),
            split=SplitSettings(validation=0.25, test=0.25, **split),
        )
    )


DECODE = decoder()


def sample_of(given_record: Record, decode: Decoder = DECODE) -> Sample:
    """The sample of a record that is no deletion marker."""
    sample = decode(given_record)
    assert isinstance(sample, Sample)
    return sample


def test_a_record_becomes_a_sample():
    given_record = record(digit(0), offset=7, label="zero", weight="2.5", split="validation")
    sample = sample_of(given_record)
    assert (sample.key, sample.timestamp_ms) == (given_record.place, given_record.timestamp_ms)
    assert (sample.label, sample.weight, sample.split) == ("zero", 2.5, Split.VALIDATION)
    assert np.array_equal(sample.pixels_HWC, DIGITS_NHW[0][:, :, None])


@pytest.mark.parametrize(
    ("reason", "value", "headers"),
    [
        (Reason.NO_IMAGE, None, {"label": "0"}),
        (Reason.NO_IMAGE, None, {}),
        (Reason.NO_IMAGE, b"", {"label": "0"}),
        (Reason.UNDECODABLE_IMAGE, b"not an image", {"label": "0"}),
        (Reason.UNDECODABLE_IMAGE, digit(0)[:60], {"label": "0"}),
        (Reason.OVERSIZED_IMAGE, bytes(10_001), {"label": "0"}),
        (Reason.OVERSIZED_IMAGE, encode(Image.new("L", (101, 100)), "PNG"), {"label": "0"}),
        (Reason.NO_LABEL, digit(0), {}),
        (Reason.NO_LABEL, digit(0), {"label": ""}),
        (Reason.NO_LABEL, digit(0), {"label": None}),
        (Reason.BAD_LABEL, digit(0), {"label": b"\xff\xfe"}),
        (Reason.BAD_LABEL, digit(0), {"label": "x" * 257}),
        *(
            (Reason.BAD_WEIGHT, digit(0), {"label": "0", "weight": weight})
            for weight in ("-1", "-1e-9", "nan", "inf", "-inf", "1e999", "heavy", "", "1,5", b"\xff", b"\x00")
        ),
        *(
            (Reason.UNKNOWN_SPLIT, digit(0), {"label": "0", "split": split})
            for split in ("training", "TEST", "", b"\xff")
        ),
    ],
)
def test_what_cannot_be_used_is_rejected_with_its_reason(reason, value, headers):
    with pytest.raises(RejectError) as caught:
        DECODE(record(value, **headers))
    assert caught.value.reason is reason
    assert caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("key", [b"patient", b""])
@pytest.mark.parametrize("headers", [{}, {"label": "0"}, {"label": "\0", "weight": "nan"}])
def test_a_null_value_with_a_key_is_a_deletion_marker(key, headers):
    marker = record(None, key=key, **headers)
    assert DECODE(marker) is None
    with pytest.raises(RejectError) as caught:
        dataclasses.replace(DECODE, skips_tombstones=False)(marker)
    assert caught.value.reason is Reason.NO_IMAGE
    with pytest.raises(RejectError) as caught:
        DECODE(marker._replace(value=b""))  # empty is not null
    assert caught.value.reason is Reason.NO_IMAGE


@pytest.mark.parametrize(("tombstones", "skipped"), [("skip", True), ("reject", False)])
def test_what_becomes_of_deletion_markers_is_a_setting(tombstones, skipped):
    given = Settings.model_validate({"run": {"id": "a"}, "input": {"topics": ["images"], "tombstones": tombstones}})
    assert Decoder.from_settings(given).skips_tombstones is skipped


@pytest.mark.parametrize(("text", "weight"), [("0", 0.0), ("-0.0", 0.0), ("1e300", 1e300), (" 3\n", 3.0)])
def test_weights_are_finite_and_not_negative(text, weight):
    assert sample_of(record(digit(0), label="0", weight=text)).weight == weight


def test_pythons_own_notation_of_numbers_is_no_weight():
    with pytest.raises(RejectError) as caught:
        DECODE(record(digit(0), label="0", weight="1_0"))
    assert caught.value.reason is Reason.BAD_WEIGHT


def test_without_a_weight_it_is_one():
    assert sample_of(record(digit(0), label="0")).weight == 1.0


@pytest.mark.parametrize("split", Split)
def test_the_split_header_is_honoured(split):
    assert {sample_of(record(digit(i), label="0", split=split.value)).split for i in range(20)} == {split}


def test_of_a_header_that_stands_twice_the_last_counts():
    twice = record(digit(0), label="first")
    assert sample_of(twice._replace(headers=[*twice.headers, ("label", b"last")])).label == "last"


def test_labels_are_normalised():
    assert sample_of(record(digit(0), label=" cafe\u0301 ")).label == "caf\u00e9"


def splits(records: list[Record], decode: Decoder = DECODE) -> list[Split]:
    return [sample_of(r, decode).split for r in records]


def test_the_split_is_drawn_from_the_id_header_before_the_image():
    assert len(set(splits([record(digit(i), label="0", id="same") for i in range(40)]))) == 1
    assert set(splits([record(digit(0), label="0", id=f"{i}") for i in range(40)])) == set(Split)


def test_a_key_that_all_records_share_decides_no_split():
    one_key = splits([record(digit(i), label="0", key=b"producer-1") for i in range(60)])
    assert set(one_key) == set(Split)
    assert one_key == splits([record(digit(i), label="0") for i in range(60)])


def test_with_split_by_key_a_group_is_in_one_split_whatever_its_ids_and_images():
    by_key = decoder(by="key")
    patient = [record(digit(i), label="0", key=b"patient", id=f"{i}") for i in range(40)]
    assert len(set(splits(patient, by_key))) == 1
    many_keys = splits([record(digit(0), label="0", key=f"{i}".encode(), id="same") for i in range(40)], by_key)
    many_ids = [record(digit(0), label="0", id=f"{i}") for i in range(40)]
    assert many_keys == splits(many_ids)  # the identity alone decides, wherever it stood
    assert splits(many_ids, by_key) == splits(many_ids)  # without a key
    assert set(many_keys) == set(Split)


@pytest.mark.parametrize("by", ["id", "key"])
def test_samples_of_one_group_share_their_split(by):
    decode = decoder(by=by)
    ids: list[dict[str, Any]] = [{"id": f"{i % 8}"} if by == "id" else {"key": f"{i % 8}".encode()} for i in range(80)]
    samples = [sample_of(record(digit(i), label="0", **identity), decode) for i, identity in enumerate(ids)]
    assert len({sample.group for sample in samples}) == 8
    assert len({(sample.group, sample.split) for sample in samples}) == 8
    said = [
        sample_of(record(digit(0), label="0", split=split, **ids[0]), decode).group for split in ("validation", "test")
    ]
    assert said == [samples[0].group] * 2  # also where the record names the split itself
    assert all(0 < sample.group < 2**63 for sample in samples)


def test_the_same_image_lands_in_the_same_split_wherever_it_is_read():
    images = [digit(i) for i in range(60)]
    here = splits([record(image, offset=i, label="0") for i, image in enumerate(images)])
    there = splits([record(image, offset=9000 - i, partition=5, label="1") for i, image in enumerate(images)])
    assert here == there
    assert set(here) == set(Split)


def test_only_records_of_trusted_topics_are_held_out():
    decode = decoder(held_out_from=["more"])
    images = [record(digit(i), label="0") for i in range(60)]
    assert {sample_of(image, decode).split for image in images} == {Split.TRAIN}
    assert [sample_of(image._replace(topic="more"), decode).split for image in images] == splits(images)


@pytest.mark.parametrize("split", [Split.VALIDATION, Split.TEST])
def test_a_record_of_another_topic_cannot_ask_to_be_held_out(split):
    asking = record(digit(0), label="0", split=split.value)
    decode = decoder(held_out_from=["more"])
    assert sample_of(asking._replace(topic="more"), decode).split is split
    with pytest.raises(RejectError, match=r"images is not in split\.held_out_from") as caught:
        decode(asking)
    assert caught.value.reason is Reason.UNTRUSTED_HELD_OUT
    assert sample_of(record(digit(0), label="0", split="train"), decode).split is Split.TRAIN


def test_what_the_record_says_is_checked_before_its_image_is_decoded():
    with pytest.raises(RejectError) as caught:
        DECODE(record(b"not an image", label="0", weight="nan"))
    assert caught.value.reason is Reason.BAD_WEIGHT


class LabelledByKey(Plain):
    """A format of a user's own."""

    prefix: str = ""
    copies: int = 1

    def read(self, record: Record) -> Fields:
        label = (record.key or b"").removeprefix(self.prefix.encode())
        return super().read(record)._replace(image=(record.value or b"") * self.copies, label=label)


class Envelope(Format):
    """A format of a user's own. A message has as many rows as its key says."""

    def read(self, record: Record) -> Rows:
        return Rows([Fields(b"", "a")] * int(record.key or b""), lambda _: b"")


@pytest.mark.parametrize("count", [0, MAX_ROWS + 1])
def test_messages_without_rows_or_with_too_many_are_refused(count: int):
    decode = decoder(f"{__name__}:{Envelope.__name__}")
    assert isinstance(decode(record(b"", key=b"2")), Rows)
    with pytest.raises(RejectError, match=r"the message has (no|65537) rows") as refused:
        decode(record(b"", key=b"%d" % count))
    assert refused.value.reason is Reason.BAD_ENVELOPE


OWN = f"{__name__}:{LabelledByKey.__name__}"


def test_a_format_of_ones_own_has_settings_of_its_own():
    assert sample_of(record(digit(0), key=b"seven"), decoder(OWN)).label == "seven"
    assert sample_of(record(digit(0), key=b"is-seven"), decoder(OWN, {"prefix": "is-"})).label == "seven"


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        (OWN, {"prefx": "is-"}, "unknown setting input.format_settings.prefx; known here: prefix, copies"),
        (OWN, {"copies": "many"}, "input.format_settings.copies: Input should be a valid integer, "),
        ("plain", {"prefix": "is-"}, "unknown setting input.format_settings.prefix; known here: none"),
        (f"{__name__}:sample_of", {}, "input.format: test_decoder:sample_of is not a subclass of stream_learner."),
        (f"{__name__}:Decoder", {}, "input.format: test_decoder:Decoder is not a subclass of stream_learner."),
    ],
)
def test_a_format_and_settings_that_do_not_fit_are_refused(name, given, message):
    with pytest.raises(UsageError) as caught:
        decoder(name, given)
    assert str(caught.value).startswith(message)


def test_an_image_that_a_format_makes_is_bounded_like_a_record():
    given_record = record(digit(0), key=b"seven")
    assert len(digit(0)) * 50 < 10_000 < len(digit(0)) * 200
    with pytest.raises(RejectError, match=r"over input\.max_record_bytes = 10000") as caught:
        decoder(OWN, {"copies": 200})(given_record)
    assert caught.value.reason is Reason.OVERSIZED_IMAGE


def test_the_example_of_the_base_class_works():
    assert doctest.testmod(format, raise_on_error=True).attempted > 5


def test_envelopes_may_carry_typed_fields():
    assert parse_weight(0.5) == 0.5
    assert parse_split("test") is Split.TEST


@pytest.mark.parametrize("value", [[], {}, object()])
def test_a_value_of_any_other_type_is_refused(value):
    for parse, reason in ((parse_weight, Reason.BAD_WEIGHT), (parse_split, Reason.UNKNOWN_SPLIT)):
        with pytest.raises(RejectError) as caught:
            parse(value)
        assert caught.value.reason is reason


header_names = st.one_of(st.sampled_from(["label", "weight", "split", "id"]), st.text(max_size=5))
numbers = st.floats(allow_subnormal=False)  # which a learner in this process does without
header_values = st.one_of(
    st.none(), st.binary(max_size=20), numbers.map(lambda number: str(number).encode()), st.text().map(str.encode)
)


@given(
    value=st.one_of(st.none(), st.binary(max_size=300), st.sampled_from([digit(0), digit(1)])),
    key=st.one_of(st.none(), st.binary(max_size=20)),
    headers=st.lists(st.tuples(header_names, header_values), max_size=6),
)
def test_any_record_is_a_sample_or_a_rejection(value, key, headers):
    try:
        sample = DECODE(Record("images", 0, 0, 0, key, value, headers))
    except RejectError:
        return
    if sample is None:
        assert value is None
        return
    assert isinstance(sample, Sample)
    assert sample.pixels_HWC.shape == (8, 8, 1)
    assert 0 <= sample.weight < float("inf")
    assert sample.label
    assert sample.split in Split
