"""Ranks that only use their collectives, with one shard each, and measure them.

`python -m benchmarks.performance.exchanges FILE RANKS`: rank 0 writes JSON to FILE, with the median milliseconds
of each collective by its name and the bytes of a shard's rows, such as `summed_1024`.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from stream_learner import config
from stream_learner.run.gang import Rank, is_started, join
from stream_learner.run.launcher import launch

GATHERED_BYTES = [8, 1024, 16 * 1024, 128 * 1024]
SUMMED_BYTES = [4**power * 1024 for power in range(8)]  # 1 KiB to 16 MiB
SECONDS = 0.5


def main(output: Path, ranks: int) -> None:
    if not is_started(ranks):
        sys.exit(launch(ranks, [sys.executable, *sys.orig_argv[1:]]))
    import torch

    torch.set_num_threads(1)
    settings = config.load(None, ["run.id=exchanges", "input.topics=['images']", f"run.shards={ranks}"])
    gang = join(Rank.from_environment(), settings, lambda code: os._exit(code))
    parallel = gang.parallel

    def median_ms(collective: Callable[[], object]) -> float:
        times, until = [], time.monotonic() + SECONDS
        while parallel.gathered(np.array([[time.monotonic() < until]]))[0, 0]:
            began = time.monotonic()
            collective()
            times.append(time.monotonic() - began)
        return 1e3 * statistics.median(times)

    figures = {}
    for size in GATHERED_BYTES:
        rows = np.zeros((1, size // 8))
        figures[f"gathered_{size}"] = median_ms(lambda rows=rows: parallel.gathered(rows))
    for size in SUMMED_BYTES:
        sums = torch.zeros(1, size // 4)
        figures[f"summed_{size}"] = median_ms(lambda sums=sums: parallel.summed(sums))
    if parallel.rank == 0:
        output.write_text(json.dumps(figures))
    gang.leave()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
