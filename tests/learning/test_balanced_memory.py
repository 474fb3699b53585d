import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stream_learner.learning.memory import BalancedMemory
from stream_learner.records.record import Record

SHAPE = (2, 2, 1)
PLENTY = 10**6
CHI_SQUARE_39_DOF = 72.1  # exceeded by one fair draw in a thousand

Items = list[tuple[int, int]]  # (offset, class)


def memory(max_items: int = PLENTY, seed: int = 0) -> BalancedMemory:
    return BalancedMemory(SHAPE, max_items, PLENTY, seed)


def offer(to: BalancedMemory, items: Items) -> BalancedMemory:
    for offset, label in items:
        record = Record("images", 0, offset, 0, None, None, [])
        to.add(record, np.full(SHAPE, offset % 256, np.uint8), label, float(offset))
    return to


def content(of: BalancedMemory) -> set[tuple[int, int]]:
    """(key, class) of everything held."""
    return set(zip(of.state()["keys"].tolist(), of.labels.tolist(), strict=True))


def same(a: BalancedMemory, b: BalancedMemory) -> bool:
    x, y = a.state(), b.state()
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) and x[name].dtype == y[name].dtype for name in x)


def by_the_book(items: Items, capacity: int) -> set[tuple[int, int]]:
    """From everything at once: the largest class gives up its largest key until the rest fits."""
    classes: dict[int, list[int]] = {label: [] for _, label in sorted(items, key=lambda item: item[1])}
    for key, label in sorted(content(offer(memory(), items))):
        classes[label].append(key)
    while sum(map(len, classes.values())) > capacity:
        max(classes.values(), key=len).pop()
    return {(key, label) for label, keys in classes.items() for key in keys}


items = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 5)), unique_by=lambda item: item[0], max_size=80)


@given(items, st.integers(0, 40), st.randoms(use_true_random=False))
def test_what_is_kept_depends_on_the_items_alone_and_not_on_their_order(items, capacity, random):
    shuffled = random.sample(items, len(items))
    held = content(offer(memory(capacity), items))
    assert held == content(offer(memory(capacity), shuffled))
    assert held == by_the_book(items, capacity)


@given(items)
def test_without_pressure_everything_is_kept_once(items):
    held = offer(memory(len(items)), items + items)
    assert len(held) == len(items)
    assert sorted(held.weights.tolist()) == sorted(offset for offset, _ in items)


@given(items, st.integers(1, 40))
def test_slots_stay_dense_and_their_parts_together(items, capacity):
    held = offer(memory(capacity), items)
    label_of = dict(items)
    for pixels, label, weight in zip(held.pixels_NHWC, held.labels, held.weights, strict=True):
        assert label_of[int(weight)] == label
        assert (pixels == int(weight) % 256).all()
    assert held.counts.tolist() == np.bincount(held.labels, minlength=len(held.counts)).tolist()
    assert held.nbytes == len(held) * 4


@given(items, st.integers(0, 20))
def test_limits_never_grow_and_the_capacity_is_kept(items, capacity):
    held, before = memory(capacity), np.empty(0, np.int64)
    for item in items:
        offer(held, [item])
        limits = held.state()["limits"].numpy()
        assert (limits[: len(before)] <= before).all()
        assert (held.counts <= limits).all()
        assert len(held) <= capacity
        before = limits


def test_under_pressure_classes_are_balanced():
    held = offer(memory(30), [(i, 0) for i in range(500)])
    assert held.counts.tolist() == [30]
    offer(held, [(500 + i, 1 + i % 2) for i in range(200)])
    assert held.counts.tolist() == [10, 10, 10]
    offer(held, [(700 + i, 3) for i in range(4)])
    assert held.counts.tolist() == [8, 9, 9, 4]  # a rare class keeps all it has
    offer(held, [(800 + i, 0) for i in range(500)])
    assert held.counts.tolist() == [8, 9, 9, 4]


def test_more_classes_than_room_leave_some_without_items():
    held = offer(memory(3), [(i, i % 5) for i in range(100)])
    assert held.counts.tolist() == [0, 0, 1, 1, 1]
    offer(held, [(100 + i, 0) for i in range(10)])
    assert held.counts.tolist() == [0, 0, 1, 1, 1]


@given(items, items, st.integers(0, 30))
def test_a_restored_memory_is_equal_and_goes_on_equally(first, then, capacity):
    original = offer(memory(capacity), first)
    restored = memory(capacity)
    restored.restore(original.state())
    assert same(original, restored)
    assert same(offer(original, then), offer(restored, then))


