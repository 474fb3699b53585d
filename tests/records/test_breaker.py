from hypothesis import given
from hypothesis import strategies as st

from stream_learner.config import RejectsSettings
from stream_learner.records.breaker import Breaker
from stream_learner.records.record import Reason, Record, Rejection
from stream_learner.records.report import Report

REJECTION = Rejection(Record("images", 0, 0, 0, None, None, []), Reason.NO_IMAGE, "decode", "")


def batch(records: int, rejected: int) -> Report:
    return Report(spans={}, records=records, rejections=[REJECTION] * rejected)


def breaker(enabled: bool = True) -> Breaker:
    return Breaker(RejectsSettings(max_share=0.1, window=100), enabled)


def test_it_waits_for_a_whole_window():
    b = breaker()
    b.observe(batch(99, 99))
    assert not b.tripped
    b.observe(batch(1, 0))
    assert b.tripped
    assert b.share == 0.99


def test_the_share_itself_is_allowed():
    b = breaker()
    b.observe(batch(100, 10))
    assert not b.tripped
    b.observe(batch(100, 11))
    assert b.tripped


def test_what_left_the_window_is_forgotten():
    b = breaker()
    b.observe(batch(50, 50))
    for _ in range(10):
        b.observe(batch(10, 0))
    assert not b.tripped
    assert b.share == 0


def test_it_says_why_of_what_is_in_the_window():
    b = breaker()
    b.observe(batch(10, 10))
    other = REJECTION._replace(reason=Reason.OVERSIZED_IMAGE)
    b.observe(Report(spans={}, records=100, rejections=[REJECTION, other, other]))
    assert b.reasons == "oversized_image: 2, no_image: 1"


def test_it_can_be_told_to_go_on():
    b = breaker(enabled=False)
    b.observe(batch(1000, 1000))
    assert not b.tripped


def test_idle_turns_change_nothing_and_pile_up_nowhere():
    b = breaker()
    b.observe(batch(100, 50))
    for _ in range(1000):
        b.observe(batch(0, 0))
    assert b.tripped
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
    assert b.tripped == (total >= 100 and sum(newest) > 0.1 * total)
