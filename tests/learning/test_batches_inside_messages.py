"""Batches that begin and end inside a message with many records."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from stream_learner.config import BatchSettings
from stream_learner.contract.ledger import Piece
from stream_learner.contract.spans import RowsRead, Span, follow
from stream_learner.contract.vocabulary import Reason
from stream_learner.errors import InputError
from stream_learner.formats.record import Fields, Gap, Place, Record, RejectError, Rows, Sample
from stream_learner.learning.parallel import Parallel
from stream_learner.run import batches as batching
from stream_learner.run.batch import Batch
from stream_learner.run.batches import OpenBatch

PIXELS_HWC = np.zeros((1, 1, 1), np.uint8)
BAD = b"bad"


@dataclass
class Script:
    """A source that gives its items, then asks to stop. Decoding takes time."""

    items: Sequence[Record | Gap]
    decode_s: float = 0.0
    now: float = 0.0
    asked: bool = False
    ahead: int = 0
    fails_ahead: bool = False
    took_s: list[tuple[float, int]] = field(default_factory=list)

    def poll(self, timeout_s: float) -> Sequence[Record | Gap]:
        self.now += timeout_s
        items, self.items, self.asked = self.items, [], not self.items
        return items

    def read_ahead(self) -> None:
        self.ahead += 1
        if self.fails_ahead:
            raise InputError("gone")

    def took(self, seconds: float, records: int = 1) -> None:
        self.took_s.append((seconds, records))

    def is_set(self) -> bool:
        return self.asked

    def decode(self, record: Record) -> Sample | Rows | None:
        """A message has as many rows as its value has bytes. The bytes are the images of the rows."""
        if record.value == b"poison":
            raise RejectError(Reason.POISON, "set aside")
        if record.value is not None and record.value.startswith(b"whole"):
            return Sample(record.place, "label", PIXELS_HWC)
        if not record.rows:
            images = [bytes([byte]) for byte in record.value or b""]
            return Rows([Fields(image, "label") for image in images], lambda fields: b"only %b" % fields.image)
        self.now += self.decode_s
        if record.rows.fields[record.row].image == b"x":
            raise RejectError(Reason.UNDECODABLE_IMAGE, "bad")
        return Sample(record.place, "label", PIXELS_HWC)


def message(offset: int, value: bytes, key: bytes | None = None) -> Record:
    return Record("images", 0, offset, 1000, key, value, [("header", b"of the message")])


def read(script: Script, at: int = 0, rows: int = 0, alone: set[Place] | None = None, size: int = 4) -> list[Batch]:
    settings = BatchSettings(size=size, linger_s=1e6)
    inside: RowsRead = {"images": {0: rows}} if rows else {}
    shard = OpenBatch(
        script,
        script.decode,
        {"images": {0: at}},
        settings,
        script,
        lambda: script.now,
        rows=inside,
        alone=alone or (),
    )
    closed = []
    try:
        for batches in batching.batches([shard], Parallel(), settings, script, lambda: script.now):
            closed += batches
    except InputError:
        closed.append(Batch())
    # Whatever a batch holds is covered, once, and the next batch begins where it ends.
    positions, rows_read = {"images": {0: at}}, inside
    for batch in closed:
        follow(batch.spans, batch.rows, positions, rows_read)
    return closed


def keys(batches: list[Batch]) -> list[list[str]]:
    return [[sample.key.removeprefix("images/0/") for sample in batch.samples] for batch in batches]


def test_batches_end_inside_messages():
    got = read(Script([message(0, b"abcdef"), message(1, b"whole"), message(2, b"abcde")]))
    assert keys(got) == [["0/0", "0/1", "0/2", "0/3"], ["0/4", "0/5", "1", "2/0"], ["2/1", "2/2", "2/3", "2/4"]]
    assert [batch.pieces for batch in got] == [
        [Piece("images", 0, 0, 4)],
        [Piece("images", 0, 2, 1)],
        [Piece("images", 0, 3, 0)],
    ]
    assert [batch.rows["images"][0] for batch in got] == [Span(0, 4), Span(4, 1), Span(1, 0)]
    assert [batch.spans["images"][0] for batch in got] == [Span(0, 0), Span(0, 2), Span(2, 3)]
    assert got[0].places[3] == ("images", 0, 0, 3)


@pytest.mark.parametrize(("rows", "expected"), [(1, ["5/1", "5/2", "5/3", "6/0"]), (3, ["5/3", "6/0", "6/1", "6/2"])])
def test_a_resumed_run_skips_the_rows_before_its_position(rows: int, expected: list[str]):
    assert keys(read(Script([message(5, b"abcd"), message(6, b"abcde")]), at=5, rows=rows))[0] == expected


@pytest.mark.parametrize("lost", [True, False])
def test_rows_of_a_message_that_is_gone_are_not_skipped_in_the_next(lost: bool):
    (got,) = read(Script([Gap("images", 0, 6, lost), message(6, b"abcd")]), at=5, rows=3)
    assert keys([got]) == [["6/0", "6/1", "6/2", "6/3"]]
    assert got.rows["images"][0] == Span(3, 0)
    assert got.lost == ([("images", 0, Span(5, 6))] if lost else [])


@pytest.mark.parametrize("rows", [3, 4])
def test_a_message_with_no_more_rows_than_were_learned_is_another_message(rows: int):
    script = Script([message(5, b"abc")])
    inside = {"images": {0: rows}}
    shard = OpenBatch(script, script.decode, {"images": {0: 5}}, BatchSettings(), script, rows=inside)
    with pytest.raises(InputError, match=f"has 3 rows, but the run has learned {rows} rows"):
        shard.fill(0.0)


def test_a_message_that_is_rejected_after_some_of_its_rows_were_learned_says_how_many():
    (got,) = read(Script([message(5, b"poison"), message(6, b"poison"), message(7, b"abcd")]), at=5, rows=3)
    assert [(rejection.record.offset, rejection.rows_read) for rejection in got.rejections] == [(5, 3), (6, 0)]
    assert got.rows["images"][0] == Span(3, 0)


def test_a_bad_row_is_rejected_alone_with_a_message_of_its_own():
    (got,) = read(Script([message(0, b"axbcd", key=b"k" * 5000)]))
    assert keys([got]) == [["0/0", "0/2", "0/3", "0/4"]]
    (rejection,) = got.rejections
    assert rejection.record == Record("images", 0, 0, 1000, b"k" * 1000, b"only x", (), None, 1)
    assert got.records == len(got.places) == 5


def test_a_row_that_is_to_be_alone_has_a_batch_of_its_own():
    got = read(Script([message(0, b"abcdef"), message(1, b"abcd")]), alone={Place("images", 0, 0, 2)})
    assert keys(got) == [["0/0", "0/1"], ["0/2"], ["0/3", "0/4", "0/5", "1/0"]]


def test_a_long_message_lets_the_loop_turn_and_the_source_read():
    script = Script([message(0, b"abcdefgh")], decode_s=0.4)
    got = read(script, size=8)
    assert [len(batch.samples) for batch in got if batch.spans] == [8]
    assert script.ahead == 2
    assert script.took_s[-1] == (pytest.approx(3.2), 8)


def test_an_error_of_the_source_inside_a_message_loses_no_row():
    script = Script([message(0, b"abcdefgh")], decode_s=0.4, fails_ahead=True)
    got = [batch for batch in read(script, size=8) if batch.samples]
    assert keys(got) == [["0/0", "0/1", "0/2"]]
    assert got[0].pieces == [Piece("images", 0, 0, 3)]
