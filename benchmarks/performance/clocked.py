"""`stream-learner` with a clock around each save on the training thread.

    python -m benchmarks.performance.clocked FILE run --set ...

When the worker stops, the file gets JSON: the milliseconds for which each save stopped the training thread, and the
milliseconds of the batches without a save, while the publisher was idle and while it was busy.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from stream_learner import cli
from stream_learner.publishing.snapshot import Decided
from stream_learner.run import saves

WARM_UP_S = 2.0


class Clock:
    """Times of the worker's loop, from one call of `Saves.due` to the next."""

    def __init__(self):
        self.stalls_ms: list[float] = []
        self.batches_ms: dict[bool, list[float]] = {False: [], True: []}
        self._began: float | None = None
        self._turned: tuple[float, bool] | None = None
        self._stall_s = 0.0

    def turn(self, busy: bool) -> None:
        """Note the end of a batch. `busy` is whether the publisher is busy now."""
        now = time.perf_counter()
        self._began = self._began or now
        if self._turned and self._turned[0] > self._began + WARM_UP_S:
            before, was_busy = self._turned
            if self._stall_s:
                self.stalls_ms.append(1e3 * self._stall_s)
            else:
                self.batches_ms[busy and was_busy].append(1e3 * (now - before))
        self._turned, self._stall_s = (now, busy), 0.0

    @contextmanager
    def stalled(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._stall_s += time.perf_counter() - began

    def figures(self) -> dict[str, Any]:
        return {"stalls_ms": self.stalls_ms} | {
            name: {"batches": len(times), "mean_ms": float(np.mean(times)), "p99_ms": float(np.quantile(times, 0.99))}
            for name, times in (("idle", self.batches_ms[False]), ("publishing", self.batches_ms[True]))
            if times
        }


class ClockedSaves(saves.Saves):
    """`Saves` with the clock around its methods."""

    def due(self) -> saves.Due:
        clock.turn(busy=not self._publisher.idle)
        return super().due()

    def wait(self) -> None:
        with clock.stalled():
            super().wait()

    def save(self, decided: Decided | None = None) -> None:
        with clock.stalled():
            super().save(decided)

    def finish(self) -> None:
        file.write_text(json.dumps(clock.figures()))  # the process ends without a return to `main`
        super().finish()


if __name__ == "__main__":
    clock, file = Clock(), Path(sys.argv.pop(1))
    saves.Saves = ClockedSaves  # before the worker's modules import it
    cli.main()
