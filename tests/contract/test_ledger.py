import base64
import json
import zlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_learner.contract import ledger
from stream_learner.contract.ledger import Ledger, Piece
from stream_learner.contract.spans import Span, Spans, extend

BATCHES = [[Piece("images", 1, 20)], [], [Piece("images", 0, 33), Piece("images", 1, 25), Piece("images", 0, 40)]]
SPANS: Spans = {"images": {1: Span(12, 25), 0: Span(30, 40)}}


def test_what_was_written_is_read():
    written = ledger.encode(BATCHES, SPANS)
    assert list(ledger.decode(written, SPANS)) == BATCHES
    assert written.batches == 3


def test_any_language_can_read_it():
    written = ledger.encode(BATCHES, SPANS)
    assert written.partitions == [("images", 1), ("images", 0)]
    assert json.loads(zlib.decompress(base64.b64decode(written.pieces))) == [1, 0, 8, 0, 3, 1, 3, 0, 5, 1, 7]


def test_batches_that_end_inside_messages():
    batches = [[Piece("images", 0, 30, 7)], [Piece("images", 0, 30, 9)], [Piece("images", 0, 31), BATCHES[0][0]]]
    spans: Spans = {"images": {0: Span(30, 31), 1: Span(12, 20)}}
    written = ledger.encode(batches, spans)
    assert list(ledger.decode(written, spans)) == batches
    assert json.loads(zlib.decompress(base64.b64decode(written.rows))) == [7, 9, 0, 0]
    for rows in (packed([7, 9]), packed([-1] * 4), "?"):
        with pytest.raises(ValueError, match="the ledger is damaged"):
            list(ledger.decode(msgspec.structs.replace(written, rows=rows), spans))


def test_a_ledger_without_rows_is_written_as_before_there_were_any():
    assert set(msgspec.json.decode(msgspec.json.encode(ledger.encode(BATCHES, SPANS)))) == {
        "batches",
        "partitions",
        "pieces",
    }


@given(st.lists(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 2), st.integers(1, 40)))))
def test_any_batches_come_back(batches: list[list[tuple[str, int, int]]]):
    at: dict[tuple[str, int], int] = {}
    spans: Spans = {}
    written = []
    for batch in batches:
        pieces = []
        for topic, partition, offsets in batch:
            start = at.get((topic, partition), 7)
            at[topic, partition] = start + offsets
            extend(spans, topic, partition, start, start + offsets)
            pieces.append(Piece(topic, partition, start + offsets))
        written.append(pieces)
    assert list(ledger.decode(ledger.encode(written, spans), spans)) == written


def test_it_is_compact():
    batches = [[Piece("images", 0, 36 * i)] for i in range(1, 10_001)]
    assert len(ledger.encode(batches, {"images": {0: Span(0, 360_000)}}).pieces) < 1000


def packed(numbers: object) -> str:
    return base64.b64encode(zlib.compress(json.dumps(numbers).encode())).decode()


@pytest.mark.parametrize(
    "damaged",
    [
        {"pieces": "?"},
        {"pieces": base64.b64encode(b"not zlib").decode()},
        {"pieces": packed("no numbers")},
        {"pieces": packed([1, 0, 8, 0, 3, 1, 3, 0, 5])},  # cut
        {"pieces": packed([1, 0, 8, 0, 3, 1, 3, 0, 5, 2, 7])},  # no such partition
        {"pieces": packed([1, 0, 8, 0, 3, 1, 3, 0, 5, 1, 6])},  # ends before the span
        {"pieces": packed([1, -1, 8, 0, 3, 1, 3, 0, 5])},
        {"pieces": packed([1, 0, -8, 0, 3, 1, 3, 0, 5])},
        {"pieces": packed([2**62, 0, 8])},
        {"pieces": base64.b64encode(zlib.compress(b"[" * 1_000_000)).decode()},
        {"pieces": base64.b64encode(zlib.compress(b"[0" + b",0" * ledger.MAX_JSON_BYTES, level=1)).decode()},
        {"batches": 2},
        {"batches": 2**62},
    ],
)
def test_damage_is_noticed(damaged: dict):
    written = msgspec.structs.replace(ledger.encode(BATCHES, SPANS), **damaged)
    with pytest.raises(ValueError, match="the ledger"):
        list(ledger.decode(written, SPANS))


def test_no_more_is_decompressed_than_is_read():
    bomb = base64.b64encode(zlib.compress(bytes(2 * ledger.MAX_JSON_BYTES), level=1)).decode()
    with pytest.raises(ValueError, match=f"{ledger.MAX_JSON_BYTES + 1} bytes long"):
        ledger._decompressed(bomb)


def test_an_empty_one():
    assert list(ledger.decode(Ledger(0, [], packed([])), {})) == []
