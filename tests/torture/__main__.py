"""Long form of the torture test, with a broker of its own: prints progress, a table, and one JSON object at the end."""

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Annotated

import typer
from feed import digits
from gangs import gang_torture
from pictures import Pictures, small_pictures
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress
from rich.table import Table
from torture import ROWS, Report, torture

from stream_learner.local.broker import Broker
from stream_learner.local.datasets import open_dataset

RECORDS = 100_000
RECORDS_PER_KILL = 1_000


def main(
    kills: Annotated[int, typer.Option(min=10, help="How often a worker is killed.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")] = 0,
    data: Annotated[Path | None, typer.Option(help="A data set's folder; digits when left out.")] = None,
    ranks: Annotated[bool, typer.Option("--ranks", help="Kill ranks of a run in several processes.")] = False,
    envelopes: Annotated[bool, typer.Option("--envelopes", help="Feed messages that hold many records each.")] = False,
) -> None:
    """Kill a worker repeatedly. No record may be lost or taken twice."""
    pictures = small_pictures(open_dataset(data), Random(seed)) if data else Pictures(digits(), {})
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    records = min(RECORDS, RECORDS_PER_KILL * kills)
    began = time.monotonic()
    columns = *Progress.get_default_columns(), MofNCompleteColumn()
    with Broker(folder / "kafka") as broker, Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("killing", total=kills)
        report = (gang_torture if ranks else torture)(
            broker, folder, kills, seed, records, pictures, lambda: progress.advance(bar), rows=ROWS if envelopes else 0
        )
    if envelopes and not report.inside:
        report.violations.append("no manifest is inside a message")
    print_table(report)
    if report.violations:
        print(f"The runs, their logs and the broker are kept in {folder}; SEED={seed} does the same again")
    else:
        shutil.rmtree(folder)
    print(json.dumps(vars(report) | {"seed": seed, "seconds": round(time.monotonic() - began, 1)}))
    sys.exit(bool(report.violations))


def print_table(report: Report) -> None:
    table = Table("killed", "times")
    for name, times in sorted(report.by_point.items()):
        table.add_row(name, str(times))
    console = Console()
    console.print(table)
    for violation in report.violations:
        console.print(violation, style="red", markup=False)


if __name__ == "__main__":
    typer.run(main)
