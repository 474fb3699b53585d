"""Commands, arguments, progress bars, exit codes; no logic."""

import codecs
import json
import logging
import os
import re
import signal
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, NoReturn

import msgspec
import typer
from rich.console import Console
from rich.highlighter import JSONHighlighter
from rich.live import Live
from rich.markup import escape
from rich.progress import MofNCompleteColumn, Progress
from rich.table import Column, Table
from rich.text import Text

from stream_learner import config
from stream_learner.config import Settings
from stream_learner.contract.spans import Stretches
from stream_learner.errors import ExitCode, StreamLearnerError, out_of_memory
from stream_learner.text import escape_unencodable, printable, printable_lines

app = typer.Typer(
    name="stream-learner",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Learns an image classifier from a Kafka stream, exactly once, and releases it downstream.",
    epilog="`--debug` with any command shows the traceback of an error. Exit codes are in docs/operations.md.",
)
DataFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="Images: a folder of parquet files in the Hugging Face layout, or of class folders. Handwritten digits "
        "when left out.",
        show_default=False,
    ),
]
# They may include a password, when an option lacks its `=`.
EXTRA_ARGUMENTS = re.compile(r"(unexpected extra argument\S*) \(.*\)", re.DOTALL)
# From a signal at the start to the end: enough to leave the election, so that the next start need not wait for it.
LEAVE_S = 0.5
out = Console()
err = Console(stderr=True, highlight=False)

ConfigFile = Annotated[Path | None, typer.Argument(metavar="CONFIG", help="Settings file (TOML).", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting; may be repeated.", show_default=False),
]


@app.command()
def run(
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over although the run has published before and its manifest is lost.")
    ] = False,
    accept_rejects: Annotated[bool, typer.Option("--accept-rejects", help="Never stop for rejected records.")] = False,
) -> None:
    """Learn from the input topics until stopped (SIGTERM, SIGHUP or Ctrl-C: save, then exit 0)."""
    from stream_learner.monitoring.health import Health

    health = None
    # Before it learns or stands by there is nothing to save, and what it waits for may take long.
    stop = _stop_on_signals(
        lambda: settings.run.stop_deadline_s, at_once=lambda: health is None or health.why_not_started() is not None
    )
    settings = config.load(config_file, overrides)
    health = Health(settings.monitoring.live_timeout_s, settings.kafka.request_timeout_s)
    from stream_learner.run import start

    start.run(settings, health, stop, _end_process, fresh=fresh, accept_rejects=accept_rejects)
    _end_process(ExitCode.OK)  # torch and the clients take a while to take themselves down


def _load(config_file: Path | None, overrides: list[str] | None) -> Settings:
    """Load the settings of a command that asks Kafka while a person waits, who then sees on a terminal why."""
    if err.is_terminal:
        logging.getLogger("kafka.bootstrap").addHandler(_Wait())
    return config.load(config_file, overrides)


