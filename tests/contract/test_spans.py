import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_learner.contract.figures import Figures
from stream_learner.contract.ledger import Piece
from stream_learner.contract.spans import Span, Spans, advance, between, each, extend, extend_all, follow
from stream_learner.contract.vocabulary import Reason, Split
from stream_learner.contract.window import Drift
from stream_learner.formats.record import Record, Rejection
from stream_learner.monitoring.report import Report
from stream_learner.run.progress import ERROR_HEADERS_BYTES, PIECE_BYTES, Progress


def rejection(offset: int, reason: Reason = Reason.NO_LABEL) -> Rejection:
    return Rejection(Record("images", 0, offset, 0, b"key", b"value", []), reason, "decode", "")


def report(spans: Spans, **rest) -> Report:
    records = sum(s.end - s.start for _, _, s in each(spans))
    return Report(**({"spans": spans, "records": records, "pieces": [[]]} | rest))


def test_a_span_grows_and_begins_where_it_was_first_seen():
    spans: Spans = {}
    extend(spans, "images", 0, 5, 6)
    extend(spans, "images", 0, 6, 9)
    extend(spans, "images", 1, 0, 1)
    assert spans == {"images": {0: Span(5, 9), 1: Span(0, 1)}}


def test_between_positions_is_what_was_read():
    start, end = {"images": {0: 5, 1: 7, 2: 3}}, {"images": {0: 9, 1: 7}, "more": {0: 8}}
    assert between(start, end) == {"images": {0: Span(5, 9)}}


@pytest.mark.parametrize("start", [9, 11])
def test_a_gap_or_an_overlap_raises(start):
    problem = rf"images\[0\]: offset 10 comes next, not {start}"
    with pytest.raises(ValueError, match=problem):
        extend_all({"images": {0: Span(5, 10)}}, {"images": {0: Span(start, 12)}})
    progress = Progress({"images": {0: 10}})
    with pytest.raises(ValueError, match=problem):
        progress.add(report({"images": {0: Span(start, 12)}}))
    progress = Progress({})
    progress.add(report({"images": {0: Span(5, 10)}}))
    progress.close()
    with pytest.raises(ValueError, match=problem):
        progress.add(report({"images": {0: Span(start, 12)}}))


@pytest.mark.parametrize("start", [Span(0, 4), Span(2, 4), Span(4, 4)])
def test_rows_that_do_not_continue_raise(start: Span):
    positions, rows = {"images": {0: 5}}, {"images": {0: 3}}
    with pytest.raises(ValueError, match=rf"images\[0\]: offset 5 comes next, .* \(rows .*: 3, not {start.start}\)"):
        follow({"images": {0: Span(5, 5)}}, {"images": {0: start}}, positions, rows)
    follow({"images": {0: Span(5, 5)}}, {"images": {0: Span(3, 8)}}, positions, rows)
    assert (positions, rows) == ({"images": {0: 5}}, {"images": {0: 8}})
    follow({"images": {0: Span(5, 9)}}, {"images": {0: Span(8, 0)}}, positions, rows)
    assert (positions, rows) == ({"images": {0: 9}}, {})


def test_spans_come_in_sorted_order():
    spans = {"b": {1: Span(0, 1), 0: Span(2, 3)}, "a": {0: Span(4, 5)}}
    assert list(each(spans)) == [("a", 0, Span(4, 5)), ("b", 0, Span(2, 3)), ("b", 1, Span(0, 1))]


cuts = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 50), st.booleans()), max_size=40)


@given(cuts)
def test_any_way_of_cutting_covers_each_offset_once(steps):
    """Each step reads some records of one partition, and then may or may not close the window."""
    start = {"images": {0: 0, 1: 100, 2: 7}}
    progress, windows = Progress({"images": dict(start["images"])}), []
    for partition, count, closes in steps:
        first = progress.positions["images"][partition]
        progress.add(report({"images": {partition: Span(first, first + count)}}))
        if closes:
            windows.append(progress.close())
    windows.append(progress.close())
    assert progress.empty
    covered: Spans = {}
    for window in windows:
        extend_all(covered, window.tally.read.spans)  # raises unless each continues the one before
    ends = dict(start["images"])
    for partition, count, _ in steps:
        ends[partition] += count
    assert progress.positions == {"images": ends}
    assert {(p, s.start, s.end) for _, p, s in each(covered)} == {
        (p, start["images"][p], ends[p]) for p in {p for p, _, _ in steps}
    }
    assert sum(w.tally.read.records for w in windows) == sum(count for _, count, _ in steps)
    positions = {"images": dict(start["images"])}
    advance(positions, covered)
    assert positions == progress.positions


