"""Ranks that learn random images in memory, and measure themselves. Every rank has one thread by default.

    python -m benchmarks.performance.rank FILE RANKS SAMPLES SETTING ...

Each shard gets SAMPLES new images in each step. When the measurement ends, rank 0 writes JSON to FILE: the rate, the
CPU time and the memory of all ranks, the time of each step, the traffic of rank 0, and the time of a copy of the state.
"""

import json
import os
import resource
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.performance.inputs import CLASSES
from stream_learner import config
from stream_learner.config import Settings
from stream_learner.formats.images import png
from stream_learner.formats.record import Sample
from stream_learner.run.gang import Rank, is_started, join
from stream_learner.run.launcher import launch
from stream_learner.run.process import keep_freed_memory, spin_briefly

IMAGES = 1000
WARM_UP_S = 1.5
MEASURED_S = 4.0
COPIES = 5


def main(output: Path, ranks: int, samples: int, settings: Settings) -> None:
    if ranks > 1 and not is_started(ranks):
        sys.exit(launch(ranks, [sys.executable, *sys.orig_argv[1:]]))
    spin_briefly()
    keep_freed_memory()
    from stream_learner.learning.learner import Learner
    from stream_learner.learning.process import set_up_torch

    set_up_torch(settings)
    gang = join(Rank.from_environment(), settings, lambda code: os._exit(code))
    parallel = gang.parallel
    learner, images, steps = Learner(settings, parallel=parallel), _samples(settings), 0

    def run_for(seconds: float) -> list[float]:
        """Learn for this time by the clock of rank 0. Return the seconds of each step."""
        nonlocal steps
        times, now = [], time.monotonic()
        until = now + seconds
        while parallel.gathered(np.array([[now < until]] * len(parallel.local)))[0, 0]:
            places = [(parallel.shards * steps + shard) * samples for shard in parallel.local]
            shards = [[images[(place + i) % IMAGES] for i in range(samples)] for place in places]
            learner.learn_shards(shards, [samples] * len(shards))
            steps, before, now = steps + 1, now, time.monotonic()
            times.append(now - before)
        return times

    run_for(WARM_UP_S)
    parallel.take_traffic()
    began_cpu_s, before = time.process_time(), steps
    times = run_for(MEASURED_S)
    traffic, measured = parallel.take_traffic(), steps - before
    own = np.zeros((len(parallel.local), 2))  # the others of this rank's shards add nothing
    own[0] = time.process_time() - began_cpu_s, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu_s, peak_bytes = parallel.gathered(own).sum(0).tolist()
    records = measured * samples * parallel.shards
    copied = []
    for _ in range(COPIES):
        began = time.monotonic()
        _copies = learner.state_dict(), learner.shard_states()
        copied.append(time.monotonic() - began)
    if parallel.rank == 0:
        figures = {
            "records_per_s": records / sum(times),
            "cpu_s_per_1000_records": 1e3 * cpu_s / records,
            "peak_memory_bytes": peak_bytes,
            "step_ms": 1e3 * statistics.mean(times),
            "step_log_deviation": statistics.stdev(np.log(times)),
            "collectives_ms_per_step": 1e3 * traffic.seconds / measured,
            "sent_bytes_per_step": traffic.sent_bytes / measured,
            "copy_ms": 1e3 * statistics.median(copied),
        }
        output.write_text(json.dumps(figures))
    gang.leave()
    os._exit(0)


def _samples(settings: Settings) -> list[Sample]:
    random, model = np.random.default_rng(0), settings.model
    images = random.integers(256, size=(IMAGES, model.height, model.width, model.channels), dtype=np.uint8)
    return [Sample(f"images/0/{i}", str(i % CLASSES), image, png(image)) for i, image in enumerate(images)]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), config.load(None, sys.argv[4:]))
