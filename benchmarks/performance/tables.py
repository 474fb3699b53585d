"""Tables of finished rounds, in Markdown."""

import math
from collections.abc import Iterable, Sequence
from statistics import mean, median

import numpy as np

from benchmarks.performance import memory
from benchmarks.performance.rounds import Subject, common, figures, rates
from benchmarks.runs import Run

MIB = 1024 * 1024
SAVE_EVERY_S = 30.0
"""`checkpoint.every_s` of a worker by default."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ("---", *["---:"] * (len(head) - 1)), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def spread(values: Sequence[float], form: str) -> str:
    """Return the median of some values, with the least and the greatest."""
    low, middle, high = (format(value, form) for value in (min(values), median(values), max(values)))
    return f"{middle} ({low}-{high})" if len(values) > 1 else middle


def micros(rounds: list[Run], side: str) -> list[float]:
    """Return the microseconds a record of a side in each round."""
    return [1e6 / rate for rate in rates(rounds, side)]


def sides(rounds: list[Run]) -> str:
    """Return a table of the sides. A part with starts also has the time until the first step."""
    head, rows = ["side", "records/s", "µs a record", "CPU s / 1000", "peak MiB", "elsewhere"], []
    starts = all("start_to_first_step_s" in round_["measured"][side] for round_ in rounds for side in common(rounds))
    for side in common(rounds):
        rows.append(
            [
                side,
                spread(rates(rounds, side), ",.0f"),
                f"{median(micros(rounds, side)):,.1f}",
                f"{median(figures(rounds, side, 'cpu_s_per_1000_records')):.3f}",
                f"{max(figures(rounds, side, 'peak_memory_bytes')) / MIB:,.0f}",
                elsewhere(rounds, side),
                *([spread(figures(rounds, side, "start_to_first_step_s"), ".1f")] if starts else []),
            ]
        )
    return table([*head, "start to first step, s"] if starts else head, rows)


def stages(rounds: list[Run]) -> str:
    rows, before = [], [0.0] * len(rounds)
    for stage in memory.STAGES:
        total = micros(rounds, stage)
        added = [now - earlier for now, earlier in zip(total, before, strict=True)]
        rows.append(
            (
                stage,
                spread(added, ",.1f"),
                spread(total, ",.1f"),
                spread(rates(rounds, stage), ",.0f"),
                elsewhere(rounds, stage),
            )
        )
        before = total
    return table(("stage", "adds, µs a record", "so far, µs a record", "records/s", "elsewhere"), rows)


def stalls(rounds: list[Run], side: str) -> np.ndarray:
    """Return the stalls of all rounds in milliseconds."""
    return np.array([stall for round_ in rounds for stall in round_["measured"][side]["stalls_ms"]])


def batch_ms(saved: Run) -> float:
    """Return the mean time of a batch while nothing is published. NaN if the publisher was always busy."""
    return saved["idle"]["mean_ms"] if "idle" in saved else math.nan


def cost_s(saved: Run) -> float:
    """Return the seconds of training that a save costs: its stall, and the batches that publishing slows down.

    NaN if the publisher was always busy or always idle, so that there is nothing to compare.
    """
    both = "idle" in saved and "publishing" in saved
    slower = 1 - saved["idle"]["mean_ms"] / saved["publishing"]["mean_ms"] if both else math.nan
    return mean(saved["stalls_ms"]) / 1e3 + slower * saved["commit_s"]


def saves(found: dict[str, tuple[list[Run], str]]) -> str:
    """Return tables of the stalls, costs and bytes of saves. `found` has rounds and a side for each row."""
    stalled, wrote = [], []
    for name, (rounds, side) in found.items():
        all_stalls, measured = stalls(rounds, side), [round_["measured"][side] for round_ in rounds]
        state = f"{median(m['state_bytes'] for m in measured) / MIB:,.1f}"
        costs = [cost_s(m) for m in measured]
        stalled.append(
            (
                name,
                state,
                f"{median(map(batch_ms, measured)):,.1f}",
                *(f"{quantile:,.1f}" for quantile in np.quantile(all_stalls, (0.5, 0.99, 1.0))),
                str(len(all_stalls)),
                spread([1e3 * cost for cost in costs], ",.0f"),
                spread([100 * cost / SAVE_EVERY_S for cost in costs], ".2f"),
                elsewhere(rounds, side),
            )
        )
        wrote.append(
            (
                name,
                f"{median(m['memory_bytes'] for m in measured) / MIB:,.0f}",
                state,
                spread([m["written_bytes_per_save"] / MIB for m in measured], ",.1f"),
                f"{median(m['records_per_save'] for m in measured):,.0f}",
                spread([m["commit_s"] for m in measured], ",.2f"),
                *(
                    spread([m[figure] for m in measured], ".1f")
                    for figure in ("start_to_monitoring_s", "start_to_input_s", "start_to_first_step_s")
                ),
            )
        )
    return (
        table(
            (
                "side",
                "state, MiB",
                "a batch, ms",
                "stall p50, ms",
                "p99",
                "max",
                "saves",
                "cost of a save, ms",
                f"% at one save in {SAVE_EVERY_S:.0f} s",
                "elsewhere",
            ),
            stalled,
        )
        + "\n"
        + table(
            (
                "side",
                "memory, MiB",
                "state, MiB",
                "written by a save, MiB",
                "records between saves",
                "snapshot to commit, s",
                "start to monitoring, s",
                "to open input, s",
                "to first step, s",
            ),
            wrote,
        )
    )


def checkpoints(found: dict[Subject, list[Run]]) -> str:
    """Return the tables of all networks."""
    compared = []
    for subject, rounds in found.items():
        without, saving = (rates(rounds, side) for side in ("without saves", "with saves"))
        ratio = spread([a / b for a, b in zip(saving, without, strict=True)], ".3f")
        shown = (spread(rate, ",.0f") for rate in (without, saving))
        every_s = spread(figures(rounds, "with saves", "seconds_per_save"), ".1f")
        compared.append((subject.model, *shown, ratio, every_s))
    head = "network", "records/s without saves", "with saves", "ratio", "seconds between saves"
    return (
        saves({subject.model: (rounds, "with saves") for subject, rounds in found.items()})
        + "\n"
        + table(head, compared)
    )


def long(rounds: list[Run]) -> str:
    rows = []
    for round_ in rounds:
        for side, found in round_["measured"].items():
            memory_, step = (
                f"{found[f'{name}_slope_{unit}']:+.2f} ± {found[f'{name}_slope_error_{unit}']:.2f}"
                for name, unit in (("memory", "mib"), ("step", "ms"))
            )
            rates_ = f"{found['records_per_s']:,.0f}"
            rows.append(
                (
                    side,
                    rates_,
                    f"{found['memory_mib']:,.0f}",
                    memory_,
                    f"{found['step_ms']:.2f}",
                    step,
                    elsewhere(rounds, side),
                )
            )
    return table(
        (
            "stream",
            "records/s",
            "resident MiB",
            "slope, MiB a million records",
            "step, ms",
            "slope, ms a million records",
            "elsewhere",
        ),
        rows,
    )


def cpu(rounds: list[Run]) -> str:
    """Return the CPU time of each stage and thread, for each side."""
    rows: dict[str, dict[str, str]] = {}
    for side in common(rounds):
        for kind, prefix in (("stages_cpu_s_per_1000", ""), ("threads_cpu_s_per_1000", "thread: ")):
            measured = [round_["measured"][side][kind] for round_ in rounds]
            for name in dict.fromkeys(name for each in measured for name in each):
                values = [1e3 * each.get(name, 0.0) for each in measured]
                if max(values) >= 0.1:
                    rows.setdefault(f"{prefix}{name}", {})[side] = spread(values, ",.1f")
        rows.setdefault("whole process", {})[side] = spread(
            [1e3 * each for each in figures(rounds, side, "cpu_s_per_1000_records")], ",.1f"
        )
        rows.setdefault("elsewhere, cores", {})[side] = elsewhere(rounds, side)
    order = sorted(rows, key=lambda row: (row in ("whole process", "elsewhere, cores"), row.startswith("thread")))
    lines = [(row, *(rows[row].get(side, "") for side in common(rounds))) for row in order]
    return table(("CPU ms a thousand records", *common(rounds)), lines)


def idle(rounds: list[Run]) -> str:
    rows = [
        (side, spread(figures(rounds, side, "percent_of_a_core"), ".2f"), elsewhere(rounds, side))
        for side in common(rounds)
    ]
    return table(("partitions", "% of a core", "elsewhere"), rows)


def ranks(rounds: list[Run]) -> str:
    rows = []
    for side in common(rounds):
        found = {name: figures(rounds, side, name) for name in ("step_ms", "collectives_ms_per_step")}
        rows.append(
            (
                side,
                spread(rates(rounds, side), ",.0f"),
                spread(found["step_ms"], ",.1f"),
                spread(found["collectives_ms_per_step"], ",.2f"),
                f"{median(figures(rounds, side, 'sent_bytes_per_step')) / 1000:,.1f}",
                f"{median(figures(rounds, side, 'cpu_s_per_1000_records')):.3f}",
                f"{max(figures(rounds, side, 'peak_memory_bytes')) / MIB:,.0f}",
                elsewhere(rounds, side),
            )
        )
    return table(
        (
            "side",
            "records/s",
            "a step, ms",
            "collectives of a step, ms",
            "sent in a step, kB",
            "CPU s / 1000",
            "peak MiB",
            "elsewhere",
        ),
        rows,
    )


def exchanges(rounds: list[Run]) -> str:
    found = rounds[0]["measured"]["2 ranks"]
    rows = []
    for name in found:
        kind, _, size = name.partition("_")
        if size.isdigit():
            rows.append((kind, f"{int(size):,}", spread(figures(rounds, "2 ranks", name), ",.3f")))
    return table(("collective", "bytes", "ms"), rows)


def elsewhere(rounds: list[Run], side: str) -> str:
    return f"{max(figures(rounds, side, 'cores_elsewhere')):.2f}"
