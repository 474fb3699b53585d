"""Completion of the command line in a real bash, as a person installs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stream_learner.errors import ExitCode

# On a tab, bash calls the function that `complete` names for the program.
COMPLETE = """
source ~/.bashrc
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
$(complete -p stream-learner | grep -o '_[a-z_]*completion') stream-learner
echo "${COMPREPLY[*]}"
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    done = in_shell("bash", "stream-learner --install-completion", home=home)
    assert done.returncode == ExitCode.OK, done.stderr
    return home


def in_shell(shell: str, script: str, *arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    # Without the exit a shell would become the program, which then asks in vain which shell has started it.
    command = [shell, "-c", f"{script}\nexit", shell, *arguments]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"HOME": str(home), "PATH": path}, cwd=home
    )


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        (["reb"], "rebuild"),
        (["--ver"], "--version"),
        (["feed", "--sp"], "--split"),
        (["feed", "--order", "by"], "by_class"),
        (["run", "worker"], ""),  # bash then completes names of files
    ],
)
def test_tab_completes_commands_options_and_choices(home: Path, typed: list[str], completed: str):
    done = in_shell("bash", COMPLETE, "stream-learner", *typed, home=home)
    assert (done.stdout.strip(), done.stderr) == (completed, "")


def test_what_is_shown_is_what_is_installed(home: Path):
    done = in_shell("bash", "stream-learner --show-completion", home=home)
    assert done.stdout.strip() == (home / ".bash_completions" / "stream-learner.sh").read_text().strip()


def test_a_shell_without_completion_is_refused(home: Path):
    done = in_shell("sh", "stream-learner --show-completion", home=home)
    assert done.returncode == ExitCode.USAGE
    assert "not supported" in done.stderr
