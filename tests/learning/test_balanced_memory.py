import tracemalloc

import numpy as np
import pytest
import torch
from digit_stream import DIGITS_NHWC, ENCODED
from hypothesis import given
from hypothesis import strategies as st

from stream_learner.formats.images import png
from stream_learner.formats.record import Sample
from stream_learner.learning.memory import BalancedMemory

SHAPE = DIGITS_NHWC.shape[1:]
PLENTY = 10**7
CLASSES = 100
SEGMENT_BYTES = 500  # three or four digits
CHI_SQUARE_39_DOF = 72.1  # exceeded by one fair draw in a thousand

Items = list[tuple[int, int]]  # (offset, class)


def memory(max_items: int = PLENTY, seed: int = 0, max_bytes: int = PLENTY, **options) -> BalancedMemory:
    return BalancedMemory(SHAPE, max_items, max_bytes, SEGMENT_BYTES, seed, **options)


def sample(offset: int, topic: str = "images", partition: int = 0) -> Sample:
    digit = offset % len(ENCODED)
    return Sample(f"{topic}/{partition}/{offset}", "a digit", DIGITS_NHWC[digit], ENCODED[digit], 1000 + offset)


def offer(to: BalancedMemory, items: Items) -> BalancedMemory:
    """Offers items, each read right after the last one's offset."""
    for offset, label in items:
        to.add(sample(offset), label, float(offset), offset)
    return to


def slots(of: BalancedMemory) -> np.ndarray:
    return np.arange(len(of))


def content(of: BalancedMemory) -> set[tuple[int, int]]:
    """(key, class) of everything held."""
    return set(zip(of.state_dict()["keys"].tolist(), of.labels.tolist(), strict=True))


def same(a: BalancedMemory, b: BalancedMemory) -> bool:
    x, y = a.state_dict(), b.state_dict()
    equal = all(torch.equal(x[name], y[name]) and x[name].dtype == y[name].dtype for name in x)
    return x.keys() == y.keys() and equal and a.parts == b.parts


def copy(of: BalancedMemory, **options) -> BalancedMemory:
    """The memory after a restart."""
    made = memory(**options)
    made.load_state_dict(of.state_dict(), of.parts, CLASSES)
    return made


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


@given(items, st.integers(1, 40), st.integers(200, 3000))
def test_slots_stay_dense_and_their_parts_together(items, max_items, max_bytes):
    held = offer(memory(max_items, max_bytes=max_bytes), items)
    label_of = dict(items)
    offsets = held.weights.astype(int)
    assert held.labels.tolist() == [label_of[offset] for offset in offsets.tolist()]
    assert held.admitted.tolist() == offsets.tolist()
    assert held.timestamps_ms.tolist() == (1000 + offsets).tolist()
    assert held.counts.tolist() == np.bincount(held.labels, minlength=len(held.counts)).tolist()
    assert held.nbytes == sum(len(ENCODED[offset]) for offset in offsets)
    for pixels_of in (held, copy(held)):  # what was just seen, and what was never seen
        assert np.array_equal(pixels_of.pixels_NHWC(slots(held)), DIGITS_NHWC[offsets])


@given(items, st.integers(0, 20), st.integers(0, 3000))
def test_limits_never_grow_and_the_bounds_are_kept(items, max_items, max_bytes):
    held, before = memory(max_items, max_bytes=max_bytes), np.empty(0, np.int64)
    for item in items:
        offer(held, [item])
        limits = held.state_dict()["limits"].numpy()
        assert (limits[: len(before)] <= before).all()
        assert (held.counts <= limits).all()
        assert len(held) <= max_items
        assert held.nbytes <= max_bytes
        assert written(held) <= 2 * held.nbytes
        before = limits


def written(memory: BalancedMemory) -> int:
    """Bytes of images in a checkpoint, those included that are not live."""
    return len(memory.state_dict()["tail"]) + sum(map(len, memory.parts.values()))


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
    restored = copy(original, max_items=capacity)
    assert same(original, restored)
    assert same(offer(original, then), offer(restored, then))


