"""The command line in a process of its own. It starts fast, because it is forked from a process with all imports."""

import multiprocessing
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from stream_learner import cli
from stream_learner.config import KafkaSettings
from stream_learner.errors import ExitCode

DEADLINE_S = 60.0
MODULE = [sys.executable, "-m", "stream_learner"]
HOSTILE = "\x1b[2J\x9b\u202e\u2028"
"""Text from outside that a terminal must not get as it is."""

# There is one fork server for a session, and tests of the checkpoint protocol use it too, with the same list.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["stream_learner.cli", "stream_learner.run.worker"])


class Done(NamedTuple):
    """The result of a command."""

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


class Run:
    """A settings file, and commands that get it."""

    def __init__(self, folder: Path, run_id: str, kafka: KafkaSettings):
        self.folder = folder
        self.id = run_id
        self.input = f"{run_id}.input"
        self.file = folder / "worker.toml"
        self.file.write_text(f"""
            run.id = "{run_id}"
            input.topics = ["{self.input}"]
            kafka.bootstrap_servers = "{kafka.bootstrap_servers}"
            model = {{name = "mlp", height = 8, width = 8, channels = 1}}
            monitoring.port = 0
            log.level = "error"
        """)

    def __call__(self, command: str, *options: object, sets: str = "", **more: Any) -> Done:
        """`sets` are settings, separated by spaces."""
        overrides = [word for setting in sets.split() for word in ("--set", setting)]
        return stream_learner(command, self.file, *overrides, *options, folder=self.folder, **more)

    def output(self, command: str, *options: object, **more: Any) -> str:
        """Run a command that succeeds, and return its output."""
        done = self(command, *options, **more)
        assert done.code == ExitCode.OK, done.err
        assert done.err == ""
        return done.out


def failure(done: Done, code: ExitCode) -> str:
    """The one line that a failed command says."""
    assert done.code == code, done.err
    assert done.err.startswith("error: "), done.err
    assert done.err.count("\n") == 1, done.err
    assert done.err.endswith("\n")
    return done.err.removeprefix("error: ").strip()
