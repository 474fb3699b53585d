"""A class-balanced sample of everything seen, under one bound: for replay, and for the held-out sets."""

import hashlib
import heapq

import numpy as np
import torch
from torch import Tensor

from stream_learner.records.record import Record

UNLIMITED = np.iinfo(np.int64).max


class BalancedMemory:
    """Class-balanced bottom-k sample.

    Each item's key is a hash of where its record stood, so what is kept depends on the records alone: not on the
    order of arrival, and not on the number of restarts. A class keeps its q smallest keys (bottom-k sampling: Cohen and
    Kaplan 2007), a uniform sample of the class under any shrink. When the memory is full the largest class gives up
    its largest key, and its q never grows back: what it refused meanwhile cannot be had again.

    Pixels are uint8 `[height, width, channels]`; weights float32.
    """

    def __init__(self, shape: tuple[int, int, int], max_items: int, max_bytes: int, seed: int):
        self.capacity = min(max_items, max_bytes // int(np.prod(shape)))
        self._seed = seed
        self._pixels = np.empty((0, *shape), np.uint8)
        self._labels = np.empty(0, np.int64)
        self._weights = np.empty(0, np.float32)
        self._keys = np.empty(0, np.int64)
        self._slot_of: dict[int, int] = {}
        self._heaps: list[list[int]] = []  # per class, keys negated: the largest on top
        self._counts = np.empty(0, np.int64)
        self._limits = np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self._slot_of)

    @property
    def nbytes(self) -> int:
        """Bytes of the pixels held."""
        return len(self) * int(self._pixels[:1].nbytes if len(self) else 0)

    @property
    def counts(self) -> np.ndarray:
        """Items of each class index, int64 [classes]."""
        return self._counts

    @property
    def pixels_NHWC(self) -> np.ndarray:
        return self._pixels[: len(self)]

    @property
    def labels(self) -> np.ndarray:
        """Class indices, int64 [N]."""
        return self._labels[: len(self)]

    @property
    def weights(self) -> np.ndarray:
        return self._weights[: len(self)]

    def add(self, record: Record, pixels_HWC: np.ndarray, label: int, weight: float) -> None:
        """Offers an item; it stays if its key is among the class's q smallest."""
        if not self.capacity:
            return
        self._know_class(label)
        key = self._key(record)
        heap = self._heaps[label]
        if key in self._slot_of or (len(heap) >= self._limits[label] and (not heap or key > -heap[0])):
            return
        self._insert(key, pixels_HWC, label, weight)
        if len(heap) > self._limits[label]:
            self._evict(label)
        self._shrink()

    def draw(self, size: int) -> np.ndarray:
        """Slots of `size` items drawn uniformly with replacement from torch's generator, int64; none when empty."""
        return torch.randint(len(self), (size,)).numpy() if len(self) else np.empty(0, np.int64)

    def state(self) -> dict[str, Tensor]:
        """Copies of the contents in slot order."""
        n = len(self)
        arrays = {
            "pixels": self._pixels[:n],
            "labels": self._labels[:n],
            "weights": self._weights[:n],
            "keys": self._keys[:n],
            "limits": self._limits,
        }
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Takes over what `state()` gave, as much of it as fits. Raises ValueError when the images have another
        shape."""
        arrays = {name: tensor.numpy().copy() for name, tensor in state.items()}
        if arrays["pixels"].shape[1:] != self._pixels.shape[1:]:
            raise ValueError(f"images of {arrays['pixels'].shape[1:]}, not {self._pixels.shape[1:]}")
        self._pixels, self._labels, self._weights = arrays["pixels"], arrays["labels"], arrays["weights"]
        self._keys, self._limits = arrays["keys"], arrays["limits"]
        self._slot_of = {int(key): slot for slot, key in enumerate(self._keys)}
        self._counts = np.bincount(self._labels, minlength=len(self._limits)).astype(np.int64)
        self._heaps = [[] for _ in self._limits]
        for key, label in zip(self._keys, self._labels, strict=True):
            self._heaps[label].append(-int(key))
        for heap in self._heaps:
            heapq.heapify(heap)
        self._shrink()

    def _key(self, record: Record) -> int:
        place = f"{self._seed}/{record.topic}/{record.partition}/{record.offset}".encode()
        return int.from_bytes(hashlib.blake2b(place, digest_size=8).digest(), "big") >> 1  # fits int64

    def _know_class(self, label: int) -> None:
        missing = label + 1 - len(self._heaps)
        if missing > 0:
            self._heaps += [[] for _ in range(missing)]
            self._counts = np.append(self._counts, np.zeros(missing, np.int64))
            self._limits = np.append(self._limits, np.full(missing, UNLIMITED))

    def _insert(self, key: int, pixels_HWC: np.ndarray, label: int, weight: float) -> None:
        slot = len(self)
        if slot == len(self._pixels):
            room = max(64, min(slot, self.capacity + 1 - slot))
            for name in ("_pixels", "_labels", "_weights", "_keys"):
                array = getattr(self, name)
                setattr(self, name, np.concatenate([array, np.empty((room, *array.shape[1:]), array.dtype)]))
        self._pixels[slot], self._labels[slot] = pixels_HWC, label
        self._weights[slot], self._keys[slot] = weight, key
        self._slot_of[key] = slot
        heapq.heappush(self._heaps[label], -key)
        self._counts[label] += 1

    def _shrink(self) -> None:
        """The largest class gives up its largest key until everything fits."""
        while len(self) > self.capacity:
            largest = int(self._counts.argmax())
            self._evict(largest)
            self._limits[largest] = self._counts[largest]

    def _evict(self, label: int) -> None:
        slot = self._slot_of.pop(-heapq.heappop(self._heaps[label]))
        self._counts[label] -= 1
        last = len(self)  # the slots stay dense: the last item moves into the hole
        if slot != last:
            for array in (self._pixels, self._labels, self._weights, self._keys):
                array[slot] = array[last]
            self._slot_of[int(self._keys[slot])] = slot
