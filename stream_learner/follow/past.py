"""Read the releases that are kept, and the past checkpoints of a run."""

from contextlib import closing

import msgspec

from stream_learner.config import AnySettings
from stream_learner.contract.documents import Epoch, Sequence, Time
from stream_learner.contract.manifest import Decision, Manifest
from stream_learner.contract.spans import each
from stream_learner.contract.window import ClassAccuracy, Score, Window
from stream_learner.errors import NoReleaseError
from stream_learner.follow.reading import newest_manifest, released_by
from stream_learner.streams.acks import read_acks
from stream_learner.streams.history import History
from stream_learner.streams.pins import listed, read_pins
from stream_learner.streams.windows import read_windows

LOWEST = 3
# A checkpoint takes two offsets of a topic: its record and the end of its transaction.
OFFSETS = 2


class KeptRelease(msgspec.Struct, frozen=True, kw_only=True):
    """A release whose objects exist. The fields after `test` come from its manifest in the history topic."""

    epoch: Epoch
    sequence: Sequence
    created_at: Time
    validation: Score
    test: Score
    lowest: list[ClassAccuracy]
    """The classes with the lowest recall on the test samples, at most 3, lowest first."""
    records: int | None
    """Number of input offsets between the release before and this one, where a message with many rows counts as one.
    None if unknown."""
    decision: Decision | None
    used: bool
    """Whether followers use this release: it is pinned, or the newest one that is not withdrawn."""
    pinned: bool
    withdrawn: bool
    followers: list[str]
    """Names of the followers that acknowledged this release."""


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A past checkpoint."""

    epoch: Epoch
    sequence: Sequence
    created_at: Time
    released: bool
    decision: Decision | None
    rolled_back_to: Sequence | None
    window: Window | None
    """The figures of its records. None if the metrics topic does not hold them any more."""


def read_releases(settings: AnySettings) -> list[KeptRelease]:
    """Return the releases that are kept, oldest first.

    Raises NoReleaseError before the first release, StateError, TopicsError, KafkaUnavailableError.
    """
    newest = newest_manifest(settings)
    if newest is None or newest.release is None:
        raise NoReleaseError(f"run {settings.run.id!r} has not released a model yet")
    pins, acks = read_pins(settings), read_acks(settings)
    used = pins.choose(newest)
    found, before = [], None
    with closing(History(settings)) as history:
        for kept, chosen in zip([*newest.earlier, newest.release.as_earlier()], listed(newest), strict=True):
            manifest = newest if chosen.sequence == newest.sequence else released_by(history, chosen)
            release = manifest.release if manifest else None
            found.append(
                KeptRelease(
                    epoch=chosen.epoch,
                    sequence=chosen.sequence,
                    created_at=kept.created_at,
                    validation=kept.validation,
                    test=kept.test,
                    lowest=_lowest(release.test.per_class) if release else [],
                    records=_reached(manifest) - _reached(before) if manifest and before else None,
                    decision=manifest.decision if manifest else None,
                    used=chosen == used,
                    pinned=chosen == pins.pinned,
                    withdrawn=chosen in pins.withdrawn,
                    followers=[
                        ack.name for ack in acks if (ack.epoch, ack.sequence) == (chosen.epoch, chosen.sequence)
                    ],
                )
            )
            before = manifest
    return found


def read_checkpoints(settings: AnySettings, limit: int) -> list[Checkpoint]:
    """Return the newest `limit` checkpoints, oldest first.

    Raises StateError when a newer version of this program wrote a manifest, TopicsError, KafkaUnavailableError.
    """
    with closing(History(settings)) as history:
        tail = OFFSETS * limit
        while True:
            start = max(history.first, history.end - tail)
            found = {one.manifest.order: one.manifest for one in history.read(start, history.end)}
            if len(found) >= limit or start == history.first:
                break
            tail *= 4
    windows = {window.order: window for window in read_windows(settings, tail) if window.run_id == settings.run.id}
    return [
        Checkpoint(
            epoch=manifest.epoch,
            sequence=manifest.sequence,
            created_at=manifest.created_at,
            released=manifest.released,
            decision=manifest.decision,
            rolled_back_to=manifest.rolled_back_to,
            window=windows.get(order),
        )
        for order, manifest in sorted(found.items())[-limit:]
    ]


def _lowest(classes: list[ClassAccuracy]) -> list[ClassAccuracy]:
    return sorted(classes, key=lambda one: one.correct / one.total if one.total else 1.0)[:LOWEST]


def _reached(manifest: Manifest) -> int:
    return sum(offset for _, _, offset in each(manifest.learned_positions))
