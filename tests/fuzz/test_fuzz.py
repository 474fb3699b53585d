"""A short form of `make fuzz`."""

from mmap import mmap

from fuzz import MAX_GROWTH_MIB, decoders, fuzz, some_images

from stream_learner.contract.vocabulary import Reason
from stream_learner.formats.record import Record, Rows, Sample

COUNT = 4_000
GROWTH_BYTES = 100 * 2**20
IMAGES = some_images(None)


def test_any_damaged_image_is_a_sample_or_a_rejection():
    report = fuzz(IMAGES, COUNT, 1, decoders(), lambda: None)
    assert report.crashes == []
    assert not report.failed, vars(report)
    assert report.decoded + sum(report.rejected.values()) == COUNT
    assert report.decoded > COUNT // 10
    assert set(report.rejected) >= {Reason.UNDECODABLE_IMAGE, Reason.OVERSIZED_IMAGE, Reason.BAD_WEIGHT}


def test_undamaged_images_are_decoded():
    for decode in decoders():
        for image in IMAGES:
            sample = decode(Record("images", 0, 0, 0, None, image, [("label", b"cat")]))
            assert isinstance(sample, Sample)
            assert sample.pixels_HWC.std() > 10


def test_what_a_decoder_does_wrong_is_reported():
    right = decoders()[1]
    held: list[mmap] = []

    def wrong(record: Record) -> Sample | Rows | None:
        if record.offset == 30:
            raise IndexError("by mistake")
        if record.offset == 60:
            held.append(mmap(-1, GROWTH_BYTES))  # new memory, whatever malloc keeps from other tests
            held[0].write(bytes(GROWTH_BYTES))
        return right(record)

    report = fuzz(IMAGES, 100, 1, [wrong], lambda: None)
    assert [crash.splitlines()[-1] for crash in report.crashes] == ["IndexError: by mistake"]
    assert report.peak_growth_mib > MAX_GROWTH_MIB
    assert report.failed