class _Wait(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        err.print(printable(record.getMessage()), style="yellow", soft_wrap=True, markup=False)


def _stop_on_signals(deadline_s: Callable[[], float], at_once: Callable[[], bool] = lambda: False) -> threading.Event:
    """Set by the first signal that asks to end, which must be obeyed in time; a second one ends the process at once.

    Where `at_once` says so the first one does, with 0, after a moment in which the event may end it as well.
    """
    stop = threading.Event()
    signals = _obeyed()
    arrived, arrival = os.pipe()

    def end_within(seconds: float, code: ExitCode) -> None:
        timer = threading.Timer(seconds, _end_process, (code,))
        timer.daemon = True
        timer.start()

    def listen() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        os.read(arrived, 1)
        stop.set()
        if at_once():
            end_within(LEAVE_S, ExitCode.OK)
        else:
            end_within(deadline_s(), ExitCode.WATCHDOG)
        os.read(arrived, 1)
        _end_process(ExitCode.INTERRUPTED)

    # Python's own handlers run on the main thread, which may be waiting for a broker in a way that no signal ends. So
    # they do nothing, and Python writes to a pipe, whichever thread gets the signal: some start before this program
    # (`sitecustomize`, as OpenTelemetry has one). Threads that start later are not interrupted.
    os.set_blocking(arrival, False)
    signal.set_wakeup_fd(arrival, warn_on_full_buffer=False)
    for number in signals:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    threading.Thread(target=listen, name="signals", daemon=True).start()
    return stop


def _obeyed() -> set[signal.Signals]:
    """Signals that ask a command to end. `nohup` has SIGHUP ignored, which is left so."""
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    return {number for number in signals if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN}


def _say(line: str) -> None:
    """Write a line. It is not wrapped without a terminal, and nothing in it is markup."""
    out.print(printable(line), soft_wrap=True, markup=False)


def _say_json(document: str) -> None:
    """Write a JSON document, indented."""
    text = json.dumps(json.loads(document), indent=2, ensure_ascii=False)
    out.print(JSONHighlighter()(Text(printable_lines(text))), soft_wrap=True)


def _end_process(code: ExitCode) -> NoReturn:
    """Ends the process here and now, from any thread, without the clean-up that could publish or delete anything."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@app.command()
def demo(
    data: DataFolder = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the last demo: feed its data once more.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first weights and of the order.")] = 0,
    summary: Annotated[
        # Opened at once: a file that cannot be written is better known before than after the demo.
        typer.FileBinaryWrite | None,
        typer.Option(metavar="FILE", lazy=False, help="Write the summary as JSON too.", show_default=False),
    ] = None,
) -> None:
    """Watch a model learn from a real Kafka: starts a broker, a feeder and a worker, and stops them at the end."""
    from stream_learner.local.demo import run_demo
    from stream_learner.local.view import Lines, View, summary_table

    @contextmanager
    def show(view: View) -> Iterator[Live | Lines]:
        if not out.is_terminal or out.is_dumb_terminal:
            yield Lines(view, _say)
            return
        with Live(view, console=out, auto_refresh=False) as live:
            out.show_cursor()  # or kill -9 would leave the terminal without
            yield live

    found = run_demo(data, resume, seed, _say, show)
    out.print(summary_table(found))
    if summary:
        summary.write(msgspec.json.encode(found))


class Order(StrEnum):
    SHUFFLED = "shuffled"
    BY_CLASS = "by_class"
    DRIFTING = "drifting"


class DataSplit(StrEnum):
    TRAIN = "train"
    TEST = "test"
    ALL = "all"


@app.command()
def feed(
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    data: DataFolder = None,
    split: Annotated[
        DataSplit,
        typer.Option(help="Which part, by the words in names of files and folders; `test` is fed with `split: test`."),
    ] = DataSplit.TRAIN,
    topic: Annotated[str | None, typer.Option(help="Topic to feed; the first input topic when left out.")] = None,
    order: Annotated[
        Order, typer.Option(help="All classes mixed, one class after the other, or a mix that changes smoothly.")
    ] = Order.SHUFFLED,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Records per second; as fast as it goes when left out.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Records to send at most.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data set, each in a new order.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order.")] = 0,
) -> None:
    """Send a data set to a topic, as records of the plain form."""
    from stream_learner.local import feeder
    from stream_learner.local.datasets import open_dataset

    settings = _load(config_file, overrides)
    stop = _stop_on_signals(lambda: settings.run.stop_deadline_s)
    dataset = open_dataset(data, split.value)
    total = min(len(dataset) * epochs, limit or len(dataset) * epochs)
    columns = *Progress.get_default_columns(), MofNCompleteColumn()
    with Progress(*columns, console=err, disable=not err.is_terminal) as progress:
        bar = progress.add_task(f"feeding {escape(printable(dataset.name))}", total=total)
        fed = feeder.feed(
            dataset,
            settings.kafka,
            topic or settings.input.topics[0],
            order=feeder.ORDERS[order],
            seed=seed,
            epochs=epochs,
            limit=limit,
            rate=rate,
            on_progress=lambda sent: progress.update(bar, completed=sent),
            stop=stop,
        )
    ends = ", ".join(f"{partition}: {offset}" for partition, offset in sorted(fed.end_offsets.items()))
    _say(f"fed {fed.records} records{dataset.beside}; end offset of each partition: {ends}")


@app.command()
def kafka(
    folder: Annotated[Path, typer.Option(help="Where the broker keeps its data.")] = Path(".stream-learner/kafka"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on loopback.")] = 9092,
) -> None:
    """Run the local one-node Kafka by itself until Ctrl-C, for people who develop."""
    from stream_learner.local.broker import Broker

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    with Broker(folder.resolve(), port) as broker:
        _say(f"Kafka is at {broker.bootstrap_servers}; Ctrl-C stops it")
        stop.wait()


@app.command()
def topics(
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    check: Annotated[bool, typer.Option("--check", help="Create nothing; exit 4 when something differs.")] = False,
    input_partitions: Annotated[
        int | None,
        typer.Option(
            min=1, help="Create missing input topics too, with this number of partitions.", show_default=False
        ),
    ] = None,
) -> None:
    """Create the topics a run writes, or check them and say what differs."""
    from stream_learner.streams import topics as kafka_topics

    settings = _load(config_file, overrides)
    if not check:
        for name in kafka_topics.create(settings, input_partitions):
            _say(f"created {name}")
    kafka_topics.check(settings, input_partitions)
    _say("all topics are as they must be")


@app.command("config")
def show_config(
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the settings' JSON Schema instead.")] = False,
) -> None:
    """Print the effective settings as JSON, secrets redacted, and report whatever `run` would refuse in them."""
    if schema:
        _say_json(json.dumps(config.schema()))
        return
    from stream_learner.run import start

    settings = config.load(config_file, overrides)
    _say_json(settings.model_dump_json())
    start.check(settings)


@app.command()
def status(
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
) -> None:
    """Show the newest checkpoint, how many records of each partition came since (lag) and the newest metrics.

    From Kafka alone.
    """
    from stream_learner.follow.status import read_status
    from stream_learner.formats.rejects import describe

    found = read_status(_load(config_file, overrides))
    if as_json:
        _say_json(msgspec.json.encode(found).decode())
        return
    if found.manifest is None:
        _say("no checkpoint yet")
    else:
        manifest, release = found.manifest, found.manifest.release
        _say(
            f"checkpoint {manifest.sequence} of {manifest.created_at}, epoch {manifest.epoch}: "
            f"{manifest.url(manifest.state)}"
        )
        if release:
            _say(f"release {release.sequence} of {release.created_at}: {manifest.url(release.object)}")
            _say(f"test accuracy {_percent(release.test.accuracy)} on {release.test.total} samples")
    if found.window:
        window = found.window
        _say(
            f"last window: {window.records} records, {window.learned} learned, "
            f"{sum(window.rejected.values())} rejected, {window.tombstones} deletion markers, "
            f"{_offsets(window.lost)} lost, "
            f"prequential accuracy {_percent(window.prequential.accuracy)}"
        )
        if window.rejected_by_topic:
            _say(f"rejected: {describe(window.rejected_by_topic)}")
    table = Table(Column("topic", overflow="fold"), "partition", "position", "lag")
    for topic, partitions in found.lag.items():
        for partition, lag in partitions.items():
            table.add_row(printable(topic), str(partition), str(found.positions[topic][partition]), str(lag))
    out.print(table)


@app.command()
def rebuild(
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    *,
    start: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="STATE",
            help="State to begin with: a checkpoint's sequence, a key, a URL or a file; 0: none.",
        ),
    ],
    target: Annotated[
        str,
        typer.Option(
            "--to", metavar="MANIFEST", help="Checkpoint to rebuild: its sequence, or a file with its manifest."
        ),
    ],
) -> None:
    """Learn again what made a checkpoint, by the ledgers of the manifests, and compare the bytes."""
    from stream_learner.checkpoints.store import Store
    from stream_learner.run import rebuild as rebuilding

    settings = _load(config_file, overrides)
    columns = *Progress.get_default_columns(), MofNCompleteColumn()
    with Progress(*columns, console=err, disable=not err.is_terminal) as progress:
        bar = progress.add_task("learning again", total=None)
        rebuilt = rebuilding.rebuild(
            settings,
            Store(settings.checkpoint.store, create=False),
            start,
            target,
            lambda done, total: progress.update(bar, completed=done, total=total),
        )
    _say(f"checkpoint {rebuilt.end} rebuilt from {rebuilt.start}: {rebuilt.batches} batches, {rebuilt.records} records")
    _say(f"state {rebuilt.state}, as published")
    if rebuilt.release:
        _say(f"release {rebuilt.release}, as published")


def _offsets(stretches: Stretches) -> int:
    return sum(span.end - span.start for ps in stretches.values() for spans in ps.values() for span in spans)


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.1%}"


def main() -> None:
    """Entry point: every failure a person can cause is one line and an exit code of `ExitCode`."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    codecs.register_error("escape", escape_unencodable)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="escape")  # labels and paths may be in any script
    for number in _obeyed():
        signal.signal(number, _interrupt)
    _exit_with(lambda: app(prog_name="stream-learner", standalone_mode=False), debug)


def _interrupt(*_: object) -> NoReturn:
    """End the command in order. A second Ctrl-C ends the process at once."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a window that closes sends several
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(ExitCode.INTERRUPTED))
    sys.exit(ExitCode.INTERRUPTED)


def _exit_with(command: Callable[[], object], debug: bool) -> None:
    try:
        command()
    except StreamLearnerError as error:
        _fail(error, error.code, str(error), debug)
    except typer.TyperException as error:
        # No command at all has shown the help already.
        message = EXTRA_ARGUMENTS.sub(r"\1", error.format_message()) or "a command is missing"
        _fail(error, ExitCode.USAGE, f"{message.rstrip('.')}; `--help` shows what there is", debug)
    except Exception as error:  # noqa: BLE001 (the last resort, and the place for it)
        if explained := out_of_memory(error):
            _fail(error, explained.code, str(explained), debug)
        what = f"{type(error).__name__}: {error}"
        if place := _own_code(error):
            _fail(error, ExitCode.INTERNAL, f"{place} failed: {what} (`--debug` shows the way there)", debug)
        _fail(error, ExitCode.INTERNAL, f"{what} (a bug; `--debug` shows where)", debug)


def _own_code(error: Exception) -> str | None:
    """Where code failed that is neither ours nor a library's, `file:line`: a strategy, say, or a model of one's own."""
    others = Path(__file__).parent, *(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))
    places = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        places.append((Path(error.filename), error.lineno))
    for path, line in reversed(places):
        installed = {"site-packages", "dist-packages"} & set(path.parts) or any(map(path.is_relative_to, others))
        if path.is_absolute() and not installed:
            return f"{path}:{line}"
    return None


def _fail(error: Exception, code: ExitCode, message: str, debug: bool) -> NoReturn:
    if debug:
        err.print(printable_lines("".join(traceback.format_exception(error))), soft_wrap=True, markup=False)
    err.print(f"error: {printable(' '.join(message.split()))}", style="red", soft_wrap=True, markup=False)
    _end_process(code)
