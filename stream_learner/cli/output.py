"""Output to the terminal, and loading of settings for commands that may make a person wait for Kafka."""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
from rich.console import Console
from rich.highlighter import JSONHighlighter
from rich.markup import escape
from rich.progress import MofNCompleteColumn, Progress
from rich.text import Text

from stream_learner import config
from stream_learner.config import FollowSettings, Settings
from stream_learner.text import printable, printable_lines

out = Console()
err = Console(stderr=True, highlight=False)


def load(config_file: Path | None, overrides: list[str] | None) -> Settings:
    """Load the settings of a command that connects to Kafka.

    If the command has to wait for Kafka, a terminal shows the Kafka client's messages about the connection.
    """
    _prepare()
    return config.load(config_file, overrides)


def load_follower(config_file: Path | None, overrides: list[str] | None) -> FollowSettings:
    """Load the settings of a command that follows a run. See `load`."""
    _prepare()
    return config.load_follower(config_file, overrides)


def _prepare() -> None:
    # Until a command configures its log. By default, structlog would write warnings into a command's output.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    if err.is_terminal:
        logging.getLogger("kafka.bootstrap").addHandler(_Wait())


class _Wait(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        err.print(printable(record.getMessage()), style="yellow", soft_wrap=True, markup=False)


def say(line: str) -> None:
    """Write a line of plain text, without wrapping it."""
    out.print(printable(line), soft_wrap=True, markup=False)


def say_json(document: str) -> None:
    """Write a JSON document, indented."""
    text = json.dumps(json.loads(document), indent=2, ensure_ascii=False)
    out.print(JSONHighlighter()(Text(printable_lines(text))), soft_wrap=True)


@contextmanager
def progress(task: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on a terminal. Yield `update(done, total)`, which sets the bar."""
    columns = *Progress.get_default_columns(), MofNCompleteColumn()
    with Progress(*columns, console=err, disable=not err.is_terminal) as bars:
        bar = bars.add_task(escape(printable(task)), total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)
