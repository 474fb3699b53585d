"""Accuracy and cost of the learner on streams that cause forgetting, compared with retraining, and through Kafka.

    python benchmarks/learning.py increments --data DIR --strategy er --seed 0 --views 1

A finished run is a file in the folder of runs, and a second start skips it. Every run prints one line of JSON. `report`
makes tables and plots of all files in that folder. Some options may be repeated, as their help says: all combinations
run. Images are mirrored at random, unless the names of all classes have one character, like digits and letters. To
change that, use `--set "learning.augment=['crop']"`.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.data import open_data
from benchmarks.retraining import EPOCHS
from benchmarks.runs import Run
from benchmarks.scenarios import SCENARIOS
from benchmarks.trial import DEFAULT, RETRAIN, Trial
from stream_learner.errors import StreamLearnerError
from stream_learner.local import extra
from stream_learner.registry import WEIGHTS

DOCS = Path(__file__).parents[1] / "docs" / "benchmarks"
RUNS = Path(__file__).parent / "results" / "learning"
DETAILS = ("settings", "curve", "arithmetic")
SLIM = "resnet18_slim"
MODELS = ["mlp", "cnn", SLIM]
BATCH, SEED_BATCH = 10, 32
MEMORY_SHARE = 0.1
HALF_LIFE = "weights.half_life_records=5000"

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
console = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

DataOption = Annotated[
    Path | None, typer.Option(help="Folder in a layout that `stream-learner feed` reads; digits when left out.")
]
StrategyOption = Annotated[
    list[str], typer.Option(help="A strategy, or `default` for the recommended settings; may be repeated.")
]
SeedOption = Annotated[list[int], typer.Option(min=0, help="Seed of split, stream and learner; may be repeated.")]
ViewsOption = Annotated[
    list[int],
    typer.Option(min=1, help="Views of each image, and as many of replayed ones; may be repeated."),
]
ModelOption = Annotated[str, typer.Option(help="Network.")]
ValidationOption = Annotated[bool, typer.Option("--validation", help="Examine on validation images, not on test ones.")]
SetOption = Annotated[
    list[str], typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Overrides a setting; may be repeated.")
]
RunsOption = Annotated[Path, typer.Option(help="Folder of finished runs.")]


def go(trials: Iterable[Trial], data: Path | None, runs: Path) -> None:
    """Make the missing runs, and print the figures of every run as a line of JSON."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with errors_told():
        opened = open_data(data)
        for trial in dict.fromkeys(trials):
            with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
                run = trial.once(runs, opened, progress)
            print(json.dumps(summary(run), allow_nan=False), flush=True)


@contextmanager
def errors_told() -> Iterator[None]:
    """End the program with the message and the exit code of an error that is no bug."""
    try:
        yield
    except StreamLearnerError as error:
        err.print(f"error: {error}", style="red", markup=False)  # brackets are no markup
        raise typer.Exit(error.code) from None


def summary(run: Run) -> Run:
    return {name: value for name, value in run.items() if name not in DETAILS}


def scenario(name: str, kafka: bool = False) -> Callable[..., None]:
    """Return the command that runs contenders on a scenario: batches of 10, a memory of 1,000 images."""

    def command(
        data: DataOption = None,
        strategy: StrategyOption = [DEFAULT],  # noqa: B006  typer does not change it
        seed: SeedOption = [0],  # noqa: B006
        views: ViewsOption = [1],  # noqa: B006
        model: ModelOption = SLIM,
        validation: ValidationOption = False,
        overrides: SetOption = [],  # noqa: B006
        runs: RunsOption = RUNS,
    ) -> None:
        grid = itertools.product(seed, views, strategy)
        changed = tuple(overrides)
        go((Trial(name, s, n, v, model, BATCH, None, validation, changed, kafka) for n, v, s in grid), data, runs)

    return command


for name in ("increments", "shuffled", "blurry", "imbalanced", "drifting", "noisy"):
    app.command(name, help=SCENARIOS[name].__doc__)(scenario(name))
app.command("kafka", help="`increments` through a real Kafka and the real worker.")(scenario("increments", kafka=True))


@app.command()
def retrain(
    data: DataOption = None,
    strategy: Annotated[
        list[str], typer.Option(help="`retrain`, and incremental ones to compare; may be repeated.")
    ] = [RETRAIN, DEFAULT],  # noqa: B006
    seed: SeedOption = [0],  # noqa: B006
    views: ViewsOption = [4],  # noqa: B006
    model: Annotated[list[str], typer.Option(help="Network; may be repeated.")] = MODELS,
    classes: Annotated[bool, typer.Option("--classes", help="Each increment has classes of its own.")] = False,
    validation: ValidationOption = False,
    overrides: SetOption = [],  # noqa: B006
    runs: RunsOption = RUNS,
) -> None:
    """Compare retraining on all data with incremental steps, on ten increments.

    The incremental learner trains on the new data and on replayed samples, a tenth of the data.
    """
    name = "class_tenths" if classes else "tenths"
    trials = (
        Trial(name, s, n, EPOCHS if s == RETRAIN else v, m, SEED_BATCH, MEMORY_SHARE, validation, tuple(overrides))
        for n, v, m, s in itertools.product(seed, views, model, strategy)
    )
    go(trials, data, runs)


@app.command()
def ablation(
    data: DataOption = None,
    seed: SeedOption = [0],  # noqa: B006
    views: ViewsOption = [1],  # noqa: B006
    model: ModelOption = SLIM,
    validation: ValidationOption = False,
    overrides: SetOption = [],  # noqa: B006
    runs: RunsOption = RUNS,
) -> None:
    """Measure the benefit of each weight policy under wrong labels, imbalance and drift. The first run has none."""
    policies = ["[]", *(f"['{policy}']" for policy in WEIGHTS)]
    trials = (
        Trial(name, DEFAULT, n, v, model, BATCH, None, validation, (HALF_LIFE, *overrides, f"weights.policies={p}"))
        for name, n, v, p in itertools.product(("noisy", "imbalanced", "drifting"), seed, views, policies)
    )
    go(trials, data, runs)


@app.command("report")
def report_command(
    runs: RunsOption = RUNS, output: Annotated[Path, typer.Option(help="Folder of tables and plots.")] = DOCS
) -> None:
    """Write tables (Markdown, JSON) and plots (PNG) of all finished runs. Needs the extra `bench`.

    `make test` installs it.
    """
    with errors_told():
        with extra("bench"):
            from benchmarks import report

        for file in report.write(runs, output):
            console.print(str(file))


if __name__ == "__main__":
    app()
