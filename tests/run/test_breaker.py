import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_learner.config import RejectsSettings
from stream_learner.contract.vocabulary import Reason
from stream_learner.formats.record import Record, Rejection
from stream_learner.formats.rejects import describe
from stream_learner.monitoring.report import Report
from stream_learner.run.breaker import Breaker

REJECTION = Rejection(Record("images", 0, 0, 0, None, None, []), Reason.NO_IMAGE, "decode", "")


def batch(records: int, rejected: int) -> Report:
    return Report(spans={}, records=records, rejections=[REJECTION] * rejected)


def in_order(used: str) -> Report:
    """A batch whose records were used (`+`) or rejected (`-`)."""
    return Report(spans={}, records=len(used), used=[c == "+" for c in used], rejections=[REJECTION] * used.count("-"))


def breaker(enabled: bool = True) -> Breaker:
    return Breaker(RejectsSettings(max_share=0.1, window=100, max_in_a_row=20), enabled)


def test_it_waits_for_a_whole_window():
    b = breaker()
    b.observe(batch(99, 99))
    assert b.why is None
    b.observe(batch(1, 0))
    assert b.why == "99% of the last records were rejected, over rejects.max_share = 10%: images: no_image 99"
    assert b.share == 0.99


def test_the_share_itself_is_allowed():
    b = breaker()
    b.observe(batch(100, 10))
    assert b.why is None
    b.observe(batch(100, 11))
    assert b.why


def test_what_left_the_window_is_forgotten():
    b = breaker()
    b.observe(batch(50, 50))
    for _ in range(10):
        b.observe(batch(10, 0))
    assert b.why is None
    assert b.share == 0


def test_it_names_topics_and_reasons_of_the_window():
    b = breaker()
    b.observe(batch(10, 10))
    other = REJECTION._replace(reason=Reason.OVERSIZED_IMAGE)
    more = REJECTION._replace(record=REJECTION.record._replace(topic="more"))
    b.observe(Report(spans={}, records=100, rejections=[more] * 20 + [REJECTION, other, other]))
    assert b.why == (
        "23% of the last records were rejected, over rejects.max_share = 10%: "
        "more: no_image 20; images: oversized_image 2, no_image 1"
    )


@pytest.mark.parametrize(
    "batches",
    [
        ["-" * 20],
        ["+++" + "-" * 10, "-" * 10],  # over batches
        ["+" + "-" * 20 + "+++"],  # good records after them in the same batch
        ["-" * 19 + "+" + "-" * 20],
    ],
)
def test_rejects_in_a_row_trip_it_however_few_records_were_read(batches: list[str]):
    b = breaker()
    for used in batches:
        assert b.why is None
        b.observe(in_order(used))
    assert b.why == "20 records in a row were rejected (rejects.max_in_a_row = 20): images: no_image " + str(
        sum(used.count("-") for used in batches)
    )


def test_a_good_record_ends_a_row():
    b = Breaker(RejectsSettings(max_share=1, max_in_a_row=20))
    for _ in range(100):
        b.observe(in_order("-" * 10))
        b.observe(in_order("-" * 9 + "+"))
    assert b.why is None


def test_it_can_be_told_to_go_on():
    b = breaker(enabled=False)
    b.observe(batch(1000, 1000))
    b.observe(in_order("-" * 20))
    assert b.why is None


def test_deletion_markers_count_neither_as_rejected_nor_as_good():
    b = breaker()
    b.observe(Report(spans={}, records=1000, tombstones=1000))
    b.observe(Report(spans={}, records=990, tombstones=900, rejections=[REJECTION] * 45))
    assert b.share == 0.5
    assert b.why is None  # 90 records are no window
    b.observe(batch(10, 5))
    assert b.why


def test_rare_labels_count_neither_as_rejected_nor_as_good():
    b = breaker()
    rare = REJECTION._replace(reason=Reason.RARE_LABEL)
    b.observe(Report(spans={}, records=1000, rejections=[rare] * 1000))
    b.observe(Report(spans={}, records=990, rejections=[rare] * 900 + [REJECTION] * 45))
    assert b.share == 0.5
    assert b.why is None  # 90 records are no window
    b.observe(batch(10, 5))
    assert b.why


def test_idle_turns_change_nothing_and_pile_up_nowhere():
    b = breaker()
    b.observe(batch(100, 50))
    for _ in range(1000):
        b.observe(batch(0, 0))
    assert b.why
    assert len(b._batches) == 1


@given(st.lists(st.integers(1, 150).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), max_size=30))
def test_it_looks_at_the_newest_batches_that_fill_a_window(batches):
    b = breaker()
    for records, rejected in batches:
        b.observe(batch(records, rejected))
    newest, total = [], 0
    for records, rejected in reversed(batches):
        if total < 100:
            newest.append(rejected)
            total += records
    assert b.share == (sum(newest) / total if total else 0)
    assert bool(b.why) == (total >= 100 and sum(newest) > 0.1 * total)


def test_five_topics_are_named_the_worst_first_and_the_rest_counted():
    rejects = {f"topic{number}": {"no_label": number, "no_image": 1} for number in range(1, 8)}
    named = "; ".join(f"topic{number}: no_label {number}, no_image 1" for number in (7, 6, 5, 4, 3))
    assert describe(rejects) == f"{named}; 2 more topics: 5 records"
