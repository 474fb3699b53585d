"""Commands for a laptop: the demo, the feeder of a data set, a one-node broker."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.live import Live

from stream_learner.cli.options import ConfigFile, DataFolder, Overrides
from stream_learner.cli.output import load, out, progress, say
from stream_learner.run.signals import stop_on_signals


def demo(
    data: DataFolder = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the last demo and feed its data once more.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the initial weights and of the order.")] = 0,
    summary: Annotated[
        # The file is opened before the demo starts, so that a file that cannot be written is reported at once.
        typer.FileBinaryWrite | None,
        typer.Option(metavar="FILE", lazy=False, help="Write the summary as JSON too.", show_default=False),
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve the last release after the summary, until Ctrl-C.")
    ] = False,
) -> None:
    """Watch a model learn from a real Kafka: start a broker, a feeder and a worker, and stop them at the end.

    A server of the last release then answers one image.
    """
    from stream_learner.local.demo import run_demo
    from stream_learner.local.view import Lines, Summary, View, summary_table

    @contextmanager
    def show(view: View) -> Iterator[Live | Lines]:
        if not out.is_terminal or out.is_dumb_terminal:
            yield Lines(view, say)
            return
        with Live(view, console=out, auto_refresh=False) as live:
            out.show_cursor()  # otherwise the terminal would have no cursor after kill -9
            yield live

    def finish(found: Summary) -> None:
        out.print(summary_table(found))
        if summary:
            summary.write(msgspec.json.encode(found))
            summary.flush()

    run_demo(data, resume, seed, say, show, finish, serve)


class Order(StrEnum):
    SHUFFLED = "shuffled"
    BY_CLASS = "by_class"
    DRIFTING = "drifting"


class DataSplit(StrEnum):
    TRAIN = "train"
    TEST = "test"
    ALL = "all"


def feed(
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    data: DataFolder = None,
    split: Annotated[
        DataSplit,
        typer.Option(
            help="Part of the data set to send. Words in file and folder names mark the parts. The part `test` is sent "
            "with the header `split: test`."
        ),
    ] = DataSplit.TRAIN,
    topic: Annotated[str | None, typer.Option(help="Topic to feed. Default: the first input topic.")] = None,
    order: Annotated[
        Order, typer.Option(help="Order: all classes mixed, one class after the other, or a mix that changes smoothly.")
    ] = Order.SHUFFLED,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Records per second. Default: no limit.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Largest number of records to send.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data set, each in a new order.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order.")] = 0,
    rows: Annotated[
        int, typer.Option(min=1, max=65_536, help="Records in a message. More than 1: for `input.format = arrow`.")
    ] = 1,
) -> None:
    """Send a data set to a topic, as records in the plain format, or many records in each message."""
    from stream_learner.local import feeder
    from stream_learner.local.datasets import open_dataset

    settings = load(config_file, overrides)
    stop = stop_on_signals(lambda: settings.run.stop_deadline_s)
    dataset = open_dataset(data, split.value)
    with progress(f"feeding {dataset.name}") as show:
        fed = feeder.feed(
            dataset,
            settings.kafka,
            topic or settings.input.topics[0],
            order=feeder.ORDERS[order],
            seed=seed,
            epochs=epochs,
            limit=limit,
            rate=rate,
            rows=rows,
            on_progress=show,
            stop=stop,
        )
    ends = ", ".join(f"{partition}: {offset}" for partition, offset in sorted(fed.end_offsets.items()))
    say(f"fed {fed.records} records{dataset.beside}; end offset of each partition: {ends}")


def kafka(
    folder: Annotated[Path, typer.Option(help="Folder of the broker's data.")] = Path(".stream-learner/kafka"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on loopback.")] = 9092,
) -> None:
    """Run only the local one-node Kafka, until Ctrl-C. For development."""
    from stream_learner.local.broker import Broker

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    with Broker(folder.resolve(), port) as broker:
        say(f"Kafka is at {broker.bootstrap_servers}; Ctrl-C stops it")
        stop.wait()
