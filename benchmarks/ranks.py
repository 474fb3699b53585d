"""Speed of a learner in two processes, beside the same learner in one.

`python -m benchmarks.ranks --model resnet18_slim --batch 32 --replay 96 --rounds 5`: each round measures one rank with
both shards, and two ranks with a shard each, in turn. Every rank has one thread. The records are random images in
memory, so that neither Kafka nor decoding is measured. The last line is JSON: records per second of each side, the
ratio of each round, and the milliseconds and bytes that a rank spends in collectives per step.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from stream_learner import config
from stream_learner.config import Settings
from stream_learner.errors import ExitCode
from stream_learner.formats.images import png
from stream_learner.formats.record import Sample
from stream_learner.run.gang import Rank, join
from stream_learner.run.launcher import launch

SHARDS = 2
CLASSES = 10
IMAGES = 1000
WARM_UP_STEPS = 5
OUTPUT = "RANKS_BENCHMARK_OUTPUT"

console = Console(stderr=True)


def main(
    model: Annotated[str, typer.Option(help="Network to train.")] = "resnet18_slim",
    batch: Annotated[int, typer.Option(help="New samples in a step.")] = 32,
    replay: Annotated[int, typer.Option(help="Replayed samples in a step.")] = 96,
    rounds: Annotated[int, typer.Option(help="Rounds.")] = 5,
    seconds: Annotated[float, typer.Option(help="Measured seconds of each side in a round.")] = 8.0,
) -> None:
    """Compare one rank with two."""
    overrides = [
        "run.id=ranks",
        f"run.shards={SHARDS}",
        "input.topics=['images']",
        f"model.name={model}",
        f"batch.size={batch}",
        f"memory.replay_size={replay}",
        "learning.threads=1",
    ]
    if output := os.environ.get(OUTPUT):
        _measure(config.load(None, overrides), batch, seconds, Path(output))
        return
    found: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    with TemporaryDirectory() as folder:
        for number in range(rounds):
            for ranks in (1, 2) if number % 2 else (2, 1):
                path = Path(folder, f"{number}-{ranks}.json")
                os.environ[OUTPUT] = str(path)
                code = launch(ranks, [sys.executable, "-m", "benchmarks.ranks", *sys.argv[1:]])
                if code is not ExitCode.OK:
                    raise typer.Exit(int(code))
                found[ranks].append(json.loads(path.read_text()))
                console.print(f"round {number + 1}, {ranks} ranks: {found[ranks][-1]}")
    ratios = [two["records_per_s"] / one["records_per_s"] for one, two in zip(*found.values(), strict=True)]
    print(
        json.dumps(
            {
                "model": model,
                "batch": batch,
                "replay": replay,
                "one_rank_records_per_s": [round(one["records_per_s"], 1) for one in found[1]],
                "two_ranks_records_per_s": [round(two["records_per_s"], 1) for two in found[2]],
                "ratios": [round(ratio, 3) for ratio in ratios],
                "median_ratio": round(statistics.median(ratios), 3),
                "collectives_ms_per_step": [round(two["collectives_ms_per_step"], 2) for two in found[2]],
                "collectives_bytes_per_step": found[2][-1]["collectives_bytes_per_step"],
            }
        )
    )


def _measure(settings: Settings, batch: int, seconds: float, output: Path) -> None:
    """Learn as one of the ranks, and write rank 0's figures to `output`."""
    from stream_learner.learning.learner import Learner
    from stream_learner.learning.process import set_up_torch

    set_up_torch(settings)
    gang = join(Rank.from_environment(), settings, lambda code: os._exit(code))
    parallel = gang.parallel
    spent = {"s": 0.0, "bytes": 0}
    for name in ("gathered", "objects", "summed"):
        setattr(parallel, name, _clocked(getattr(parallel, name), spent))
    learner = Learner(settings, parallel=parallel)
    samples = _samples(settings)

    def step(number: int) -> None:
        size = batch // SHARDS
        places = ((SHARDS * number + shard) * size for shard in parallel.local)
        shards = [[samples[(place + i) % IMAGES] for i in range(size)] for place in places]
        learner.learn_shards(shards, [size] * len(shards))

    for number in range(WARM_UP_STEPS):
        step(number)
    spent["s"], spent["bytes"], steps, began = 0.0, 0, 0, time.monotonic()
    # Rank 0 decides when to end, so that all ranks take the same number of steps.
    while parallel.gathered(np.array([[time.monotonic() - began < seconds]] * len(parallel.local)))[0, 0]:
        step(WARM_UP_STEPS + steps)
        steps += 1
    elapsed = time.monotonic() - began
    if parallel.rank == 0:
        figures = {
            "records_per_s": steps * batch / elapsed,
            "collectives_ms_per_step": 1000 * spent["s"] / steps,
            "collectives_bytes_per_step": spent["bytes"] // steps,
        }
        output.write_text(json.dumps(figures))
    gang.leave()
    os._exit(0)


def _clocked(collective: Callable[[Any], Any], spent: dict[str, float]) -> Callable[[Any], Any]:
    """Add the time of a collective, and the bytes that this rank gives to it, to `spent`."""

    def clocked(rows: Any) -> Any:
        began = time.monotonic()
        result = collective(rows)
        spent["s"] += time.monotonic() - began
        spent["bytes"] += getattr(rows, "nbytes", 0)
        return result

    return clocked


def _samples(settings: Settings) -> list[Sample]:
    random, model = np.random.default_rng(0), settings.model
    images = random.integers(256, size=(IMAGES, model.height, model.width, model.channels), dtype=np.uint8)
    return [Sample(f"images/0/{i}", i % CLASSES, image, png(image)) for i, image in enumerate(images)]


if __name__ == "__main__":
    typer.run(main)
