"""Append-only storage for bytes, so that a checkpoint writes only new data."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stream_learner.contract.manifest import digest
from stream_learner.networks.tensors import tensor, within

# The memory stores segment numbers in an int32 column.
MAX_NUMBER = 2**31


class Sealed(NamedTuple):
    """A segment that no longer changes. `digest` is `sha256:` and 64 hex digits."""

    digest: str
    data: bytes


class Segments:
    """A log of byte strings in numbered segments.

    New data go to the open segment, the tail. All other segments are sealed: they never change, and may only be
    dropped. Bytes that are still used are live. When less than half of a segment is live, the caller should append the
    live bytes again and drop the segment (log-structured storage: Rosenblum and Ousterhout 1992). Then all segments
    take at most twice the live bytes. The calls and their order alone decide which segments are sealed, rewritten and
    dropped. Snapshots have no effect.
    """

    def __init__(self, segment_bytes: int):
        """Make an empty log. The tail is sealed when it reaches `segment_bytes`."""
        self._segment_bytes = segment_bytes
        self._sealed: dict[int, Sealed] = {}
        self._live: dict[int, int] = {}
        self._open(0)

    @property
    def parts(self) -> dict[str, bytes]:
        """The sealed segments by digest."""
        return dict(self._sealed.values())

    def append(self, data: bytes) -> tuple[int, int]:
        """Append data. Return the number of the segment, and the index in the segment where the data start."""
        number, start = self._tail_number, len(self._tail)
        self._tail += data
        self._live[number] += len(data)
        if len(self._tail) >= self._segment_bytes:
            sealed = bytes(self._tail)
            self._sealed[number] = Sealed(digest(sealed), sealed)
            self._open(number + 1)
        return number, start

    def read(self, number: int, start: int, length: int) -> bytes:
        data = self._tail if number == self._tail_number else self._sealed[number].data
        return bytes(data[start : start + length])

    def size(self, number: int) -> int | None:
        """Return the number of bytes in a segment, live and dead, or None if the segment does not exist."""
        if number == self._tail_number:
            return len(self._tail)
        return len(self._sealed[number].data) if number in self._sealed else None

    def release(self, number: int, length: int) -> bool:
        """Mark a number of bytes of a segment as dead. Return whether the segment should be rewritten."""
        self._live[number] -= length
        return self._sparse(number)

    def recount(self, numbers: np.ndarray, lengths: np.ndarray) -> list[int]:
        """Count the live bytes of each segment again.

        `numbers` and `lengths`, int32 [N], are the segment and the length of each live entry. Return the numbers of the
        segments that should be rewritten, in order.
        """
        self._live = dict.fromkeys([*self._sealed, self._tail_number], 0)
        found, place = np.unique(numbers, return_inverse=True)
        for number, live in zip(found.tolist(), np.bincount(place, lengths), strict=True):
            self._live[number] = int(live)
        return [number for number in self._live if self._sparse(number)]

    def drop(self, number: int) -> bytes:
        """Remove a segment and return its bytes. If it is the tail, a new tail begins."""
        del self._live[number]
        if number in self._sealed:
            return self._sealed.pop(number).data
        data = bytes(self._tail)
        self._open(number + 1)
        return data

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of the tail, the digests of the sealed segments, and the numbers of all segments.

        The bytes of the sealed segments are in `parts`, by digest. The last number is the tail's number.
        """
        digests = [bytes.fromhex(segment.digest.removeprefix("sha256:")) for segment in self._sealed.values()]
        return {
            "tail": torch.from_numpy(np.frombuffer(self._tail, np.uint8).copy()),
            "numbers": torch.tensor([*self._sealed, self._tail_number]),
            "digests": torch.tensor([*map(list, digests)], dtype=torch.uint8).reshape(-1, 32),
        }

    def load_state_dict(self, state: dict[str, Tensor], parts: Mapping[str, bytes]) -> None:
        """Restore the log from `state_dict` and `parts`. `recount` must follow.

        Raises ValueError when a part is missing or the state is malformed.
        """
        names = ["sha256:" + bytes(row).hex() for row in tensor(state, "digests", torch.uint8, None, 32).tolist()]
        if missing := set(names) - parts.keys():
            raise ValueError(f"the memory's segment {min(missing)} is missing")
        numbers = within(tensor(state, "numbers", torch.int64, len(names) + 1), "numbers", 0, MAX_NUMBER).tolist()
        if numbers != sorted(set(numbers)):
            raise ValueError("tensor numbers is not in ascending order")
        *sealed, tail_number = numbers
        self._sealed = {number: Sealed(name, parts[name]) for number, name in zip(sealed, names, strict=True)}
        self._open(tail_number)
        self._tail += tensor(state, "tail", torch.uint8, None).numpy().tobytes()

    def _open(self, number: int) -> None:
        self._tail_number, self._tail = number, bytearray()
        self._live[number] = 0

    def _sparse(self, number: int) -> bool:
        return 2 * self._live[number] < (self.size(number) or 0)
