"""Times of stages and collectives, from the finished rounds of `python -m benchmarks.performance ranks`."""

import re
from statistics import median
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

from benchmarks.performance import rounds
from benchmarks.performance.ranks import STAGES_BATCH
from benchmarks.performance.rounds import figures, rates
from benchmarks.runs import Run
from benchmarks.scale.simulation import Network, Stages
from stream_learner.errors import DataError

BATCH = STAGES_BATCH


class Measured(NamedTuple):
    """Finished rounds of a network, in memory and from Kafka, and of two runs beside each other."""

    memory: list[Run]
    kafka: list[Run]
    beside: list[Run]


def measured(model: str) -> Measured:
    """Return the rounds of a network. Raises DataError if a part has none."""
    return Measured(*(_rounds(part, model) for part in ("ranks", "ranks from Kafka", "beside")))


def stages(found: Measured) -> Stages:
    """Return the times of a rank's stages: those that fit best, of all not below 0, to one rank's steps in memory.

    A round that others disturbed counts little, because each side has the median of all rounds.
    """
    sizes = {"1 rank": (2, BATCH // 2)}  # shards, new samples of each
    for side in rounds.common(found.memory):
        if numbers := re.fullmatch(r"1 rank, (\d+) shards of (\d+)", side):
            sizes[side] = int(numbers[1]), int(numbers[2])

    def fitted(columns: list[tuple[float, ...]], name: str) -> list[float]:
        times_s = np.array([median(figures(found.memory, side, name)) / 1e3 for side in sizes])
        return nnls(np.array(columns) / times_s[:, None], np.ones(len(times_s)))[0].tolist()  # relative errors

    step_s, shard_s, sample_s = fitted([(1, shards, shards * n) for shards, n in sizes.values()], "step_ms")
    save_s, shard_save_s = fitted([(1, shards) for shards, _ in sizes.values()], "copy_ms")
    deviation = median(value for side in sizes for value in figures(found.memory, side, "step_log_deviation"))
    input_s = 1 / median(rates(found.kafka, "1 rank")) - 1 / median(rates(found.memory, "1 rank"))
    return Stages(step_s, shard_s, sample_s, max(0.0, input_s), save_s, shard_save_s, deviation)


def slower_beside_another(found: Measured) -> float:
    """Return how many times as long a rank takes beside another process on this machine."""
    alone, beside = (rates(found.beside, side) for side in ("alone", "beside another"))
    return median(a / b for a, b in zip(alone, beside, strict=True))


def loopback() -> Network:
    """Return the network between two processes of this machine. Sums also copy and add on the processor."""
    found = _rounds("exchanges", "cnn")

    def seconds(name: str) -> float:
        return median(figures(found, "2 ranks", name)) / 1e3

    call_s, size = seconds("gathered_8"), 4 * 1024 * 1024
    # Two ranks send one half of the sum in each of two collectives.
    sums = Network(call_s, 0.0, (seconds(f"summed_{size}") - 2 * call_s) / size)
    return Network(call_s, 0.0, 0.0, sums)


def decode_s(side: str) -> float:
    """Return the CPU time of decoding a record, in seconds."""
    return median(figures(_rounds("decoding", "cnn"), side, "cpu_s_per_1000_records")) / 1e3


def _rounds(part: str, model: str) -> list[Run]:
    for subject, found in rounds.finished(part).items():
        if subject.model == model and subject.batch == BATCH:
            return found
    raise DataError(f"no finished round of {part}, {model}; run `python -m benchmarks.performance ranks` first")
