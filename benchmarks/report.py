"""Tables and plots of finished runs: means over seeds, and differences that are paired by seed."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from benchmarks import plots
from benchmarks.runs import Run, read_all
from benchmarks.trial import DEFAULT, RETRAIN
from stream_learner.errors import DataError

LEVEL = 0.95
TITLES = {
    "increments": "Five increments, each with classes of its own",
    "shuffled": "All classes mixed",
    "blurry": "Classes that come and go",
    "imbalanced": "Class sizes from 100 to 1",
    "drifting": "Images corrupted from the middle on",
    "noisy": "Half of the records from a producer of wrong labels",
    "tenths": "Ten increments, all classes in each, against retraining",
    "class_tenths": "Ten increments, each with classes of its own, against retraining",
}
INTRODUCTION = """# What the learner learns

Made by `python benchmarks/learning.py report` from the files in `benchmarks/results/learning/`, where each run has
its settings and its curve.

Accuracies are in % of the examined images, mean ± standard deviation over seeds.

* *Final*: accuracy at the end, on all classes.
* *Anytime*: mean accuracy along the stream, on the classes seen so far.
* *Worst*: the lowest accuracy that a class had since it was first seen, mean over classes.
* *Last 100 steps*: standard deviation of the accuracy over these steps.
* *Views*: images forward and backward through the trained network. Forward passes of teachers and of evaluation are
  counted in separate columns. Our learner also predicts each image of the stream before it learns it. This additional
  forward pass is in no column.
* *Seconds*: time of learning without evaluation. The machine and its load were not controlled.
* The last column is the final accuracy of the default minus that of the row, in points, paired by seed, with a 95 %
  interval (t).

How to read the tables:

* Learners without replay make two steps per batch where the others make one, so that views are equal. With several
  steps, rate and augmentation have other defaults. Avalanche's `naive` makes one step.
* Retraining, and the runs compared with it, use the same augmentation for any number of steps: crop and flip.
* Where class sizes go from 100 to 1 by Zipf's law, the largest of ten classes has two thirds of the stream. Learners
  without replay predict it most of the time.
* In `weights.policies`, `record` does nothing where all records have weight 1.
"""
COLUMNS = (
    "contender",
    "seeds",
    "final",
    "anytime",
    "worst",
    "last 100 steps",
    "views",
    "teacher views",
    "evaluation views",
    "seconds",
    "default - this, final",
)
FIGURES = ("final", "anytime", "worst", "views", "teacher_views", "evaluation_views", "seconds")


class Group(NamedTuple):
    """Runs that can be compared: their common options, and each contender's runs by seed."""

    benchmark: str
    data: str
    model: str
    part: str
    contenders: dict[str, dict[int, Run]]

    @property
    def title(self) -> str:
        examined = "" if self.part == "test" else f", {self.part} images"
        return f"{TITLES.get(self.benchmark, self.benchmark)}: {self.data}, {self.model}{examined}"

    @property
    def runs(self) -> list[Run]:
        return [run for seeds in self.contenders.values() for run in seeds.values()]

    @property
    def name(self) -> str:
        return "-".join(self[:4]).replace(" ", "_").replace("/", "_")


def write(folder: Path, output: Path) -> list[Path]:
    """Write `learning.md`, `learning.json`, and a plot for each group of runs on test images. Return the files."""
    output.mkdir(parents=True, exist_ok=True)
    pages, tables, files = [INTRODUCTION], [], []
    found = read_all(folder)
    if not found:
        raise DataError(f"there is no finished run in {folder}; make some, or choose another folder with --runs")
    for group in grouped(found):
        rows = table(group)
        page = f"## {group.title}\n\n{markdown(rows)}"
        if group.part == "test":
            files.append(output / f"{group.name}.png")
            plots.draw(group.title, group.contenders, files[-1])
            page += f"\n![Accuracy along the stream, and at its end]({files[-1].name})\n"
        pages.append(page)
        tables.append({**group._asdict(), "contenders": rows})
    (output / "learning.md").write_text("\n".join(pages))
    (output / "learning.json").write_text(json.dumps(tables, indent=1) + "\n")
    return [output / "learning.md", output / "learning.json", *files]


