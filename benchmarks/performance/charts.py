"""Plots of the finished rounds: a bar for each side, or the stages of a record's time."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from matplotlib.figure import Figure

from benchmarks.performance.rounds import common, rates
from benchmarks.plots import COLOURS, DPI
from benchmarks.runs import Run


def sides(title: str, rounds: list[Run], file: Path) -> None:
    """Write a PNG with a bar for each side: the median rate. Lines go from the least to the greatest of the rounds."""
    names = common(rounds)
    found = [rates(rounds, name) for name in names]
    middle = [median(values) for values in found]
    below = [mid - min(values) for mid, values in zip(middle, found, strict=True)]
    above = [max(values) - mid for mid, values in zip(middle, found, strict=True)]
    figure = Figure(figsize=(9, 1.2 + 0.35 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.barh(names, middle, xerr=(below, above), color=COLOURS[0], capsize=3)
    axes.bar_label(axes.containers[-1], [f" {mid:,.0f}" for mid in middle], padding=6)  # pyright: ignore
    _finish(figure, title, "records/s", file)


def stages(title: str, rounds: list[Run], file: Path) -> None:
    """Write a PNG that stacks the microseconds a record that each stage adds. A negative one goes to the left."""
    names = common(rounds)
    total = [median(1e6 / rate for rate in rates(rounds, name)) for name in names]
    figure = Figure(figsize=(9, 1.2 + 0.35 * len(names)), layout="constrained")
    axes = figure.subplots()
    before: Sequence[float] = [0.0, *total[:-1]]
    added = [now - earlier for now, earlier in zip(total, before, strict=True)]
    colours = [COLOURS[place % len(COLOURS)] for place in range(len(names))]
    axes.barh(names, added, left=before, color=colours)
    for place, (end, more, earlier) in enumerate(zip(total, added, before, strict=True)):
        axes.text(max(end, earlier), place, f" {more:+,.1f}", va="center")
    _finish(figure, title, "microseconds a record", file)


def _finish(figure: Figure, title: str, label: str, file: Path) -> None:
    axes = figure.axes[0]
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, loc="left")
    figure.savefig(file, dpi=DPI)
