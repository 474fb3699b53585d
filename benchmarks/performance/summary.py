"""The main figures of the finished rounds, in sentences."""

from collections.abc import Iterator, Mapping
from statistics import median

import numpy as np

from benchmarks.performance import tables
from benchmarks.performance.rounds import Subject, common, figures, rates
from benchmarks.performance.tables import SAVE_EVERY_S, micros, spread
from benchmarks.runs import Run

Found = Mapping[Subject, list[Run]]


def sentences(part: str, found: Found) -> Iterator[str]:
    """Return the sentences of a part, of which most have none."""
    match part:
        case "kafka":
            yield from _from_kafka(found)
        case "loops" | "replay":
            yield from _beside_loops(part, found)
        case "ranks from Kafka":
            yield from _ranks(found)
        case "checkpoints":
            yield from _saves(found)
        case "long":
            yield from _long(found)
        case "idle":
            for rounds in found.values():
                shares = (
                    f"{spread(figures(rounds, side, 'percent_of_a_core'), '.2f')} % ({side})" for side in common(rounds)
                )
                yield f"CPU time of an idle worker, as a share of a core (number of partitions): {', '.join(shares)}."


def ratios(rounds: list[Run], side: str, others: list[str]) -> list[float]:
    """Return the rate of a side over that of the fastest of the others, in each round."""
    fastest = map(max, zip(*(rates(rounds, other) for other in others), strict=True))
    return [a / b for a, b in zip(rates(rounds, side), fastest, strict=True)]


def ratio(rounds: list[Run], side: str, others: list[str]) -> str:
    """Return the median of `ratios`, with the least and the greatest."""
    return spread(ratios(rounds, side, others), ".2f")


def _from_kafka(found: Found) -> Iterator[str]:
    for subject, rounds in found.items():
        rate, default = (spread(rates(rounds, f"worker, {kind}"), ",.0f") for kind in ("plain", "default"))
        share = ratio(rounds, "worker, plain", ["limit"])
        limit, in_memory, worker = (
            median(micros(rounds, side)) for side in ("limit", "in memory, plain", "worker, plain")
        )
        yield (
            f"`{subject.model}`, batch {subject.batch}: without replay, the worker learns {rate} records/s from Kafka, "
            f"and {default} by default. Without replay, this is {share} of the limit, and a record takes "
            f"{limit:,.0f} µs in the bare step, {in_memory:,.0f} µs in memory (with decoding, batches, prediction and "
            f"counts), and {worker:,.0f} µs in the worker (with Kafka, saves and metrics)."
        )


def _beside_loops(part: str, found: Found) -> Iterator[str]:
    kind = "the fastest loop with replay" if part == "replay" else "the fastest loop"
    for subject, rounds in found.items():
        loops = [side for side in common(rounds) if side not in ("limit", "worker")]
        times = ratio(rounds, "worker", loops)
        yield f"`{subject.model}`, batch {subject.batch}: the worker is {times} times as fast as {kind}."


def _ranks(found: Found) -> Iterator[str]:
    for subject, rounds in found.items():
        times, threads = (ratio(rounds, "2 ranks", [other]) for other in ("1 rank", "2 threads"))
        collectives = spread(figures(rounds, "2 ranks", "collectives_ms_per_step"), ".1f")
        yield (
            f"`{subject.model}`, batch {subject.batch} and 96 replayed images, from Kafka: two ranks of one thread are "
            f"{times} times as fast as one rank, and {threads} times as fast as one process of two threads. Rank 0 is "
            f"in collectives for {collectives} ms a step."
        )


def _saves(found: Found) -> Iterator[str]:
    for subject, rounds in found.items():
        measured = [round_["measured"]["with saves"] for round_ in rounds]
        p50, p99 = np.quantile(tables.stalls(rounds, "with saves"), (0.5, 0.99))
        mib = median(m["state_bytes"] for m in measured) / tables.MIB
        cost = spread([100 * tables.cost_s(m) / SAVE_EVERY_S for m in measured], ".2f")
        yield (
            f"`{subject.model}`, a state of {mib:,.0f} MiB: a save stops the training thread for {p50:,.1f} ms (p99 "
            f"{p99:,.1f} ms). With one save in {SAVE_EVERY_S:.0f} s, saves cost {cost} % of the time."
        )


def _long(found: Found) -> Iterator[str]:
    for rounds in found.values():
        for side, of in ((side, of) for round_ in rounds for side, of in round_["measured"].items()):
            memory = f"{of['memory_slope_mib']:+.2f} ± {of['memory_slope_error_mib']:.2f} MiB"
            step = f"{1e3 * of['step_slope_ms']:+.1f} ± {1e3 * of['step_slope_error_ms']:.1f} µs"
            yield f"Over {side}, the memory changes by {memory} a million records, and a step by {step}."
