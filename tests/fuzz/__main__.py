"""Long form of the fuzz test: prints progress, and one JSON object as the last line."""

import faulthandler
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated

import typer
from fuzz import decoders, fuzz, some_images
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress


def main(
    count: Annotated[int, typer.Option(min=10, help="How many images are decoded.")] = 100_000,
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")] = 0,
    data: Annotated[Path | None, typer.Option(help="A data set's folder, whose images are damaged too.")] = None,
) -> None:
    """Decode damaged images; each must become a sample or a rejection, within 50 ms and in bounded memory."""
    faulthandler.enable()
    warnings.simplefilter("error")
    began = time.monotonic()
    columns = *Progress.get_default_columns(), MofNCompleteColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("decoding", total=count)
        report = fuzz(some_images(data), count, seed, decoders(), lambda: progress.advance(bar))
    for crash in report.crashes[:20]:
        print(crash)
    print(json.dumps(vars(report) | {"seed": seed, "seconds": round(time.monotonic() - began, 1)}))
    sys.exit(report.failed)


if __name__ == "__main__":
    typer.run(main)
