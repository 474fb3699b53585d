"""The command line in a process of its own. It starts fast, because it is forked from a process with all imports."""

import multiprocessing
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from stream_learner import cli

DEADLINE_S = 60.0

# There is one fork server for a session, and tests of the checkpoint protocol use it too, with the same list.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["stream_learner.cli", "stream_learner.run.worker", "torch._dynamo"])


class Done(NamedTuple):
    """What a command left behind."""

    code: int | None
    out: str
    err: str


def stream_learner(*arguments: object, folder: Path, environment: dict[str, str] | None = None) -> Done:
    """Runs a command to its end, in a folder."""
    with TemporaryDirectory() as scratch:
        out, err = Path(scratch, "out"), Path(scratch, "err")
        child = processes.Process(target=_main, args=([*map(str, arguments)], folder, environment or {}, out, err))
        child.start()
        child.join(DEADLINE_S)
        child.kill()
        child.join()
        return Done(child.exitcode, out.read_text(), err.read_text())


def _main(arguments: list[str], folder: Path, environment: dict[str, str], out: Path, err: Path) -> None:
    for descriptor, path in (1, out), (2, err):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND), descriptor)
    os.chdir(folder)
    os.environ.update(environment)
    sys.argv = ["stream-learner", *arguments]
    cli.main()
