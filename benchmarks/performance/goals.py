"""Goals of the worker's speed, which were set before it was measured, and the figures of the finished rounds."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from benchmarks.performance import loops, tables
from benchmarks.performance.rounds import common, figures, finished
from benchmarks.performance.summary import ratios
from benchmarks.performance.tables import SAVE_EVERY_S, spread, stalls
from benchmarks.runs import Run

MOST_STALL_MS = 20.0


class Goal(NamedTuple):
    """A goal for a figure of a part. `figure` returns its value in each round. Some figures must be at most `value`."""

    part: str
    model: str
    batch: int
    words: str
    figure: Callable[[list[Run]], list[float]]
    value: float
    at_most: bool = False
    form: str = ".2f"

    def row(self, rounds: list[Run] | None) -> tuple[str, str, str, str]:
        """Return what is measured, the goal, the figure, and whether the median of the rounds reaches the goal."""
        bound = f"{'at most' if self.at_most else 'at least'} {self.value:g}"
        what = f"`{self.model}`, batch {self.batch}: {self.words}"
        found = [value for value in self.figure(rounds) if not math.isnan(value)] if rounds else []
        if not found:
            return what, bound, "not measured", ""
        middle = median(found)
        reached = middle <= self.value if self.at_most else middle >= self.value
        return what, bound, spread(found, self.form), "reached" if reached else "**missed**"


def _beside_loops(rounds: list[Run]) -> list[float]:
    return ratios(rounds, "worker", [side for side in common(rounds) if side in loops.LOOPS])


def _of_limit(rounds: list[Run]) -> list[float]:
    return ratios(rounds, "worker, plain", ["limit"])


def _two_ranks(rounds: list[Run]) -> list[float]:
    return ratios(rounds, "2 ranks", ["1 rank"])


def _stall_beyond_a_step_ms(rounds: list[Run]) -> list[float]:
    return [
        float(np.quantile(stalls([round_], "with saves"), 0.99)) - tables.batch_ms(round_["measured"]["with saves"])
        for round_ in rounds
    ]


def _cost_of_saves_percent(rounds: list[Run]) -> list[float]:
    return [100 * tables.cost_s(round_["measured"]["with saves"]) / SAVE_EVERY_S for round_ in rounds]


def _idle_percent(rounds: list[Run]) -> list[float]:
    return figures(rounds, common(rounds)[0], "percent_of_a_core")


beside_loops = partial(Goal, figure=_beside_loops)
of_limit = partial(Goal, "kafka", words="worker from Kafka, plain / limit", figure=_of_limit)
two_ranks = partial(Goal, "ranks", "resnet18_slim", words="two ranks / one rank, in memory", figure=_two_ranks)
stall = partial(
    Goal,
    "checkpoints",
    words="p99 of the stall of a save, minus one step, ms",
    figure=_stall_beyond_a_step_ms,
    value=MOST_STALL_MS,
    at_most=True,
    form=".1f",
)
cost = partial(
    Goal,
    "checkpoints",
    words=f"cost of one save in {SAVE_EVERY_S:.0f} s, % of the time",
    figure=_cost_of_saves_percent,
    value=1.0,
    at_most=True,
)
SAVED = (("mlp", 32), ("cnn", 32), ("timm:resnet18", 32), ("timm:resnet50", 32), ("timm:wide_resnet101_2", 8))
GOALS = [
    beside_loops("loops", "mlp", 32, "worker, plain / fastest loop", value=3.0),
    beside_loops("loops", "cnn", 32, "worker, plain / fastest loop", value=3.0),
    beside_loops("replay", "mlp", 32, "worker, default / fastest loop with replay", value=2.0),
    beside_loops("replay", "cnn", 32, "worker, default / fastest loop with replay", value=2.0),
    of_limit("cnn", 32, value=0.7),
    of_limit("cnn", 128, value=0.85),
    of_limit("resnet18_slim", 32, value=0.95),
    of_limit("resnet18", 32, value=0.98),
    *(goal(model, batch) for goal in (stall, cost) for model, batch in SAVED),
    Goal("idle", "mlp", 32, "CPU time of an idle worker, % of a core", _idle_percent, 1.0, at_most=True),
    two_ranks(32, value=1.55),
    two_ranks(128, value=1.75),
]


def rows(folder: Path) -> Iterator[tuple[str, str, str, str]]:
    """Return a row of the page's table for each goal."""
    found = {
        (part, subject.model, subject.batch): rounds
        for part in {goal.part for goal in GOALS}
        for subject, rounds in finished(part, folder).items()
    }
    for goal in GOALS:
        yield goal.row(found.get((goal.part, goal.model, goal.batch)))