def grouped(found: Sequence[Run]) -> list[Group]:
    """Group runs by their common options.

    Raises DataError when a contender has two runs of one seed, or two data sets have the same name.
    """
    groups: dict[tuple[str, ...], Group] = {}
    digests: dict[str, str] = {}
    for run in found:
        if digests.setdefault(run["data"], run["digest"]) != run["digest"]:
            raise DataError(
                f"there are runs on two data sets named {run['data']}; move those of one to another folder (--runs)"
            )
        shared = (run["benchmark"], run["data"], run["model"], run["part"])
        seeds = groups.setdefault(shared, Group(*shared, {})).contenders.setdefault(contender(run), {})
        if run["seed"] in seeds:
            raise DataError(
                f"two runs of {contender(run)}, seed {run['seed']}, in {', '.join(shared)}, whose settings differ; "
                "remove the file of one"
            )
        seeds[run["seed"]] = run
    return [groups[shared] for shared in sorted(groups)]


def contender(run: Run) -> str:
    """Return the name of a run among the runs of its group."""
    words = [run["strategy"], *([] if run["strategy"] == RETRAIN else [f"{run['budget']}x"]), *run["overrides"]]
    return " ".join([*words, *(["through Kafka"] if run["through"] == "kafka" else [])])


def table(group: Group) -> list[dict[str, Any]]:
    """Return a row for each contender, the best first: mean and deviation of each figure, difference to the default.

    The difference is to the default contender with the smallest budget.
    """
    plain = (f"{DEFAULT} {budget}x" for budget in sorted({run["budget"] for run in group.runs}))
    default = next((group.contenders[name] for name in plain if name in group.contenders), None)
    rows = [row(name, seeds, default) for name, seeds in group.contenders.items()]
    return sorted(rows, key=lambda row: -row["final"]["mean"])


def row(name: str, seeds: dict[int, Run], default: dict[int, Run] | None) -> dict[str, Any]:
    figures: dict[str, Any] = {"contender": name, "seeds": sorted(seeds)}
    for figure in FIGURES:
        figures[figure] = mean([run[figure] for run in seeds.values()])
    figures["last_100_steps_std"] = mean([(run["last_100_steps"] or {}).get("std") for run in seeds.values()])
    paired = sorted(set(seeds) & set(default or {}))
    if default and default is not seeds and paired:
        figures["default_minus_this"] = difference([default[s]["final"] - seeds[s]["final"] for s in paired])
    return figures


def mean(values: Sequence[float | None]) -> dict[str, float | None] | None:
    """Return mean and standard deviation, None if a run lacks the figure."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {"mean": float(np.mean(known)), "std": float(np.std(known, ddof=1)) if len(known) > 1 else None}


def difference(paired: Sequence[float]) -> dict[str, Any]:
    """Return the mean of paired differences and its t interval, which a single pair lacks."""
    middle = float(np.mean(paired))
    if len(paired) == 1:
        return {"mean": middle, "interval": None}
    error = float(stats.sem(paired))
    # Without spread, the interval is the point itself, which scipy leaves undefined.
    low, high = stats.t.interval(LEVEL, len(paired) - 1, middle, error) if error else (middle, middle)
    return {"mean": middle, "interval": [float(low), float(high)]}


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = [COLUMNS, ("---", *["---:"] * (len(COLUMNS) - 1)), *map(cells, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    accuracies = [percent(row[name]) for name in ("final", "anytime", "worst")]
    spread = percent(row["last_100_steps_std"] and row["last_100_steps_std"] | {"std": None})
    counts = [f"{row[name]['mean']:,.0f}" for name in ("views", "teacher_views", "evaluation_views", "seconds")]
    gain = row.get("default_minus_this")
    shown = ""
    if gain:
        shown = f"{100 * gain['mean']:+.1f}"
        if gain["interval"]:
            shown += " [{:+.1f}, {:+.1f}]".format(*(100 * end for end in gain["interval"]))
    return row["contender"], str(len(row["seeds"])), *accuracies, spread, *counts, shown


def percent(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return ""
    return f"{100 * figure['mean']:.1f}" + (f" ± {100 * figure['std']:.1f}" if figure["std"] is not None else "")
