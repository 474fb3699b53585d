"""The command line. Every failure that a person can cause is reported in one line and has an exit code."""

import codecs
import os
import re
import signal
import sys
import sysconfig
import traceback
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from stream_learner.cli.output import err, say
from stream_learner.errors import ExitCode, StreamLearnerError, out_of_memory
from stream_learner.program import PROGRAM
from stream_learner.run.process import spin_briefly
from stream_learner.run.signals import end_process, obeyed
from stream_learner.text import escape_unencodable, printable, printable_lines

app = typer.Typer(
    name="stream-learner",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Trains an image classifier on a Kafka stream, each record exactly once, and publishes releases of the model.",
    epilog="`--debug` with any command shows the traceback of an error. Exit codes are in docs/operations.md.",
)

# Remove these arguments from messages. If an option is typed without `=`, a password can be among them.
EXTRA_ARGUMENTS = re.compile(r"(unexpected extra argument\S*) \(.*\)", re.DOTALL)


def _show_version(wanted: bool) -> None:
    if wanted:
        say(PROGRAM)
        raise typer.Exit


@app.callback()
def options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Parse the options before the command."""


def main() -> None:
    """Run the command line, and end the process with an exit code of `ExitCode`."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    codecs.register_error("escape", escape_unencodable)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="escape")  # labels and paths may be in any script
    for number in obeyed():
        signal.signal(number, _interrupt)
    exit_with(_command, debug)


def _command() -> None:
    spin_briefly()
    # The result is nonzero only for an unknown shell, which typer has reported.
    if app(prog_name="stream-learner", standalone_mode=False):
        sys.exit(ExitCode.USAGE)


def _interrupt(*_: object) -> NoReturn:
    """Raise SystemExit, so that the command cleans up. A second Ctrl-C ends the process at once."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal window that closes sends several of these
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(ExitCode.INTERRUPTED))
    sys.exit(ExitCode.INTERRUPTED)


def exit_with(command: Callable[[], object], debug: bool) -> None:
    """Run a command. Report its failure in one line and end the process with the failure's exit code."""
    try:
        command()
    except StreamLearnerError as error:
        _fail(error, error.code, str(error), debug)
    except typer.TyperException as error:
        # Without any command, typer has already shown the help.
        message = EXTRA_ARGUMENTS.sub(r"\1", error.format_message()) or "a command is missing"
        _fail(error, ExitCode.USAGE, f"{message.rstrip('.')}; see `--help`", debug)
    except Exception as error:  # noqa: BLE001 (the last resort: every other failure is reported here)
        if explained := out_of_memory(error):
            _fail(error, explained.code, str(explained), debug)
        what = f"{type(error).__name__}: {error}"
        if place := _own_code(error):
            _fail(error, ExitCode.INTERNAL, f"{place} failed: {what} (`--debug` shows the traceback)", debug)
        _fail(error, ExitCode.INTERNAL, f"{what} (a bug; `--debug` shows the traceback)", debug)


def _own_code(error: Exception) -> str | None:
    """Return `file:line` of the user's own code in the traceback, such as a model. None if there is no such code."""
    others = Path(__file__).parent.parent, *(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))
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
    end_process(code)
