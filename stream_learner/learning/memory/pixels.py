"""Decoded images of a memory's items, so that what is replayed often is decoded once."""

from collections.abc import Callable

import numpy as np

CACHE_BYTES = 64 * 1024 * 1024


class PixelCache:
    """At most 64 MiB of decoded images, one place for every so many slots of a memory.

    It decides nothing, so it is not part of the state: an item's key tells whether the pixels at its place are its own.
    """

    def __init__(self, shape: tuple[int, int, int], max_items: int):
        places = max(1, min(max_items, CACHE_BYTES // int(np.prod(shape))))
        self._keys = np.full(places, -1, np.int64)
        self._pixels = np.empty((places, *shape), np.uint8)

    def put(self, slot: int, key: int, pixels_HWC: np.ndarray) -> None:
        place = slot % len(self._keys)
        self._keys[place], self._pixels[place] = key, pixels_HWC

    def get(self, slots: np.ndarray, keys: np.ndarray, decode: Callable[[int], np.ndarray]) -> np.ndarray:
        """uint8 [N, height, width, channels] of the items at these slots; `decode` is given the slots of those that
        are not here."""
        places = slots % len(self._keys)
        pixels_NHWC = self._pixels[places]
        for i in np.flatnonzero(self._keys[places] != keys).tolist():
            pixels_NHWC[i] = decode(int(slots[i]))
            self.put(int(slots[i]), int(keys[i]), pixels_NHWC[i])
        return pixels_NHWC
