"""Ranks of a learner as threads of one process. One runs at a time, until it waits for the others."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from stream_learner.learning.parallel import Json, Parallel, tree_sum

T = TypeVar("T")


class Meeting:
    """The place where ranks exchange values. torch's default generator is the process's, so each rank keeps its own."""

    def __init__(self, ranks: int):
        self.ranks = ranks
        self._barrier = threading.Barrier(ranks)
        self._running = threading.Lock()
        self._values: list[dict[int, Any]] = [{}, {}]

    def run(self, work: Callable[[], T]) -> T:
        with self._running:
            try:
                return work()
            except BaseException:
                self._barrier.abort()
                raise

    def exchange(self, rank: int, number: int, value: Any) -> list[Any]:
        """Return the values of all ranks for their exchange of this number."""
        values, generator = self._values[number % 2], torch.get_rng_state()
        values[rank] = value
        self._running.release()
        try:
            self._barrier.wait()
        finally:
            self._running.acquire()
        torch.set_rng_state(generator)
        return [values[other] for other in range(self.ranks)]


class RankInThread(Parallel):
    """Some of the shards, and a meeting with the ranks that have the others."""

    def __init__(self, shards: int, rank: int, meeting: Meeting):
        super().__init__(shards)
        self.rank = rank
        self.local = range(rank * shards // meeting.ranks, (rank + 1) * shards // meeting.ranks)
        self._meeting = meeting
        self._exchanges = 0

    def _exchanged(self, kind: str, value: Any) -> list[Any]:
        self._exchanges += 1
        kinds, values = zip(*self._meeting.exchange(self.rank, self._exchanges, (kind, value)), strict=True)
        assert len(set(kinds)) == 1, kinds
        return list(values)

    def gathered(self, rows: np.ndarray) -> np.ndarray:
        assert len(rows) == len(self.local)
        parts = self._exchanged("gathered", rows.copy())
        assert len({(part.shape, part.dtype) for part in parts}) == 1
        return np.concatenate(parts)

    def objects(self, local: Sequence[Json]) -> list[Json]:
        return [value for part in self._exchanged("objects", super().objects(local)) for value in part]

    def summed(self, rows: Tensor) -> Tensor:
        assert len(rows) == len(self.local)
        return tree_sum(torch.stack(self._exchanged("summed", tree_sum(rows))))


def together(shards: int, ranks: int, work: Callable[[Parallel], T]) -> list[T]:
    """Return what `work` returns on each rank."""
    meeting = Meeting(ranks)
    members = [RankInThread(shards, rank, meeting) for rank in range(ranks)]
    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(lambda member: meeting.run(lambda: work(member)), members))
