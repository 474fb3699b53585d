"""Cache of decoded images, so that items that are replayed often are decoded only once."""

from collections.abc import Callable

import numpy as np

CACHE_BYTES = 64 * 1024 * 1024


class PixelCache:
    """Cache of at most `max_bytes` of decoded images. Several slots of a memory share a place in the cache.

    The cache affects no result, so it is not part of the state. Each place also holds the key of the item that the
    pixels belong to.
    """

    def __init__(self, shape: tuple[int, int, int], max_items: int, max_bytes: int = CACHE_BYTES):
        places = max(1, min(max_items, max_bytes // int(np.prod(shape))))
        self._keys = np.full(places, -1, np.int64)
        self._pixels = np.empty((places, *shape), np.uint8)

    def put(self, slot: int, key: int, pixels_HWC: np.ndarray) -> None:
        place = slot % len(self._keys)
        self._keys[place], self._pixels[place] = key, pixels_HWC

    def get(
        self, slots: np.ndarray, keys: np.ndarray, decode: Callable[[int], np.ndarray], out: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the images of the items at these slots, uint8 [N, height, width, channels], in `out` if it is given.

        `decode(slot)` is called for each item that is not cached.
        """
        places = slots % len(self._keys)
        pixels_NHWC = self._pixels.take(places, 0, out, "clip")  # the default mode would buffer the result
        for i in np.flatnonzero(self._keys[places] != keys).tolist():
            pixels_NHWC[i] = decode(int(slots[i]))
            self.put(int(slots[i]), int(keys[i]), pixels_NHWC[i])
        return pixels_NHWC
