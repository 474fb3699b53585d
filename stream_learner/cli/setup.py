"""Commands that prepare a run: its settings and its topics."""

import json
from statistics import median
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.table import Table

from stream_learner import config
from stream_learner.cli.options import ConfigFile, Overrides
from stream_learner.cli.output import load, out, progress, say, say_json


def topics(
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    check: Annotated[
        bool, typer.Option("--check", help="Create nothing. Exit with code 4 if something differs.")
    ] = False,
    input_partitions: Annotated[
        int | None,
        typer.Option(
            min=1, help="Create missing input topics too, with this number of partitions.", show_default=False
        ),
    ] = None,
) -> None:
    """Create the topics of a run, or check them and report differences."""
    from stream_learner.streams import topics as kafka_topics

    settings = load(config_file, overrides)
    if not check:
        for name in kafka_topics.create(settings, input_partitions):
            say(f"created {name}")
    kafka_topics.check(settings, input_partitions)
    say("all topics are correct")


def show_config(
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the settings' JSON Schema instead.")] = False,
) -> None:
    """Print the settings in use as JSON, without secrets, and report everything that `run` would refuse."""
    if schema:
        say_json(json.dumps(config.schema()))
        return
    from stream_learner.run import start

    settings = config.load(config_file, overrides)
    say_json(settings.model_dump_json())
    start.check(settings)


def tune(
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    target: Annotated[
        # The file is opened first, so that a file that cannot be written is reported at once.
        typer.FileTextWrite | None,
        typer.Option("--out", metavar="FILE", lazy=False, help="Write the settings that win to a file (TOML)."),
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Time to learn. Slow networks take longer.")] = 60,
) -> None:
    """Measure which precision, memory layout and number of threads learn fastest here. Publish nothing.

    Learns the newest records of the input topics with the run's network. Stop other programs first.
    """
    from stream_learner.run import tuning
    from stream_learner.streams.cluster import Cluster

    settings = load(config_file, overrides)
    with progress("measuring") as show:
        comparisons = tuning.tune(settings, Cluster(settings), seconds, show)
    table = Table("precision", "channels_last", "threads", "records/s", "speed (quartiles)", "", box=SIMPLE)
    for compared in comparisons:
        for choice, rates in compared.rates.items():
            won = "stays" if compared.winner == compared.now else "best"
            mark = won if choice == compared.winner else "present" if choice == compared.now else ""
            table.add_row(
                choice.precision,
                str(choice.channels_last).lower(),
                str(choice.threads),
                f"{median(rates):,.0f}",
                str(compared.ratio(choice, compared.now)),
                mark,
            )
        table.add_section()
    out.print(table)
    found = tuning.fragment(comparisons)
    if target:
        target.write(found)
    else:
        say(found.rstrip())
    if any(compared.winner != compared.now for compared in comparisons):
        say("A run resumes with these settings. They change the rounding, so the bytes learned from then on differ.")