def test_the_ledger_says_which_offsets_made_each_batch():
    progress = Progress({"images": {0: 0, 1: 5}})
    batches = [
        [Piece("images", 0, 32)],
        [Piece("images", 0, 36), Piece("images", 1, 29), Piece("images", 0, 40)],
    ]
    progress.add(report({"images": {0: Span(0, 32)}}, pieces=[batches[0]]))
    progress.add(report({"images": {0: Span(32, 40), 1: Span(5, 29)}}, pieces=[batches[1]]))
    closed = progress.close()
    assert closed.batches == batches
    assert closed.pending_bytes == 4 * PIECE_BYTES
    assert progress.close().batches == []


def test_control_records_alone_move_the_position():
    progress = Progress({"images": {0: 0}})
    assert progress.empty
    progress.add(report({"images": {0: Span(0, 3)}}, records=0))
    assert not progress.empty


def test_pending_bytes_bound_what_waits_for_a_save():
    progress = Progress({})
    progress.add(report({"images": {0: Span(0, 2)}}, rejections=[rejection(0), rejection(1)]))
    assert progress.open.pending_bytes == 2 * (ERROR_HEADERS_BYTES + rejection(0).record.nbytes)
    assert [r.record.offset for r in progress.close().dead_letters] == [0, 1]
    assert progress.open.pending_bytes == 0


REST = {"run_id": "digits", "epoch": 1, "sequence": 1, "created_at": "", "validation": None, "test": None, "lag": {}}


def test_a_window_sums_its_batches():
    progress = Progress({})
    progress.add(
        report(
            {"images": {0: Span(0, 10)}},
            figures=Figures(
                samples={Split.TRAIN: 6, Split.TEST: 2},
                steps=3,
                loss_sum=6.0,
                prequential={"cat": (1, 2), "dog": (0, 4)},
            ),
            rejections=[rejection(0), rejection(1, Reason.BAD_WEIGHT)],
            odd_timestamps={"unknown": 2},
            drifts=[Drift(10, {}, 0.1, 0.4)],
        )
    )
    progress.add(
        report(
            {"images": {0: Span(10, 15), 1: Span(0, 1)}},
            figures=Figures(
                samples={Split.TRAIN: 4, Split.VALIDATION: 1},
                steps=1,
                loss_sum=1.0,
                prequential={"cat": (2, 2), "emu": (0, 2)},
            ),
            rejections=[rejection(10)],
            odd_timestamps={"unknown": 1, "future": 4},
            drifts=[Drift(16, {}, 0.2, 0.5)],
        )
    )
    window = progress.close().tally.window(**REST)
    assert window.spans == {"images": {0: Span(0, 15), 1: Span(0, 1)}}
    assert window.records == 16
    assert window.splits == {"train": 10, "test": 2, "validation": 1}
    assert window.rejected == {"no_label": 2, "bad_weight": 1}
    assert window.rejected_by_topic == {"images": {"no_label": 2, "bad_weight": 1}}
    assert (window.learned, window.steps, window.loss) == (10, 4, 7 / 4)
    assert [(c.label, c.correct, c.total) for c in window.prequential.per_class] == [
        ("cat", 3, 4),
        ("dog", 0, 4),
        ("emu", 0, 2),
    ]
    assert (window.prequential.accuracy, window.prequential.mean_recall) == (3 / 10, 0.25)
    assert [drift.records for drift in window.drifts] == [10, 16]
    assert window.drift_count == 2
    assert window.timestamps == {"future": 4, "unknown": 3}
    assert sum(window.splits.values()) + sum(window.rejected.values()) == window.records


def test_a_window_without_steps_has_no_loss_and_no_accuracy():
    window = Progress({}).close().tally.window(**REST)
    assert window.loss is None
    assert window.prequential.accuracy is window.prequential.mean_recall is None
