"""A memory of bounded size that keeps a class-balanced selection of all samples so far."""

import hashlib
import heapq
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from stream_learner.errors import StateError
from stream_learner.formats import images
from stream_learner.formats.record import RejectError, Sample
from stream_learner.learning.memory.pixels import CACHE_BYTES, PixelCache
from stream_learner.learning.memory.segments import Segments
from stream_learner.networks.tensors import tensor, within

UNLIMITED = np.iinfo(np.int64).max


class BalancedMemory:
    """Class-balanced bottom-k sample of encoded images.

    An item's key is a hash of its record's place. So the content depends only on the records, and not on restarts.
    While only `max_items` limits the memory, the content does not depend on the order of arrival either.

    A class keeps its q smallest keys (bottom-k sampling: Cohen and Kaplan 2007), which remain a uniform sample of the
    class whenever q is reduced. When the memory is full, the largest class drops its largest key. The q of a class
    never grows again, because the items that the class refused in the meantime are lost. When `max_bytes` limits the
    memory, an item's size changes its chance of being kept by about size / `max_bytes`.

    Items have slots 0..N-1. Their images are in segments, as `formats.images.stored` returns them. Columns hold the
    rest of an item: key, class index, weight, number of input records that were read before its batch, event time,
    place of the image in the segments, and logits or group if they are stored.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        max_items: int,
        max_bytes: int,
        segment_bytes: int,
        seed: int,
        *,
        first_dropped: int = 0,
        cache_bytes: int = CACHE_BYTES,
        stores_logits: bool = False,
        stores_groups: bool = False,
    ):
        """Make a memory of images of `shape` (height, width, channels).

        `max_bytes` limits the bytes of the items' encoded images. Segments also hold bytes of removed items, so they
        take at most twice as much. When the largest classes are of equal size, an item of the first class from index
        `first_dropped` on is dropped. `cache_bytes` limits the cache of decoded images. `stores_logits` and
        `stores_groups` add the columns `logits` and `groups`.
        """
        self.shape = shape
        """Height, width and channels of the images."""
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._seed = seed
        self._first_dropped = first_dropped
        self._segments = Segments(segment_bytes)
        self._cache = PixelCache(shape, max_items, cache_bytes)
        self._columns = {
            "keys": np.empty(0, np.int64),
            "labels": np.empty(0, np.int64),
            "weights": np.empty(0, np.float32),
            "admitted": np.empty(0, np.int64),
            "timestamps_ms": np.empty(0, np.int64),
            "segments": np.empty(0, np.int32),
            "starts": np.empty(0, np.int32),
            "lengths": np.empty(0, np.int32),
        }
        if stores_logits:
            self._columns["logits"] = np.empty((0, 0), np.float32)
        if stores_groups:
            self._columns["groups"] = np.empty(0, np.int64)
        self._slot_of: dict[int, int] = {}
        self._heaps: list[list[int]] = []  # per class, the negated keys: the largest key is on top
        self._counts = np.empty(0, np.int64)
        self._limits = np.empty(0, np.int64)
        self._nbytes = 0

    def __len__(self) -> int:
        return len(self._slot_of)

    @property
    def nbytes(self) -> int:
        """Number of bytes of the encoded images."""
        return self._nbytes

    @property
    def counts(self) -> np.ndarray:
        """Number of items of each class index, int64 [classes]."""
        return self._counts

    @property
    def labels(self) -> np.ndarray:
        """Class indices, int64 [N]."""
        return self._column("labels")

    @property
    def weights(self) -> np.ndarray:
        """Weights, float32 [N]."""
        return self._column("weights")

    @property
    def admitted(self) -> np.ndarray:
        """Number of input records that were read before each item's batch, int64 [N]."""
        return self._column("admitted")

    @property
    def timestamps_ms(self) -> np.ndarray:
        """Event times, milliseconds since 1970, int64 [N]."""
        return self._column("timestamps_ms")

    @property
    def logits(self) -> np.ndarray:
        """Logits, float32 [N, classes]. Only with `stores_logits`.

        They are NaN for retired classes, and for classes that no step had trained when the item arrived.
        """
        return self._column("logits")

    @property
    def groups(self) -> np.ndarray:
        """Hash of each item's group, int64 [N]. Samples are split by group. Only with `stores_groups`."""
        return self._column("groups")

    @property
    def parts(self) -> dict[str, bytes]:
        """Immutable parts of the state, by digest (`sha256:` and 64 hex digits)."""
        return self._segments.parts

    def pixels_NHWC(self, slots: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Return the decoded images of the items at these slots, uint8, in `out` if it is given."""
        return self._cache.get(slots, self._columns["keys"][slots], self._decode, out)

    def add(self, sample: Sample, label: int, weight: float, admitted: int, logits: np.ndarray | None = None) -> None:
        """Offer an item. The memory keeps the item if its key is among the q smallest keys of its class.

        `logits` are float32 [classes so far], and required with `stores_logits`.
        """
        if not self._max_items:
            return
        self._know_class(label)
        key = self._key(sample)
        heap = self._heaps[label]
        if key in self._slot_of or (len(heap) >= self._limits[label] and (not heap or key > -heap[0])):
            return
        image = images.stored(sample.image, sample.pixels_HWC)
        if len(image) > self._max_bytes:
            return
        row = {
            "keys": key,
            "labels": label,
            "weights": weight,
            "admitted": admitted,
            "timestamps_ms": sample.timestamp_ms,
        }
        if "logits" in self._columns:
            assert logits is not None
            row["logits"] = self._wide(logits)
        if "groups" in self._columns:
            row["groups"] = sample.group
        slot = self._insert(row, image)
        self._cache.put(slot, key, sample.pixels_HWC)
        if len(heap) > self._limits[label]:
            self._evict(label)
        self._shrink()

    def draw(self, size: int) -> np.ndarray:
        """Draw the slots of `size` items, uniformly with replacement, from torch's generator, int64.

        Returns an empty array if the memory is empty.
        """
        return torch.randint(len(self), (size,)).numpy() if len(self) else np.empty(0, np.int64)

    def drop_since(self, records: int) -> None:
        """Remove the items whose `admitted` is at least `records`.

        The q of a class does not change. A class that lost items stays smaller than q until new items arrive, because
        the older items that the removed items had displaced are lost.
        """
        kept = np.flatnonzero(self.admitted < records)
        self._columns = {name: column[kept] for name, column in self._columns.items()}
        self._index()

    def retire(self, source: int, target: int | None) -> None:
        """Move the items of class `source` to class `target`, or remove the items if `target` is None.

        The q of the target becomes the sum of the two q, so that the target keeps all items. Later evictions drop the
        largest keys first.
        """
        self._know_class(max(source, target or 0))
        if target is None:
            kept = np.flatnonzero(self.labels != source)
            self._columns = {name: column[kept] for name, column in self._columns.items()}
        else:
            self._columns = {name: self._column(name).copy() for name in self._columns}
            self._columns["labels"][self.labels == source] = target
            self._limits[target] = self._joint_limit(source, target)
        if "logits" in self._columns:
            self._columns["logits"][:, source : source + 1] = np.nan
        self._limits[source] = UNLIMITED
        self._index()

    def _joint_limit(self, *classes: int) -> int:
        """Return the joint q of classes. A class that has refused nothing counts with its number of items."""
        if (self._limits[list(classes)] == UNLIMITED).all():
            return UNLIMITED
        unlimited = self._limits == UNLIMITED
        return int(np.where(unlimited, self._counts, self._limits)[list(classes)].sum())

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of the content in slot order, without the bytes in `parts`."""
        columns = {name: torch.from_numpy(self._column(name).copy()) for name in self._columns}
        return columns | {"limits": torch.from_numpy(self._limits.copy())} | self._segments.state_dict()

    def load_state_dict(self, state: dict[str, Tensor], parts: Mapping[str, bytes], classes: int) -> None:
        """Restore a state from `state_dict` and `parts`, and drop items that exceed the limits.

        `classes` is the learner's number of classes. Raises ValueError when a part is missing or a tensor is malformed.
        """
        self._segments.load_state_dict(state, parts)
        limits = tensor(state, "limits", torch.int64, None)
        if len(limits) > classes:
            raise ValueError(f"tensor limits has {len(limits)} classes, more than {classes}")
        self._limits = within(limits, "limits", 0, UNLIMITED + 1).numpy().copy()
        self._columns = self._checked(state, classes)
        self._index()
        self._shrink()
        if not self._max_items:  # a disabled memory refuses nothing; if it is enabled again, it starts empty
            self._limits[:] = UNLIMITED

    def _checked(self, state: dict[str, Tensor], classes: int) -> dict[str, np.ndarray]:
        """Copy the state's columns. Raises ValueError when they do not match the segments or each other."""
        items = len(tensor(state, "keys", torch.int64, None))
        columns: dict[str, np.ndarray] = {}
        for name, own in self._columns.items():
            dtype = torch.from_numpy(own[:0]).dtype
            found = tensor(state, name, dtype, items, *[None] * (own.ndim - 1), finite=name != "logits")
            columns[name] = found.numpy().copy()
        within(state["labels"], "labels", 0, len(self._limits))
        if len(np.unique(columns["keys"])) != items:
            raise ValueError("a key is in tensor keys twice")
        if (columns["weights"] < 0).any():
            raise ValueError("tensor weights holds negative numbers")
        if "logits" in columns and (columns["logits"].shape[1] > classes or np.isinf(columns["logits"]).any()):
            raise ValueError("tensor logits must hold finite logits, or NaN, of known classes")
        numbers, places = np.unique(columns["segments"], return_inverse=True)
        sizes = np.array([self._segments.size(number) or 0 for number in numbers.tolist()], np.int64)
        starts, lengths = columns["starts"].astype(np.int64), columns["lengths"].astype(np.int64)
        if (starts < 0).any() or (lengths <= 0).any() or (starts + lengths > sizes[places]).any():
            raise ValueError("tensors starts and lengths point outside the memory's segments")
        return columns

    def _key(self, sample: Sample) -> int:
        name = f"{self._seed}/{sample.key}".encode()
        return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 1  # fits int64

    def _column(self, name: str) -> np.ndarray:
        return self._columns[name][: len(self)]

    def _decode(self, slot: int) -> np.ndarray:
        place = (int(self._columns[name][slot]) for name in ("segments", "starts", "lengths"))
        height, width, channels = self.shape
        try:
            return images.decode(self._segments.read(*place), height, width, channels, max_pixels=height * width)
        except RejectError as error:
            raise StateError(
                f"an image of the saved memory cannot be decoded ({error}): the state was not written by this program. "
                "Restore the state from a backup, or choose a new run.id"
            ) from None

    def _know_class(self, label: int) -> None:
        missing = label + 1 - len(self._heaps)
        if missing > 0:
            self._heaps += [[] for _ in range(missing)]
            self._counts = np.append(self._counts, np.zeros(missing, np.int64))
            self._limits = np.append(self._limits, np.full(missing, UNLIMITED))

    def _wide(self, logits: np.ndarray) -> np.ndarray:
        """Return the logits as a row for their column. Widen the column if there are new classes."""
        column = self._columns["logits"]
        if (missing := len(logits) - column.shape[1]) > 0:
            column = self._columns["logits"] = np.pad(column, ((0, 0), (0, missing)), constant_values=np.nan)
        return np.pad(logits, (0, column.shape[1] - len(logits)), constant_values=np.nan)

    def _insert(self, row: dict, image: bytes) -> int:
        slot, key, label = len(self), row["keys"], row["labels"]
        if slot == len(self._columns["keys"]):
            room = max(64, slot)
            for name, column in self._columns.items():
                self._columns[name] = np.concatenate([column, np.empty((room, *column.shape[1:]), column.dtype)])
        for name, value in row.items():
            self._columns[name][slot] = value
        self._store(slot, image)
        self._slot_of[key] = slot
        heapq.heappush(self._heaps[label], -key)
        self._counts[label] += 1
        self._nbytes += len(image)
        return slot

    def _store(self, slot: int, image: bytes) -> None:
        columns = self._columns
        columns["segments"][slot], columns["starts"][slot] = self._segments.append(image)
        columns["lengths"][slot] = len(image)

    def _shrink(self) -> None:
        """Drop the largest key of the largest class until everything fits."""
        while len(self) > self._max_items or self._nbytes > self._max_bytes:
            counts, first = self._counts, self._first_dropped % len(self._counts)
            largest = first + int(counts[first:].argmax())
            if first and counts[:first].max() > counts[largest]:
                largest = int(counts[:first].argmax())
            self._evict(largest)
            self._limits[largest] = self._counts[largest]

    def _evict(self, label: int) -> None:
        slot = self._slot_of.pop(-heapq.heappop(self._heaps[label]))
        number, length = int(self._columns["segments"][slot]), int(self._columns["lengths"][slot])
        self._counts[label] -= 1
        self._nbytes -= length
        last = len(self)  # the last item moves into the free slot, so that the slots stay 0..N-1
        if slot != last:
            for column in self._columns.values():
                column[slot] = column[last]
            self._slot_of[int(self._columns["keys"][slot])] = slot
        if self._segments.release(number, length):
            self._rewrite(number)

    def _rewrite(self, number: int) -> None:
        """Append a segment's live items to the log again, in their order, and drop the segment."""
        slots = np.flatnonzero(self._column("segments") == number)
        starts = self._columns["starts"][slots]
        data = self._segments.drop(number)
        for i in np.argsort(starts):
            start, slot = int(starts[i]), int(slots[i])
            self._store(slot, data[start : start + int(self._columns["lengths"][slot])])

    def _index(self) -> None:
        """Recompute everything that follows from the columns. The columns must have no unused rows."""
        keys, labels = self._columns["keys"], self._columns["labels"]
        self._slot_of = {key: slot for slot, key in enumerate(keys.tolist())}
        self._counts = np.bincount(labels, minlength=len(self._limits)).astype(np.int64)
        self._heaps = [[] for _ in self._limits]
        for key, label in zip(keys.tolist(), labels.tolist(), strict=True):
            self._heaps[label].append(-key)
        for heap in self._heaps:
            heapq.heapify(heap)
        self._nbytes = int(self._columns["lengths"].sum())
        for number in self._segments.recount(self._columns["segments"], self._columns["lengths"]):
            self._rewrite(number)