def test_a_state_is_a_copy():
    held = offer(memory(), [(1, 0), (2, 1)])
    state = held.state_dict()
    restored = copy(held)
    offer(held, [(3, 0)])
    for tensor in state.values():
        tensor.zero_()
    assert restored.weights.tolist() == [1, 2]
    assert held.weights.tolist() == [1, 2, 3]


def test_an_old_state_is_whole_whatever_became_of_the_memory():
    held = offer(memory(40), [(i, 0) for i in range(100)])
    state, parts = held.state_dict(), held.parts
    offer(held, [(100 + i, 1 + i % 9) for i in range(1000)])
    assert not parts.keys() & held.parts.keys()  # all of them were rewritten since
    restored = memory(40)
    restored.load_state_dict(state, parts, CLASSES)
    assert np.array_equal(restored.pixels_NHWC(slots(restored)), DIGITS_NHWC[restored.weights.astype(int)])


def test_a_state_without_one_of_its_parts_is_refused():
    held = offer(memory(), [(i, 0) for i in range(20)])
    missing, *_ = held.parts
    with pytest.raises(ValueError, match=f"segment {missing} is missing"):
        memory().load_state_dict(
            held.state_dict(), {digest: data for digest, data in held.parts.items() if digest != missing}, CLASSES
        )


def test_what_a_state_adds_to_the_last_one_is_what_is_new():
    """The images in the state itself always stay under one segment. Sealed segments never change."""
    held = offer(memory(), [(i, i % 10) for i in range(1000)])
    old = held.parts
    offer(held, [(1000 + i, i % 10) for i in range(10)])
    new = sum(len(held.parts[digest]) for digest in held.parts.keys() - old.keys())
    assert old.keys() < held.parts.keys()
    assert all(held.parts[digest] is data for digest, data in old.items())
    assert sum(map(len, old.values())) > 100_000 > 3000 > new
    assert len(held.state_dict()["tail"]) < SEGMENT_BYTES


@given(items, st.integers(0, 40), st.integers(0, 40))
def test_a_memory_that_was_made_smaller_gives_up_what_is_too_much(items, before, after):
    smaller = copy(offer(memory(before), items), max_items=after)
    assert content(smaller) == by_the_book(items, min(before, after))


def test_a_class_that_gave_items_up_never_grows_back_in_a_larger_memory():
    """The items that it refused are lost, so a larger share of the class would not be a uniform sample."""
    larger = copy(offer(memory(10), [(i, i % 2) for i in range(100)]), max_items=40)
    offer(larger, [(100 + i, i % 3) for i in range(100)])
    assert larger.counts.tolist() == [5, 5, 30]


def test_a_memory_that_was_switched_off_begins_anew():
    off = copy(offer(memory(10), [(i, i % 2) for i in range(100)]), max_items=0)
    assert len(offer(off, [(100, 0)])) == 0
    assert offer(copy(off, max_items=8), [(200 + i, i % 2) for i in range(20)]).counts.tolist() == [4, 4]


@given(items, st.integers(0, 300), st.integers(1, 40))
def test_what_was_admitted_since_is_dropped(items, records, capacity):
    held = offer(memory(capacity), items)
    limits, older = held.state_dict()["limits"], held.admitted < records
    expected = sorted(held.weights[older].tolist())
    held.drop_since(records)
    assert sorted(held.weights.tolist()) == expected
    assert torch.equal(held.state_dict()["limits"], limits)
    assert np.array_equal(held.pixels_NHWC(slots(held)), DIGITS_NHWC[held.weights.astype(int)])
    assert written(held) <= 2 * held.nbytes
    assert same(held, copy(held, max_items=capacity))
    assert len(offer(held, [(500, 0)])) <= capacity


