"""Long form of the alert tests: each alert is fired by a fault, then a healthy run must fire none.

The faults use rules that are `factor` times as fast, the healthy run the shipped rules. Prints a table, and one JSON
object as the last line.
"""

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from faults import FAULTS, PROPERTIES, Stage, fire
from healthy import stay_well
from prometheus import Prometheus
from rich.console import Console
from rich.table import Table

from stream_learner.local.broker import Broker


def main(
    minutes: Annotated[float, typer.Option(min=0, help="How long the healthy run lasts; 0: none.")] = 60.0,
    factor: Annotated[float, typer.Option(min=1, help="How many times as fast the rules are for the faults.")] = 30.0,
    healthy_factor: Annotated[float, typer.Option(min=1, help="The same for the healthy run.")] = 1.0,
    fault: Annotated[list[str] | None, typer.Option(help="Only these faults (`none`: none).")] = None,
) -> None:
    """Fire every alert by a fault, then watch a run that is well."""
    folder = Path(tempfile.mkdtemp(prefix="alerts-"))
    began = time.monotonic()
    faults = [f for f in FAULTS if fault is None or f.__name__ in fault]
    with Broker(folder / "kafka", properties=PROPERTIES) as broker:
        seconds, happened = {}, {}
        if faults:
            with Prometheus(folder / "prometheus", factor) as prometheus:
                stage = Stage(broker, folder, prometheus, factor)
                fire(stage, faults)
                seconds = stage.seconds
        if minutes:
            with Prometheus(folder / "prometheus-healthy", healthy_factor) as prometheus:
                happened = stay_well(Stage(broker, folder, prometheus, healthy_factor), minutes)
    shutil.rmtree(folder)
    table = Table("alert", "seconds after its fault")
    for name, after in seconds.items():
        table.add_row(name, f"{after:g}")
    Console().print(table)
    took = round(time.monotonic() - began, 1)
    print(
        json.dumps(
            {"fired_after_s": seconds, "factor": factor, "healthy_minutes": minutes, **happened, "seconds": took}
        )
    )


if __name__ == "__main__":
    typer.run(main)
