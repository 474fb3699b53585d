"""Plots of the learning benchmarks: accuracy along the stream, and at its end."""

from pathlib import Path
from textwrap import fill

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from benchmarks.runs import Run

# Okabe and Ito 2008: colours for any kind of colour vision. Markers distinguish more contenders.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DPI = 120
NAME_WIDTH = 34  # characters


def draw(title: str, contenders: dict[str, dict[int, Run]], file: Path) -> None:
    """Write a PNG. `contenders` are runs by name and seed.

    Bars and bands show one standard deviation over the seeds. The names next to the right plot also label the lines of
    the left one.
    """
    with mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure(figsize=(11, 4.5 + 0.15 * len(contenders)), layout="constrained")
        along, end = figure.subplots(1, 2, width_ratios=(3, 2))
        names = sorted(contenders, key=lambda name: np.mean([run["final"] for run in contenders[name].values()]))
        retrained = any("retrain" in name for name in names)
        against = "views" if retrained else "records"  # retraining needs several views of each record
        for place, name in enumerate(names):
            look = {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}
            runs = list(contenders[name].values())
            final = 100 * np.array([run["final"] for run in runs])
            deviation = final.std(ddof=1) if len(runs) > 1 else None
            end.errorbar(final.mean(), place, xerr=deviation, capsize=4, linestyle="", **look)
            curves = [tuple([m[axis] for m in run["curve"]] for axis in (against, "accuracy")) for run in runs]
            x = np.array(curves[0][0])
            # The points of other seeds differ slightly.
            y_SM = 100 * np.array([np.interp(x, moments, accuracies) for moments, accuracies in curves])
            y = y_SM.mean(0)
            along.plot(x, y, markersize=5, **look)
            if len(runs) > 1:
                spread = y_SM.std(0, ddof=1)
                along.fill_between(x, y - spread, y + spread, color=look["color"], alpha=0.15, linewidth=0)
        if retrained:
            along.set_xscale("log")
        along.set_xlabel("images forward and backward (views)" if retrained else "records learned")
        along.set_ylabel("accuracy on the classes seen so far, %")
        end.set_yticks(range(len(names)), [fill(name, NAME_WIDTH) for name in names], fontsize="small")
        end.set_ylim(-0.5, len(names) - 0.5)
        end.set_xlabel("final accuracy, %")
        figure.suptitle(title)
        figure.savefig(file, dpi=DPI)
