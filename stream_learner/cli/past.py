"""The commands `releases` and `history`, which show what a run has released and decided."""

from typing import Annotated

import msgspec
import typer
from rich.bar import Bar
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from stream_learner.cli.options import ConfigFile, Overrides
from stream_learner.cli.output import load_follower, out, say, say_json
from stream_learner.contract.manifest import Decision
from stream_learner.contract.window import ClassAccuracy, Score
from stream_learner.text import printable

PLOT_COLUMNS = 40
# Width of a table that is not written to a terminal.
FILE_COLUMNS = 140
# Narrower terminals do not show the columns of `releases` with much text.
WIDE_COLUMNS = 110

AsJson = Annotated[bool, typer.Option("--json", help="Print everything as one JSON document.")]


def releases(
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    plot: Annotated[bool, typer.Option("--plot", help="Draw the test accuracy of each release.")] = False,
) -> None:
    """Show the releases that are kept as EPOCH/SEQUENCE, with their accuracies, and which of them followers use."""
    from stream_learner.follow.past import read_releases

    found = read_releases(load_follower(config_file, overrides))
    if as_json:
        say_json(msgspec.json.encode(found).decode())
        return
    is_wide = not out.is_terminal or out.width >= WIDE_COLUMNS
    wide = ["lowest classes", "decision"] if is_wide else []
    table = _table("release", "time", "test", "validation", "records", *wide, "use")
    for release in found:
        text = [Text(", ".join(map(_recall, release.lowest))), _verdict(release.decision)] if is_wide else []
        table.add_row(
            f"{release.epoch}/{release.sequence}",
            _time(release.created_at),
            _score(release.test),
            _score(release.validation),
            _number(release.records),
            *text,
            ", ".join(
                [
                    *(["in use"] if release.used else []),
                    *(["pinned"] if release.pinned else []),
                    *(["withdrawn"] if release.withdrawn else []),
                    *release.followers,
                ]
            ),
        )
    _print(table)
    if not is_wide:
        say(f"a terminal with {WIDE_COLUMNS} columns also shows the lowest classes and the decisions")
    if plot:
        _plot([(release.sequence, release.test.accuracy) for release in found])


def history(
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Number of newest checkpoints to show.")] = 20,
) -> None:
    """Show the windows and the release decisions of the newest checkpoints."""
    from stream_learner.follow.past import read_checkpoints

    found = read_checkpoints(load_follower(config_file, overrides), limit)
    if as_json:
        say_json(msgspec.json.encode(found).decode())
        return
    if not found:
        say("no checkpoint yet")
        return
    table = _table("checkpoint", "time", "records", "rejected", "prequential", "drifts", "decision")
    for checkpoint in found:
        window, decision = checkpoint.window, checkpoint.decision
        if decision is None:
            said = ""
        else:
            said = f"{'released' if decision.released else 'refused'}: {printable(decision.reason)}"
        if checkpoint.rolled_back_to:
            said += f"; training went back to release {checkpoint.rolled_back_to}"
        table.add_row(
            f"{checkpoint.epoch}/{checkpoint.sequence}",
            _time(checkpoint.created_at),
            _number(window and window.records),
            _number(window and sum(window.rejected.values())),
            _percent(window and window.prequential.accuracy),
            _number(window and window.drift_count),
            Text(said),
        )
    _print(table)


def _plot(accuracies: list[tuple[int, float | None]]) -> None:
    """Draw a bar for each release. The axis begins at the tenth below the lowest accuracy, so that changes show."""
    least = min((accuracy for _, accuracy in accuracies if accuracy is not None), default=0.0)
    begin = min(int(least * 10) / 10, 0.9)
    table = Table(
        Column("release", justify="right"), Column(f"test accuracy, {begin:.0%} to 100%"), "", box=None, pad_edge=False
    )
    for sequence, accuracy in accuracies:
        bar = Bar(1 - begin, 0, (accuracy or begin) - begin, width=PLOT_COLUMNS)
        table.add_row(str(sequence), bar, _percent(accuracy))
    _print(table)


def _table(*columns: str) -> Table:
    whole = ("release", "checkpoint", "time")
    return Table(
        *(Column(name, overflow="fold", no_wrap=name in whole) for name in columns),
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )


def _print(table: Table) -> None:
    (out if out.is_terminal else Console(width=FILE_COLUMNS)).print(table)


def _time(created_at: str) -> str:
    return created_at[:19].replace("T", " ")


def _verdict(decision: Decision | None) -> str:
    """Return the mean recall of a released candidate, and that of the release before, if they were compared."""
    if decision is None or decision.candidate is None:
        return ""
    last = "" if decision.last is None else f", last {decision.last:.1%}"
    return f"{decision.candidate:.1%}{last}{' (abstained)' if decision.abstained else ''}"


def _score(score: Score) -> str:
    return f"{_percent(score.accuracy)} of {score.total}"


def _recall(of: ClassAccuracy) -> str:
    return f"{printable(str(of.label))} {_percent(of.correct / of.total if of.total else None)}"


def _number(number: int | None) -> str:
    return "" if number is None else str(number)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"
