"""Which states are kept, and what may be deleted."""

import re
from datetime import timedelta

from stream_learner.checkpoints.store import Store
from stream_learner.errors import StoreError
from stream_learner.records.manifest import Manifest, Release, State

ORPHAN_AGE = timedelta(hours=24)
# Objects of a checkpoint, by their keys below the run's folder: `<sequence>-<uuid>/<name>`.
CHECKPOINT = re.compile(r"\d{12,}-[^/]+/")


def keep(existing: list[State], new: State, release: Release | None, count: int) -> list[State]:
    """The states that stay: the newest `count`, the new one included, and that of the last release."""
    states = [*existing, new]
    newest = {state.sequence for state in states[-count:]}
    pinned = release.sequence if release else None
    return [state for state in states if state.sequence in newest or state.sequence == pinned]


def delete_dropped(store: Store, before: Manifest, after: Manifest) -> None:
    """Deletes the objects of checkpoints that `after`, which this process has committed, keeps no longer.

    A worker that was replaced never gets here with a manifest of its own, so it cannot delete what the new owner
    names. Raises StoreError.
    """
    kept = {state.sequence for state in after.kept}
    for state in before.kept:
        if state.sequence not in kept:
            store.delete(list(store.times(folder(store.key(state.object)))))


def sweep_orphans(store: Store, run_id: str, manifest: Manifest) -> None:
    """Deletes objects of this run that no manifest names, once they are older than any publication could take.

    The age is taken by the store's clock against the newest manifest's own state, never by this machine's. Raises
    StoreError.
    """
    kept = {folder(store.key(state.object)) for state in manifest.kept}
    objects = store.times(f"{run_id}/")
    now = objects.get(store.key(manifest.state))
    if now is None:
        raise StoreError(f"object {manifest.state.url}, just written, is not listed; no orphans are looked for")
    orphans = [
        key
        for key, written in objects.items()
        if CHECKPOINT.match(key.removeprefix(f"{run_id}/")) and folder(key) not in kept and now - written > ORPHAN_AGE
    ]
    store.delete(orphans)


def folder(key: str) -> str:
    """The folder of one checkpoint's objects."""
    return key.rsplit("/", 1)[0]
