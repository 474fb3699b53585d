"""Commands that prepare a run: its settings and its topics."""

import json
from typing import Annotated

import typer

from stream_learner import config
from stream_learner.cli.options import ConfigFile, Overrides
from stream_learner.cli.output import load, say, say_json


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
