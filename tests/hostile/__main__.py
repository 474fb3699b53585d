"""Long form of the hostile test, with a broker of its own: prints progress, a table, and one JSON object at the end."""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from hostile import Report, attack, judge
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from stream_learner.local.broker import Broker


def main(
    minutes: Annotated[float, typer.Option(min=0.1, help="How long the producers last.")] = 10.0,
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")] = 0,
    slow_clients: Annotated[int, typer.Option(min=0, help="Clients that hold the monitoring port.")] = 2000,
) -> None:
    """Feed a worker from a good producer and from a hostile one. All records of the good one must be learned."""
    folder = Path(tempfile.mkdtemp(prefix="hostile-"))
    seconds = 60 * minutes
    with Broker(folder / "kafka") as broker, Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("under attack", total=seconds)
        report = attack(broker, folder, seconds, seed, slow_clients, lambda: progress.advance(bar))
    judge(report)
    print_table(report)
    if report.missed:
        print(f"The run, its logs and the broker are kept in {folder}; SEED={seed} does the same again")
    else:
        shutil.rmtree(folder)
    print(json.dumps(vars(report) | {"seed": seed}))
    sys.exit(bool(report.missed))


def print_table(report: Report) -> None:
    table = Table("figure", "value")
    for name, value in vars(report).items():
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
