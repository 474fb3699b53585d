"""The help of every command, and the version."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from command_line import MODULE, failure, stream_learner

from stream_learner import __version__
from stream_learner.cli import app
from stream_learner.errors import ExitCode

SCRIPT = [str(Path(sys.executable).with_name("stream-learner"))]
COMMANDS = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
WIDE = {"COLUMNS": "500"}  # nothing is wrapped


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_every_option(name: str, tmp_path: Path):
    done = stream_learner(name, "--help", folder=tmp_path, environment=WIDE)
    assert done.code == ExitCode.OK
    assert COMMANDS[name].help.splitlines()[0] in done.out
    for parameter in COMMANDS[name].params:
        assert parameter.help, f"{name} {parameter.name} has no help"
        shown = parameter.metavar if parameter.param_type_name == "argument" else parameter.opts[0]
        assert re.search(rf"{shown} .*{re.escape(parameter.help)}", done.out)


def test_help_lists_every_command_and_debug(tmp_path: Path):
    done = stream_learner("--help", folder=tmp_path, environment=WIDE)
    for name, command in COMMANDS.items():
        assert re.search(rf"{name} +{re.escape(command.help.splitlines()[0])}", done.out)
    assert "--debug" in done.out
    alone = stream_learner(folder=tmp_path, environment=WIDE)
    assert alone.out.strip() == done.out.strip()
    failure(alone, ExitCode.USAGE)


@pytest.mark.parametrize("arguments", [["config", "--help"], ["config", "missing.toml"]])
def test_the_module_is_the_script(arguments: list[str]):
    module, script = (
        subprocess.run([*command, *arguments], capture_output=True, text=True) for command in (MODULE, SCRIPT)
    )
    assert (module.returncode, module.stdout, module.stderr) == (script.returncode, script.stdout, script.stderr)


def test_the_version_is_the_packages(tmp_path: Path):
    assert stream_learner("--version", folder=tmp_path) == (ExitCode.OK, f"stream-learner {__version__}\n", "")
