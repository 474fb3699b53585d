"""Faults of a data set, reported in one message before anything is fed."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from stream_learner.errors import DataError

NAMED = 5


class Fault(NamedTuple):
    """A file, folder or row of a data set that cannot be fed, and the reason."""

    place: str
    reason: str


def refuse(root: Path, faults: Iterable[Fault]) -> None:
    """Raise DataError with the number of faults and the first ones, if there are any."""
    found = list(dict.fromkeys(faults))
    if not found:
        return
    count = f"{len(found):,} fault{'s' if len(found) > 1 else ''}"
    first = "; ".join(f"{place}: {reason}" for place, reason in found[:NAMED])
    more = f"; and {len(found) - NAMED:,} more" if len(found) > NAMED else ""
    raise DataError(f"{root} has {count}, so nothing is fed: {first}{more}. Correct, convert or remove these")