def test_logits_are_kept_with_their_items_as_far_as_classes_were_known():
    held = memory(6, stores_logits=True)
    for offset in range(40):
        held.add(sample(offset), 0, float(offset), offset, np.full(1 + offset // 10, offset, np.float32))
    for one in (held, copy(held, stores_logits=True)):
        assert one.logits.shape == (6, 4)
        for row, offset in zip(one.logits, one.weights.astype(int).tolist(), strict=True):
            known = 1 + offset // 10
            assert (row[:known] == offset).all()
            assert np.isnan(row[known:]).all()
    assert "logits" not in memory().state_dict()


def test_an_image_of_another_size_is_kept_as_the_model_sees_it():
    held = memory()
    large = png(np.kron(DIGITS_NHWC[0], np.ones((20, 20, 1), np.uint8)))
    held.add(sample(0)._replace(image=large), 0, 1.0, 0)
    assert np.array_equal(copy(held).pixels_NHWC(slots(held)), DIGITS_NHWC[:1])
    assert held.nbytes == len(ENCODED[0])


def test_without_room_it_stays_empty():
    for without in (memory(0), memory(max_bytes=0), memory(max_bytes=50)):
        offer(without, [(i, i % 3) for i in range(20)])
        assert (len(without), without.nbytes, len(without.draw(8))) == (0, 0, 0)
        assert without.pixels_NHWC(slots(without)).shape == (0, *SHAPE)
        assert same(without, copy(without))


def chi_square(kept: np.ndarray, expected: float, share: float) -> float:
    """Of how often each of n items was kept, `share` of them at a time.

    Counts of a draw without replacement vary less than a multinomial's, by (1 - share) n / (n - 1).
    """
    n = len(kept)
    return ((kept - expected) ** 2 / expected).sum() / (1 - share) * (n - 1) / n


def test_every_item_of_a_class_is_kept_equally_often():
    """Over seeds. The class shrinks when others arrive, which must not favour early or late items."""
    n, keep, seeds = 40, 10, 500
    arrivals = [(i, 0) for i in range(n // 2)] + [(1000 + i, 1) for i in range(30)] + [(i, 0) for i in range(n // 2, n)]
    kept = np.zeros(n)
    for seed in range(seeds):
        held = offer(memory(2 * keep, seed), arrivals)
        assert held.counts.tolist() == [keep, keep]
        kept[held.weights[held.labels == 0].astype(int)] += 1
    assert chi_square(kept, seeds * keep / n, keep / n) < CHI_SQUARE_39_DOF


def test_classes_that_come_one_after_the_other_are_each_kept_without_bias_under_a_bound_of_bytes():
    """Over seeds. Each of four classes is made smaller for the next ones, and its images have different sizes."""
    n, seeds = 40, 250
    arrivals = [(i, label) for label in range(4) for i in range(n * label, n * (label + 1))]
    kept = np.zeros(4 * n)
    for seed in range(seeds):
        held = offer(memory(seed=seed, max_bytes=2500), arrivals)
        assert np.ptp(held.counts) <= 3  # a large image makes its class give up one more
        kept[held.weights.astype(int)] += 1
    for label, of_class in enumerate(np.split(kept, 4)):
        share = of_class.mean() / seeds
        assert chi_square(of_class, of_class.mean(), share) < CHI_SQUARE_39_DOF, label


def test_topic_partition_and_seed_make_other_keys():
    def key(topic: str = "images", partition: int = 0, seed: int = 0) -> int:
        held = memory(seed=seed)
        held.add(sample(7, topic, partition), 0, 1.0, 0)
        return int(held.state_dict()["keys"][0])

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
        drawn = held.pixels_NHWC(slots), held.labels[slots], held.weights[slots]
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(drawn[0]) == 32
        return peak, torch.get_rng_state()

    (few, few_rng), (many, many_rng) = (cost(offer(memory(), [(i, 0) for i in range(n)])) for n in (100, 10_000))
    assert abs(many - few) < 1000
    assert torch.equal(few_rng, many_rng)
