"""The shards of a learner: a fixed division of its samples, whose sums are the same whatever process computes them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Json = dict | list | str | int | float | bool | None


class Traffic(NamedTuple):
    """Time that a rank spent in collectives, mostly waiting for other ranks, and the bytes that it sent to them."""

    seconds: float = 0.0
    sent_bytes: int = 0


class Parallel:
    """All shards of a learner in one process, the default.

    A shard is a fixed share of the partitions, the batch and the memories. The number of shards is part of the run's
    identity, because it decides the order of the sums. A process, or rank, carries consecutive shards, and every rank
    calls these methods in the same order. `learning.ranks` has the class for several ranks.
    """

    def __init__(self, shards: int = 1):
        """Take the number of shards, a power of two."""
        self.shards = shards
        self.rank = 0
        self.local = range(shards)
        """Shards of this rank, consecutive."""

    def gathered(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows of all shards [shards, ...] in the order of shards, the same on every rank.

        `rows` [local shards, ...] are the rows of this rank's shards. Their dtype and shape are the same on each rank.
        """
        return rows

    def objects(self, local: Sequence[Json]) -> list[Json]:
        """Return one JSON value for each shard, in the order of shards. `local` are those of this rank's shards."""
        return [msgspec.msgpack.decode(msgspec.msgpack.encode(value)) for value in local]

    def joined(self, arrays: Sequence[np.ndarray], lengths: Sequence[int] | None = None) -> np.ndarray:
        """Return the rows of all shards' arrays as one array [N, ...], in the order of shards, the same on every rank.

        `arrays` [rows, ...] are those of this rank's shards. They have one dtype, and the same shape except for the
        number of rows. `lengths` are the numbers of rows of all shards, if they are known.
        """
        if self.shards == 1:
            return arrays[0]
        if lengths is None:
            lengths = [int(length) for length in self.gathered(np.array([len(array) for array in arrays]))]
        if not any(lengths):
            return arrays[0]
        padded = np.zeros((len(arrays), max(lengths), *arrays[0].shape[1:]), arrays[0].dtype)
        for rows, array in zip(padded, arrays, strict=True):
            rows[: len(array)] = array
        everything = self.gathered(padded.reshape(len(arrays), -1).view(np.uint8)).view(padded.dtype)
        everything = everything.reshape(self.shards, *padded.shape[1:])
        return np.concatenate([rows[:length] for rows, length in zip(everything, lengths, strict=True)])

    def summed(self, rows: "Tensor") -> "Tensor":
        """Return the sum [...] over all shards of their rows, bit for bit the same on every number of ranks.

        `rows` [local shards, ...] are the rows of this rank's shards.
        """
        return tree_sum(rows)

    def take_traffic(self) -> Traffic:
        """Return the traffic since the last call."""
        return Traffic()


def tree_sum(rows: "Tensor") -> "Tensor":
    """Add rows [N, ...] in pairs, then the sums in pairs, until one is left. N is a power of two.

    The order of the additions is fixed. So ranks can each add their own consecutive rows, and then add their sums in
    the same way, with the same result.
    """
    while len(rows) > 1:
        rows = rows[0::2] + rows[1::2]
    return rows[0]
