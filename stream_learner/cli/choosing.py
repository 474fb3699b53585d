"""The commands `release pin`, `release unpin` and `release withdraw`, which choose the release that followers use."""

from typing import Annotated, Literal

import typer

from stream_learner.cli.options import ConfigFile, Overrides
from stream_learner.cli.output import load_follower, say

release = typer.Typer(no_args_is_help=True, help="Choose the release that followers use. Training continues.")

Sequence = Annotated[int, typer.Argument(min=1, metavar="SEQ", help="Sequence of a release that `releases` shows.")]


@release.command()
def pin(sequence: Sequence, config_file: ConfigFile = None, overrides: Overrides = None) -> None:
    """Let all followers use this release until `release unpin`, even if there are newer ones."""
    _choose(config_file, overrides, "pin", sequence)


@release.command()
def unpin(config_file: ConfigFile = None, overrides: Overrides = None) -> None:
    """Let all followers use the newest release again."""
    _choose(config_file, overrides, "unpin")


@release.command()
def withdraw(sequence: Sequence, config_file: ConfigFile = None, overrides: Overrides = None) -> None:
    """Let no follower use this release again. This is final. Followers fall back to the newest other release."""
    _choose(config_file, overrides, "withdraw", sequence)


def _choose(
    config_file: ConfigFile,
    overrides: Overrides,
    action: Literal["pin", "unpin", "withdraw"],
    sequence: int | None = None,
) -> None:
    from stream_learner.follow.choosing import choose

    choice = choose(load_follower(config_file, overrides), action, sequence)
    if not choice.changed:
        say("this is already so; nothing was changed")
    if choice.used:
        say(f"followers use release {choice.used.sequence} of epoch {choice.used.epoch}")
    else:
        say("all releases that are kept were withdrawn; followers use none until the next release")
