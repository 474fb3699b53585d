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
# Times closer to 0 are rounding errors of the fit.
ROUNDING_S = 1e-9


class Measured(NamedTuple):
    """Finished rounds of a network, in memory and from Kafka, and of two runs beside each other."""

    memory: list[Run]
    kafka: list[Run]
    beside: list[Run]


def measured(model: str) -> Measured:
    """Return the rounds of a network. Raises DataError if a part has none."""
    return Measured(*(rounds_of(part, model) for part in ("ranks", "ranks from Kafka", "beside")))


def stages(found: Measured, *, limited: bool = True) -> Stages:
    """Return the times of a rank's stages: those that fit one rank's steps in memory best, if `limited` of all above 0.

    Each side has the median of its rounds. So a single round that others disturbed counts in full.
    """
    sizes = {"1 rank": (2, BATCH // 2)}  # shards, new samples of each
    for side in rounds.common(found.memory):
        if numbers := re.fullmatch(r"1 rank, (\d+) shards of (\d+)", side):
            sizes[side] = int(numbers[1]), int(numbers[2])

    def fitted(columns: list[tuple[float, ...]], name: str) -> list[float]:
        times_s = np.array([median(figures(found.memory, side, name)) / 1e3 for side in sizes])
        matrix, ones = np.array(columns) / times_s[:, None], np.ones(len(times_s))  # relative errors
        return (nnls(matrix, ones) if limited else np.linalg.lstsq(matrix, ones))[0].tolist()

    step_s, shard_s, sample_s = fitted([(1, shards, shards * n) for shards, n in sizes.values()], "step_ms")
    save_s, shard_save_s = fitted([(1, shards) for shards, _ in sizes.values()], "copy_ms")
    deviation = median(value for side in sizes for value in figures(found.memory, side, "step_log_deviation"))
    input_s = 1 / median(rates(found.kafka, "1 rank")) - 1 / median(rates(found.memory, "1 rank"))
    input_s = max(0.0, input_s) if limited else input_s
    return Stages(step_s, shard_s, sample_s, input_s, save_s, shard_save_s, deviation)


def below_zero(found: Measured) -> dict[str, float]:
    """Return the stages for which `stages` has 0, with the times that fit best, in seconds."""
    used, fitted = stages(found)._asdict(), stages(found, limited=False)._asdict()
    return {name: fitted[name] for name in used if used[name] == 0.0 and fitted[name] < -ROUNDING_S}


def slower_beside_another(found: Measured) -> list[float]:
    """Return how many times as long a rank takes beside another process on this machine, in each round."""
    alone, beside = (rates(found.beside, side) for side in ("alone", "beside another"))
    return [a / b for a, b in zip(alone, beside, strict=True)]


def efficiency(found: list[Run]) -> list[float]:
    """Return the records/s of each of two ranks over those of one rank, in each round."""
    return [two / (2 * one) for one, two in zip(rates(found, "1 rank"), rates(found, "2 ranks"), strict=True)]


def loopback() -> Network:
    """Return the network between two processes of this machine. Sums also copy and add on the processor."""
    found = rounds_of("exchanges", "cnn")

    def seconds(name: str) -> float:
        return median(figures(found, "2 ranks", name)) / 1e3

    call_s, size = seconds("gathered_8"), 4 * 1024 * 1024
    # Two ranks send one half of the sum in each of two collectives.
    sums = Network(call_s, 0.0, (seconds(f"summed_{size}") - 2 * call_s) / size)
    return Network(call_s, 0.0, 0.0, sums)


def decode_s(side: str) -> float:
    """Return the CPU time of decoding a record, in seconds."""
    return median(figures(rounds_of("decoding", "cnn"), side, "cpu_s_per_1000_records")) / 1e3


def rounds_of(part: str, model: str) -> list[Run]:
    """Return the rounds of a part with the batch of the page. Raises DataError if there is none."""
    for subject, found in rounds.finished(part).items():
        if subject.model == model and subject.batch == BATCH:
            return found
    raise DataError(f"no finished round of {part}, {model}; run `python -m benchmarks.performance ranks` first")
