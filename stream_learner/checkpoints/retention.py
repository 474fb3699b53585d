"""Retention: the states and releases that are kept, and the objects that may be deleted."""

import re
from datetime import datetime, timedelta

from msgspec.structs import replace

from stream_learner.checkpoints.store import Store
from stream_learner.config import MAX_RELEASES
from stream_learner.contract.manifest import Manifest
from stream_learner.contract.objects import Earlier, Object, State
from stream_learner.errors import StoreError

ORPHAN_AGE = timedelta(hours=24)
# Keys of a checkpoint's objects, below the run's folder: `<sequence>-<uuid>/<name>`.
CHECKPOINT = re.compile(r"\d{12,}-[^/]+/")
# A file of an object that a killed process did not finish. It occurs only if the store is a folder.
STAGED = re.compile(r"#\d+$")
# Keys of parts of states, which later checkpoints share: `memory/<sequence>-<uuid>`.
PART = re.compile(r"memory/\d{12,}-[^/]+$")


def keep(existing: list[State], new: State, count: int) -> list[State]:
    """Return the states to keep: the newest `count`, including the new one, and the states of their releases.

    These are at most `count` + 1 states. Each state names the last release at the time of its save. So the newest
    `count` states name at most one release that is older than all of them.
    """
    states = [*existing, new]
    newest = states[-count:]
    wanted = {state.sequence for state in newest} | {state.release for state in newest}
    return [state for state in states if state.sequence in wanted]


def keep_releases(
    earlier: list[Earlier], count: int, days: float | None, now: str, pinned: str | None = None
) -> list[Earlier]:
    """Return the earlier releases to keep: the newest `count` - 1, those of the last `days` days, and the pinned one.

    The last release is not in `earlier`, but is one of the `count`. At most MAX_RELEASES are kept, including the last
    release. `now` is the time of the new manifest, `pinned` the digest of the pinned release.
    """
    since = datetime.fromisoformat(now) - timedelta(days=days) if days is not None else None
    kept = [
        release
        for place, release in enumerate(reversed(earlier), start=2)
        if place <= count
        or (since and place <= MAX_RELEASES and datetime.fromisoformat(release.created_at) > since)
        or release.object.digest == pinned
    ]
    return kept[::-1]


def share(kept: list[State], parts: dict[int, list[Object]]) -> tuple[list[State], list[Object]]:
    """Return the states and one shared list of parts.

    Each state's `parts` are indices into the list, which has each part once. The argument `parts` holds the parts of
    each state, by sequence.
    """
    shared = list(dict.fromkeys(part for state in kept for part in parts[state.sequence]))
    places = {part: place for place, part in enumerate(shared)}
    return [replace(s, parts=[places[part] for part in parts[s.sequence]]) for s in kept], shared


def delete_dropped(store: Store, before: Manifest, after: Manifest) -> None:
    """Delete the objects that `before` names and `after` does not.

    This process must have committed `after`. A worker that was replaced cannot commit, so it never deletes objects that
    the new active worker names. Raises StoreError.
    """
    named = {found.key for found in after.objects()}
    store.delete([found.key for found in before.objects() if found.key not in named])


def sweep_orphans(store: Store, run_id: str, manifest: Manifest) -> None:
    """Delete objects of this run that no manifest names, once they are older than the longest possible publication.

    The age is measured by the store's clock, relative to the state of the newest manifest. Raises StoreError.
    """
    named = {found.key for found in manifest.objects()}
    objects = store.times(f"{run_id}/")
    now = objects.get(manifest.state.key)
    if now is None:
        raise StoreError(
            f"object {store.url}/{manifest.state.key} was just written, but is not listed; orphans are not deleted"
        )

    def is_orphan(key: str) -> bool:
        name = key.removeprefix(f"{run_id}/")
        written = CHECKPOINT.match(name) or PART.match(name)
        return bool(written and key not in named) or bool(STAGED.search(name))

    store.delete([key for key, written in objects.items() if now - written > ORPHAN_AGE and is_orphan(key)])
