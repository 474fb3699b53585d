"""Order of the merged partitions: by time where timestamps are known, by turns where they are not."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_learner.errors import InputError
from stream_learner.formats.record import Gap, Record
from stream_learner.streams import merge as merging
from stream_learner.streams.merge import MAX_STALE, PATIENCE, USUAL_S, WAIT_S, Item, Merge

BEGIN_MS = 1_700_000_000_000
UNKNOWN_MS = -1
FAR_MS = BEGIN_MS + 10**10
MANY = int(3 * PATIENCE)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def merge(clock: Clock) -> Merge:
    return Merge(clock)


def record(partition: int, offset: int, timestamp_ms: int) -> Record:
    return Record("images", partition, offset, timestamp_ms, None, b"", [])


def records(partition: int, timestamps_ms: Sequence[int]) -> list[Record]:
    return [record(partition, offset, timestamp_ms) for offset, timestamp_ms in enumerate(timestamps_ms)]


def place(partition: int) -> tuple[str, int]:
    return "images", partition


def add(merge: Merge, partition: int, timestamps_ms: Sequence[int]) -> None:
    merge.add(place(partition), records(partition, timestamps_ms))


def rest(merge: Merge, limit: int | None = None, took_s: dict[int, float] | None = None) -> list[Record | Gap]:
    """Take up to `limit` items. `took_s` is the time that a record of each partition takes."""
    given: list[Record | Gap] = []
    while len(given) != limit and (item := merge.take()):
        merge.took((took_s or {}).get(item.partition, 0.0))
        given.append(item)
    return given


def partitions(items: Sequence[Record | Gap]) -> list[int]:
    return [item.partition for item in items]


def longest_wait(given: Sequence[Record | Gap], partition: int, took_s: dict[int, float] | None = None) -> float:
    """Return the longest wait between two records of a partition that had some, in records of others."""
    waits, wait = [0.0], 0.0
    for item in given:
        if item.partition == partition:
            waits.append(wait)
            wait = 0.0
        else:
            wait += max(1.0, (took_s or {}).get(item.partition, 0.0) / USUAL_S)
    return max(waits)


# -- any times, in any portions

TIMES_MS = st.one_of(
    st.integers(BEGIN_MS, BEGIN_MS + 100), st.sampled_from([UNKNOWN_MS, 0, 2**62, FAR_MS, BEGIN_MS - 10**9])
)
# Not `st.randoms`, which draws floats: a learner in this process has switched subnormal numbers off.
SEEDS = st.integers(0, 2**32)
TOPICS = st.lists(st.lists(TIMES_MS, max_size=30), min_size=1, max_size=6)


@given(TOPICS, SEEDS)
def test_every_item_is_given_once_and_in_its_partitions_order(topic: list[list[int]], seed: int):
    """However it is added, with gaps between."""
    random = Random(seed)
    merge = Merge(Clock())
    added: dict[int, list[Item]] = {p: [] for p in range(len(topic))}
    for p, times_ms in enumerate(topic):
        for item in records(p, times_ms):
            added[p].append(item)
            if random.random() < 0.2:
                added[p].append(Gap("images", p, item.offset + 1))
    left = {p: list(items) for p, items in added.items()}
    given: list[Record | Gap] = []
    while any(left.values()):
        p = random.choice([p for p, items in left.items() if items])
        count = random.randint(1, 10)
        merge.add(place(p), left[p][:count])
        del left[p][:count]
        given += rest(merge, random.choice([0, 1, 5, None]))
    given += rest(merge)
    assert {p: [item for item in given if item.partition == p] for p in added} == added
    assert merge.nbytes == 0
    assert not merge.ready


@given(TOPICS, SEEDS)
def test_the_order_does_not_depend_on_what_arrives_first(topic: list[list[int]], seed: int):
    """As long as what is behind is waited for."""

    def order(portions: Sequence[tuple[int, Sequence[Item]]]) -> list[Record | Gap]:
        merge = Merge(Clock())
        for p in range(len(topic)):
            merge.expect(place(p), asked_for=True)
        given = []
        left = Counter(p for p, _ in portions)
        for p, items in portions:
            merge.add(place(p), items)
            left[p] -= 1
            if left[p]:
                merge.expect(place(p), asked_for=True)
            given += rest(merge)
        return given

    topic = [times_ms for times_ms in topic if times_ms]
    portions = [(p, [item]) for p, times_ms in enumerate(topic) for item in records(p, times_ms)]
    shuffled = [p for p, _ in portions]
    Random(seed).shuffle(shuffled)
    queues = [iter(records(p, times_ms)) for p, times_ms in enumerate(topic)]
    assert order(portions) == order([(p, [next(queues[p])]) for p in shuffled])


@given(st.lists(st.lists(st.integers(BEGIN_MS, BEGIN_MS + 10_000), max_size=100).map(sorted), min_size=1, max_size=6))
def test_times_that_rise_in_each_partition_rise_in_all(topic: list[list[int]]):
    merge = Merge(Clock())
    for p, times_ms in enumerate(topic):
        add(merge, p, times_ms)
    given = [item.timestamp_ms for item in rest(merge) if isinstance(item, Record)]
    assert given == sorted(given)


# -- turns


@pytest.mark.parametrize("timestamp_ms", [UNKNOWN_MS, 0, BEGIN_MS])
def test_times_that_say_nothing_or_are_equal_give_turns(merge: Merge, timestamp_ms: int):
    for p in range(3):
        add(merge, p, [timestamp_ms] * 4)
    assert partitions(rest(merge)) == [0, 1, 2] * 4


def test_a_partition_without_times_has_its_share_among_others(merge: Merge):
    for p in range(4):
        add(merge, p, [UNKNOWN_MS] * 100 if p == 3 else range(BEGIN_MS + p, BEGIN_MS + 400, 3))
    assert 24 <= partitions(rest(merge, 100)).count(3) <= 26


@pytest.mark.parametrize("times_ms", [(BEGIN_MS - 10**9, BEGIN_MS), (BEGIN_MS, FAR_MS)], ids=["old", "far"])
def test_a_partition_of_other_times_runs_ahead_so_far_and_then_there_are_turns(merge: Merge, times_ms: tuple[int, int]):
    add(merge, 0, [times_ms[0]] * MANY)
    add(merge, 1, [times_ms[1]] * MANY)
    given = partitions(rest(merge, MANY))
    first = given.index(1)
    assert first == PATIENCE
    assert given[first:].count(0) == pytest.approx(given[first:].count(1), abs=1)
    assert max(map(len, "".join(map(str, given[first:])).split("1"))) == 1  # one by one


def test_others_get_as_much_time_as_records_that_take_long(merge: Merge):
    """Those are first, as their times are old: 0.15 s for each one, 10 ms for any other."""
    took_s = {0: 0.15, 1: 0.01}
    add(merge, 0, [BEGIN_MS - 1000] * 5000)
    add(merge, 1, [BEGIN_MS] * 5000)
    given = rest(merge, 1000, took_s)
    first = partitions(given).index(1)
    assert first * 0.15 <= PATIENCE * USUAL_S + 0.15
    spent_s = {p: partitions(given[first:]).count(p) * took_s[p] for p in took_s}
    assert spent_s[0] == pytest.approx(spent_s[1], rel=0.1)
    assert longest_wait(given[first:], 1, took_s) <= 2 * 0.15 / USUAL_S


def test_records_without_times_that_take_long_do_not_get_more_time_than_others(merge: Merge):
    took_s = {0: 0.15, 1: 0.001}
    add(merge, 0, [UNKNOWN_MS] * 1000)
    add(merge, 1, range(BEGIN_MS, BEGIN_MS + 3000))
    given = partitions(rest(merge, 2000, took_s))
    assert given.count(0) * 0.15 == pytest.approx(given.count(1) * 0.001, rel=0.1)


def test_nobody_has_a_claim_from_when_it_had_nothing(merge: Merge):
    add(merge, 0, [UNKNOWN_MS] * 1000)
    rest(merge, 500)
    add(merge, 1, [UNKNOWN_MS] * 1000)
    later = partitions(rest(merge, 100))
    assert later.count(0) == later.count(1)


@given(st.lists(st.lists(TIMES_MS, min_size=1, max_size=20), min_size=2, max_size=5))
def test_no_partition_waits_for_ever(pattern: list[list[int]]):
    """Whatever the times of the others: no longer than its patience and then an equal share."""
    patience = 50
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(merging, "PATIENCE", patience)
        merge = Merge(Clock())
        for p, times_ms in enumerate(pattern):
            add(merge, p, times_ms * (4 * patience // len(times_ms) + 1))
        given = rest(merge, 4 * patience)
    for p in range(len(pattern)):
        assert longest_wait(given, p) <= patience + len(pattern) ** 2


# -- waiting for what is on its way


def test_a_partition_that_is_behind_is_waited_for_once(merge: Merge, clock: Clock):
    merge.expect(place(0), asked_for=True)
    merge.expect(place(1), asked_for=True)
    add(merge, 1, [BEGIN_MS + 1, BEGIN_MS + 3])
    assert merge.take() is None
    add(merge, 0, [BEGIN_MS, BEGIN_MS + 2])
    merge.expect(place(0), asked_for=True)
    assert partitions(rest(merge)) == [0, 1, 0]
    clock.now += WAIT_S
    assert partitions(rest(merge)) == [1]
    merge.expect(place(0), asked_for=True)
    add(merge, 1, [BEGIN_MS + 5])
    assert partitions(rest(merge)) == [1]


def test_a_partition_at_its_end_is_not_waited_for(merge: Merge):
    merge.expect(place(0), asked_for=True)
    add(merge, 1, [BEGIN_MS])
    assert not merge.ready
    merge.expect_no_more(place(0))
    assert merge.ready
    assert partitions(rest(merge)) == [1]


def test_the_wait_begins_with_the_request_not_when_the_partition_runs_dry(merge: Merge, clock: Clock):
    """Or a broker that is away would be waited for once for each of its partitions."""
    for p in range(10):
        add(merge, p, [BEGIN_MS + p])
        merge.expect(place(p), asked_for=True)
    clock.now += WAIT_S
    assert partitions(rest(merge)) == [*range(10)]


def test_the_wait_is_as_long_as_it_takes_to_ask(merge: Merge, clock: Clock):
    merge.expect(place(0), asked_for=False)
    add(merge, 1, [BEGIN_MS])
    clock.now += WAIT_S
    assert not merge.ready
    merge.expect(place(0), asked_for=True)
    assert not merge.ready
    clock.now += WAIT_S
    assert partitions(rest(merge)) == [1]


def test_an_error_stands_in_its_place(merge: Merge):
    add(merge, 0, [BEGIN_MS, BEGIN_MS + 2])
    merge.add(place(0), [InputError("fallen off retention")])
    add(merge, 1, [BEGIN_MS + 1, BEGIN_MS + 3])
    assert [merge.take() for _ in range(3)] == [
        record(0, 0, BEGIN_MS),
        record(1, 0, BEGIN_MS + 1),
        record(0, 1, BEGIN_MS + 2),
    ]
    for _ in range(2):
        with pytest.raises(InputError):
            merge.take()


def test_it_knows_what_it_holds(merge: Merge):
    add(merge, 0, [BEGIN_MS, BEGIN_MS + 1])
    merge.add(place(1), [Gap("images", 1, 7), record(1, 7, BEGIN_MS)])
    size = record(0, 0, 0).nbytes
    assert (merge.nbytes, merge.bytes_of(place(0)), merge.bytes_of(place(2))) == (3 * size, 2 * size, 0)
    assert merge.next_record(place(1)) == record(1, 7, BEGIN_MS)
    assert merge.next_record(place(2)) is None
    times = [item.timestamp_ms for item in rest(merge, 3) if isinstance(item, Record)]
    assert all(a <= b for a, b in pairwise(times))
    assert merge.nbytes == size


def test_what_it_remembers_does_not_grow_with_what_was_given(merge: Merge):
    for chunk in range(20):
        add(merge, 0, range(BEGIN_MS - 10**9 + 1000 * chunk, BEGIN_MS - 10**9 + 1000 * (chunk + 1)))
        add(merge, 1, range(BEGIN_MS + 1000 * chunk, BEGIN_MS + 1000 * (chunk + 1)))
        rest(merge, 1000)
        assert len(merge._by_time) + len(merge._by_turn) < 2 * (2 * 2 + MAX_STALE) + 2


def test_nobody_is_waited_for_while_nothing_more_can_be_read(merge: Merge):
    merge.expect(place(1), asked_for=True)
    add(merge, 0, [BEGIN_MS])
    assert merge.take() is None
    merge.full = True
    assert merge.ready
    assert partitions(rest(merge)) == [0]
