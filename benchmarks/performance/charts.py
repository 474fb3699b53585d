"""Plots of the finished rounds: bars for the sides, stages of a record's time, and curves along a stream."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.performance import tables
from benchmarks.performance.rounds import common, figures, rates
from benchmarks.plots import COLOURS, DPI
from benchmarks.runs import Run

SHOWN_SHARE = 0.01


def sides(title: str, rounds: list[Run], file: Path) -> None:
    """Write a PNG with a bar for each side: the median rate. Lines go from the least to the greatest of the rounds."""
    _bars(title, {side: rates(rounds, side) for side in common(rounds)}, "records/s", ",.0f", file)


def idle(title: str, rounds: list[Run], file: Path) -> None:
    shares = {f"{side} partitions": figures(rounds, side, "percent_of_a_core") for side in common(rounds)}
    _bars(title, shares, "% of a core", ".2f", file)


def stages(title: str, rounds: list[Run], file: Path) -> None:
    """Write a PNG that stacks the microseconds a record that each stage adds. A negative one goes to the left."""
    names = common(rounds)
    total = [median(1e6 / rate for rate in rates(rounds, name)) for name in names]
    figure, axes = _figure(len(names))
    before: Sequence[float] = [0.0, *total[:-1]]
    added = [now - earlier for now, earlier in zip(total, before, strict=True)]
    axes.barh(names, added, left=before, color=_colours(len(names)))
    for place, (end, more, earlier) in enumerate(zip(total, added, before, strict=True)):
        axes.text(max(end, earlier), place, f" {more:+,.1f}", va="center")
    _finish(figure, title, "microseconds a record", file)


def stalls(title: str, rounds: list[Run], file: Path) -> None:
    """Write a PNG with the stalls of each side."""
    _stalls(title, {side: tables.stalls(rounds, side) for side in common(rounds)}, file)


def networks(title: str, found: dict[str, list[Run]], file: Path) -> None:
    """Write a PNG with the stalls of each network."""
    _stalls(title, {name: tables.stalls(rounds, "with saves") for name, rounds in found.items()}, file)


def long(title: str, rounds: list[Run], file: Path) -> None:
    """Write a PNG with the resident memory and the time of a step along the stream."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    for colour, round_ in zip(COLOURS, rounds, strict=False):
        for measured in round_["measured"].values():
            records, resident, step_ms = np.array(measured["series"]).T
            upper.plot(records / 1e6, resident, color=colour)
            lower.plot(records / 1e6, step_ms, color=colour)
    for axes, label in ((upper, "resident MiB"), (lower, "step, ms")):
        axes.set_ylim(bottom=0)
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    lower.set_xlabel("million records")
    upper.set_title(title, loc="left")
    figure.savefig(file, dpi=DPI)


def cpu(title: str, rounds: list[Run], file: Path) -> None:
    """Write a PNG that stacks the CPU time of each stage and thread, for each side. The smallest are left out."""
    found: dict[str, dict[str, float]] = {}
    for side in common(rounds):
        for kind, prefix in (("stages_cpu_s_per_1000", ""), ("threads_cpu_s_per_1000", "thread: ")):
            for name in dict.fromkeys(name for round_ in rounds for name in round_["measured"][side][kind]):
                value = median(1e3 * round_["measured"][side][kind].get(name, 0.0) for round_ in rounds)
                found.setdefault(side, {})[prefix + name] = value
    most = {name: max(of.get(name, 0.0) for of in found.values()) for of in found.values() for name in of}
    least = SHOWN_SHARE * max(sum(of.values()) for of in found.values())
    shown = sorted((name for name in most if most[name] >= least), key=lambda name: -most[name])
    names = dict(zip(shown, _colours(len(shown)), strict=True))
    figure, axes = _figure(len(shown))
    for side, of in found.items():
        left = 0.0
        for place, (name, colour) in enumerate(names.items()):
            hatch = "//" if place >= len(COLOURS) else None
            label = name if side == next(iter(found)) else None
            axes.barh(side, of.get(name, 0.0), left=left, color=colour, hatch=hatch, edgecolor="white", label=label)
            left += of.get(name, 0.0)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize="x-small")
    _finish(figure, title, "CPU ms a thousand records", file)


def exchanges(title: str, rounds: list[Run], file: Path) -> None:
    """Write a PNG with the time of each collective by its bytes."""
    figure, axes = _figure(10)
    for colour, kind in zip(COLOURS, ("gathered", "summed"), strict=False):
        names = [name for name in rounds[0]["measured"]["2 ranks"] if name.startswith(kind)]
        times = [median(figures(rounds, "2 ranks", name)) for name in names]
        axes.plot([int(name.partition("_")[2]) for name in names], times, "o-", color=colour, label=kind)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("bytes")
    axes.set_ylabel("ms")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend()
    axes.set_title(title, loc="left")
    figure.savefig(file, dpi=DPI)


def _stalls(title: str, stalls_ms: dict[str, Iterable[float]], file: Path) -> None:
    figure, axes = _figure(len(stalls_ms))
    for place, (name, values) in enumerate(stalls_ms.items()):
        axes.plot(list(values), [name] * len(list(values)), "|", color=COLOURS[0], markersize=14)
        axes.text(max(values), place, f"   p50 {np.median(list(values)):,.1f}", va="center")
    axes.set_xscale("log")
    _finish(figure, title, "stall of the training thread by each save, ms", file)


def _bars(title: str, found: dict[str, list[float]], label: str, form: str, file: Path) -> None:
    middle = [median(values) for values in found.values()]
    below = [mid - min(values) for mid, values in zip(middle, found.values(), strict=True)]
    above = [max(values) - mid for mid, values in zip(middle, found.values(), strict=True)]
    figure, axes = _figure(len(found))
    axes.barh(list(found), middle, xerr=(below, above), color=COLOURS[0], capsize=3)
    axes.bar_label(axes.containers[-1], [f" {mid:{form}}" for mid in middle], padding=6)  # pyright: ignore
    _finish(figure, title, label, file)


def _figure(bars: int) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9, 1.2 + 0.35 * bars), layout="constrained")
    return figure, figure.subplots()


def _colours(count: int) -> list[str]:
    return [COLOURS[place % len(COLOURS)] for place in range(count)]


def _finish(figure: Figure, title: str, label: str, file: Path) -> None:
    axes = figure.axes[0]
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, loc="left")
    figure.savefig(file, dpi=DPI)
