import numpy as np
from digit_stream import DIGITS_NHWC
from hypothesis import given
from hypothesis import strategies as st

from stream_learner.learning.memory.pixels import PixelCache

SHAPE = DIGITS_NHWC.shape[1:]

# In each turn, items move into slots, then slots are asked for. An item's key determines its digit.
asked = st.lists(st.tuples(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 50))), st.lists(st.integers(0, 9))))


@given(asked, st.integers(1, 12))
def test_pixels_are_those_of_the_item_that_is_in_the_slot_now(turns, places):
    cache, keys = PixelCache(SHAPE, places), np.arange(10)
    for moves, wanted in turns:
        for slot, key in moves:
            keys[slot] = key
        slots = np.array(wanted, np.int64)
        assert np.array_equal(
            cache.get(slots, keys[slots], lambda slot: DIGITS_NHWC[keys[slot]]), DIGITS_NHWC[keys[slots]]
        )


def test_what_was_decoded_or_put_in_is_not_decoded_again():
    decoded: list[int] = []
    cache, keys = PixelCache(SHAPE, 10), np.arange(10)
    cache.put(3, 3, DIGITS_NHWC[3])

    def decode(slot: int) -> np.ndarray:
        decoded.append(slot)
        return DIGITS_NHWC[slot]

    for _ in range(2):
        cache.get(np.array([2, 3, 4]), keys[[2, 3, 4]], decode)
    assert decoded == [2, 4]


def test_it_takes_no_more_than_its_bound():
    decoded: list[int] = []
    cache, keys = PixelCache(SHAPE, 1000, 3 * DIGITS_NHWC[0].nbytes), np.arange(10)

    def decode(slot: int) -> np.ndarray:
        decoded.append(slot)
        return DIGITS_NHWC[slot]

    for _ in range(2):
        assert np.array_equal(cache.get(keys, keys, decode), DIGITS_NHWC[:10])
    assert len(decoded) == 20 - 3  # slots 7 to 9 were the last in their places