def test_a_state_is_a_copy():
    held = offer(memory(), [(1, 0), (2, 1)])
    state = held.state()
    restored = memory()
    restored.restore(state)
    offer(held, [(3, 0)])
    for tensor in state.values():
        tensor.zero_()
    assert restored.weights.tolist() == [1, 2]
    assert held.weights.tolist() == [1, 2, 3]


def test_a_state_of_other_images_is_refused():
    other = BalancedMemory((3, 3, 1), 10, PLENTY, 0)
    with pytest.raises(ValueError, match=r"images of \(2, 2, 1\), not \(3, 3, 1\)"):
        other.restore(offer(memory(), [(0, 0)]).state())


@given(items, st.integers(0, 40), st.integers(0, 40))
def test_a_memory_that_was_made_smaller_gives_up_what_is_too_much(items, before, after):
    smaller = memory(after)
    smaller.restore(offer(memory(before), items).state())
    assert content(smaller) == by_the_book(items, min(before, after))


def test_a_class_that_gave_items_up_never_grows_back_in_a_larger_memory():
    """What it refused meanwhile cannot be had again, so more of it would not be a uniform sample."""
    small = offer(memory(10), [(i, i % 2) for i in range(100)])
    larger = memory(40)
    larger.restore(small.state())
    offer(larger, [(100 + i, i % 3) for i in range(100)])
    assert larger.counts.tolist() == [5, 5, 30]


def test_bytes_bound_it_as_well():
    assert BalancedMemory((10, 10, 3), 1000, 3_000, 0).capacity == 10
    assert BalancedMemory((10, 10, 3), 5, 3_000, 0).capacity == 5
    assert BalancedMemory((10, 10, 3), 5, 299, 0).capacity == 0


def test_without_room_it_stays_empty():
    held = offer(memory(0), [(i, i % 3) for i in range(20)])
    assert (len(held), held.nbytes, len(held.draw(8)), held.pixels_NHWC.shape) == (0, 0, 0, (0, *SHAPE))
    restored = memory(0)
    restored.restore(held.state())
    assert same(held, restored)


def test_every_item_of_a_class_is_kept_equally_often():
    """Over seeds; the class shrinks when others arrive, which must not favour early or late items."""
    n, keep, seeds = 40, 10, 500
    arrivals = [(i, 0) for i in range(n // 2)] + [(1000 + i, 1) for i in range(30)] + [(i, 0) for i in range(n // 2, n)]
    kept = np.zeros(n)
    for seed in range(seeds):
        held = offer(memory(2 * keep, seed), arrivals)
        assert held.counts.tolist() == [keep, keep]
        kept[held.weights[held.labels == 0].astype(int)] += 1
    share = keep / n
    # Counts of a draw without replacement vary less than a multinomial's, by (1 - share) n / (n - 1).
    chi_square = ((kept - seeds * share) ** 2 / (seeds * share)).sum() / (1 - share) * (n - 1) / n
    assert chi_square < CHI_SQUARE_39_DOF


def test_topic_partition_and_seed_make_other_keys():
    def key(topic: str = "images", partition: int = 0, seed: int = 0) -> int:
        held = memory(seed=seed)
        held.add(Record(topic, partition, 7, 0, None, None, []), np.zeros(SHAPE, np.uint8), 0, 1.0)
        return int(held.state()["keys"][0])

    assert key() == key()
    assert len({key(), key(topic="more"), key(partition=1), key(seed=1)}) == 4


def test_draws_are_uniform_and_come_from_torchs_generator():
    held = offer(memory(), [(i, i % 3) for i in range(40)])
    torch.manual_seed(0)
    slots = held.draw(20_000)
    torch.manual_seed(0)
    assert np.array_equal(slots, held.draw(20_000))
    counts = np.bincount(slots, minlength=40)
    assert ((counts - 500) ** 2 / 500).sum() < CHI_SQUARE_39_DOF


def test_a_draw_costs_what_the_batch_costs_and_not_what_the_memory_holds():
    def cost(held: BalancedMemory) -> tuple[int, torch.Tensor]:
        torch.manual_seed(0)
        tracemalloc.start()
        slots = held.draw(32)
        drawn = held.pixels_NHWC[slots], held.labels[slots], held.weights[slots]
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(drawn[0]) == 32
        return peak, torch.get_rng_state()

    (few, few_rng), (many, many_rng) = (cost(offer(memory(), [(i, 0) for i in range(n)])) for n in (100, 10_000))
    assert abs(many - few) < 1000
    assert torch.equal(few_rng, many_rng)
