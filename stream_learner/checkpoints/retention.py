"""Retention: the states that are kept, and the objects that may be deleted."""

import re
from datetime import timedelta

from msgspec.structs import replace

from stream_learner.checkpoints.store import Store
from stream_learner.contract.manifest import Manifest, Object, State
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

    These are at most `count` + 1 states. Later states never name an earlier release, so all releases older than the
    newest `count` states are the same one.
    """
    states = [*existing, new]
    newest = states[-count:]
    wanted = {state.sequence for state in newest} | {state.release for state in newest}
    return [state for state in states if state.sequence in wanted]


def share(kept: list[State], parts: dict[int, list[Object]]) -> tuple[list[State], list[Object]]:
    """Return the states and one shared list of parts.

    Each state's `parts` are indices into the list, which has each part once. The argument `parts` holds the parts of
    each state, by sequence.
    """
    shared = list(dict.fromkeys(part for state in kept for part in parts[state.sequence]))
    places = {part: place for place, part in enumerate(shared)}
    return [replace(s, parts=[places[part] for part in parts[s.sequence]]) for s in kept], shared


def delete_dropped(store: Store, before: Manifest, after: Manifest) -> None:
    """Delete the objects of checkpoints and the parts of states that `before` keeps and `after` does not.

    This process must have committed `after`. A worker that was replaced cannot commit, so it never deletes objects that
    the new active worker names. Raises StoreError.
    """
    kept = {folder(state.object.key) for state in after.kept}
    for state in before.kept:
        if folder(state.object.key) not in kept:
            store.delete(list(store.times(folder(state.object.key))))
    parts = {part.key for part in after.parts}
    store.delete([part.key for part in before.parts if part.key not in parts])


def sweep_orphans(store: Store, run_id: str, manifest: Manifest) -> None:
    """Delete objects of this run that no manifest names, once they are older than the longest possible publication.

    The age is measured by the store's clock, relative to the state of the newest manifest. Raises StoreError.
    """
    kept = {folder(state.object.key) for state in manifest.kept}
    parts = {part.key for part in manifest.parts}
    objects = store.times(f"{run_id}/")
    now = objects.get(manifest.state.key)
    if now is None:
        raise StoreError(
            f"object {store.url}/{manifest.state.key} was just written, but is not listed; orphans are not deleted"
        )

    def is_orphan(key: str) -> bool:
        name = key.removeprefix(f"{run_id}/")
        of_a_checkpoint = bool(CHECKPOINT.match(name)) and folder(key) not in kept
        return of_a_checkpoint or (bool(PART.match(name)) and key not in parts) or bool(STAGED.search(name))

    store.delete([key for key, written in objects.items() if now - written > ORPHAN_AGE and is_orphan(key)])


def folder(key: str) -> str:
    """Return the folder of one checkpoint's objects."""
    return key.rsplit("/", 1)[0]
