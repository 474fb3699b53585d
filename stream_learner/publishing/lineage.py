"""Find the manifests between a state and a checkpoint: start at the checkpoint and follow the predecessors back."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import NamedTuple

import msgspec
import structlog

from stream_learner.checkpoints.store import Store
from stream_learner.config import Settings
from stream_learner.contract import keys
from stream_learner.contract.manifest import Arithmetic, Manifest, decode_manifest, digest
from stream_learner.contract.spans import offsets_in
from stream_learner.errors import StateError, StreamLearnerError, UsageError
from stream_learner.streams.history import History
from stream_learner.streams.manifests import Foreign, Found

log = structlog.get_logger()

BEGINNING = "0"
# Offsets in a block. The history topic is read backward in blocks. Each block is twice as large as the one before, up
# to LARGEST_BLOCK. A manifest takes two offsets: one for its record, one for the end of its transaction.
FIRST_BLOCK = 16
LARGEST_BLOCK = 1_024
MOST_SHOWN = 3


@dataclass
class Path:
    """The manifests that lead from the state of `start` to the checkpoint `end`.

    If `start` is None, the manifests begin with the first checkpoint.
    """

    end: Manifest
    start: Manifest | None = None
    between: list[int] = field(default_factory=list)
    """Offsets in the history topic of the manifests between `start` and `end`, the last one first."""
    offsets: int = 0
    """Number of input offsets that are learned on the path."""
    changes: list[str] = field(default_factory=list)
    """Descriptions of changes of settings, program or machine, newest first. The last one may count earlier changes."""

    def manifests(self, history: History) -> Iterator[Manifest]:
        """Yield the manifests after `start` in order. Only one at a time is in memory."""
        if self.between:
            wanted = {*self.between}
            for found in history.read(self.between[-1], self.between[0] + 1):
                if found.offset in wanted:
                    yield found.manifest
        yield self.end


class Link(NamedTuple):
    """Fields of a manifest that the search keeps in memory. All manifests together may be too large for the memory."""

    offset: int
    sequence: int
    predecessor: str | None
    offsets: int
    made_with: dict[str, str]
    is_start: bool


def find_path(settings: Settings, history: History, store: Store, start: str, target: str) -> Path:
    """Find the path from `start` to `target`, the arguments `--from` and `--to` of `rebuild`.

    Reads at most about twice as many manifests as the path has. Raises UsageError, StateError, KafkaUnavailableError.
    """
    end, at = _target(settings, history, target)
    not_before = UsageError(
        f"--from {start} is not the state of a checkpoint before {end.sequence}; give a sequence, the key or URL of a "
        f"state, a file with its bytes, or {BEGINNING} for the beginning"
    )
    if start.isdecimal() and int(start) >= end.sequence:
        raise not_before
    path, is_start, foreign = Path(end, offsets=offsets_in(end.spans)), _matches(start, store), Foreign(history.topic)
    link = Link(at, end.sequence, end.predecessor, 0, made_with(end.program, end.arithmetic), False)
    block: dict[str, Link] = {}
    changes = 0
    read_from, size = at, FIRST_BLOCK
    while link.predecessor is not None:
        before = block.get(link.predecessor)
        if before is None or before.offset > link.offset:  # a later offset is a copy that another program sent
            if read_from <= history.first:
                raise UsageError(
                    f"the history topic has no manifests before checkpoint {link.sequence}; choose a later --from"
                )
            read_from, until = max(history.first, read_from - size), read_from
            block, size = {}, min(2 * size, LARGEST_BLOCK)
            for found in history.read(read_from, until, foreign):
                block.setdefault(found.digest, _link(found, is_start))
            continue
        if before.is_start:
            path.start = next(history.read(before.offset, before.offset + 1)).manifest
            break
        if changed := made_otherwise(link.made_with, before.made_with):
            changes += 1
            if changes <= MOST_SHOWN:
                path.changes.append(f"checkpoint {link.sequence} was made with {changed}, unlike {before.sequence}")
        path.between.append(before.offset)
        path.offsets += before.offsets
        link = before
    if foreign.offsets:
        log.warning("records that are not manifests of the run were skipped", why=str(foreign))
    if path.start is None and start != BEGINNING:
        raise not_before
    if changes > MOST_SHOWN:
        path.changes.append(f"{changes - MOST_SHOWN} earlier changes")
    return path


def _link(found: Found, is_start: Callable[[Manifest], bool]) -> Link:
    manifest = found.manifest
    made = made_with(manifest.program, manifest.arithmetic)
    covered = offsets_in(manifest.spans)
    return Link(found.offset, manifest.sequence, manifest.predecessor, covered, made, is_start(manifest))


def made_with(program: str, arithmetic: Arithmetic) -> dict[str, str]:
    """Return the program version, machine properties and settings that determine a state's bytes, by name."""
    properties = msgspec.structs.asdict(arithmetic).items()
    return {"program": program} | {name: str(value) for name, value in properties if value is not None}


def made_otherwise(made: dict[str, str], other: dict[str, str]) -> str:
    """Describe how `made` differs from `other`. Return an empty string if they are equal."""
    differing = [name for name in made if name in other and made[name] != other[name]]
    return ", ".join("other settings" if n == "settings" else f"{n} {made[n]} (not {other[n]})" for n in differing)


def _target(settings: Settings, history: History, target: str) -> tuple[Manifest, int]:
    """Return the manifest to rebuild and its offset in the history topic. If the topic lacks it, return the end."""
    try:
        if target.isdecimal():
            found = history.find(int(target))
            if found is None:
                raise _none(settings, history, target)
            return found.manifest, found.offset
        value = FilePath(target).read_bytes()
        manifest = decode_manifest(value)
    except OSError as error:
        raise UsageError(f"--to {target} is neither a sequence nor a file that can be read: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"--to {target} is {error}") from None
    found = history.find(manifest.sequence, manifest.epoch)
    if found and found.digest == digest(value):
        return manifest, found.offset
    if settings.security.verify_key_files:
        raise StateError(f"--to {target} is not one of the signed manifests in the history topic")
    return manifest, history.end


def _none(settings: Settings, history: History, target: str) -> StreamLearnerError:
    """Return the error for a target that the history topic does not have."""
    foreign = Foreign(history.topic)
    sequences = [found.manifest.sequence for found in history.read(history.first, history.end, foreign)]
    if sequences:
        return UsageError(
            f"--to {target} is not in the history topic, which has checkpoints {min(sequences)} to {max(sequences)}"
        )
    skipped = f", only other records: {foreign}" if foreign.offsets else ""
    return StateError(
        f"topic {history.topic} holds no manifest of run {settings.run.id!r}{skipped}; there is nothing to rebuild"
    )


def _matches(start: str, store: Store) -> Callable[[Manifest], bool]:
    if start.isdecimal():
        return lambda manifest: manifest.sequence == int(start)
    if is_file(start):
        name = digest(bytes_of(start))
        return lambda manifest: manifest.state.digest == name
    # The store may have moved since the manifest was written.
    return lambda m: start in (m.state.key, m.url(m.state), f"{store.url}/{m.state.key}")


def is_file(start: str) -> bool:
    """Return whether --from names a file with a state's bytes."""
    return not (start.isdecimal() or "://" in start or keys.is_key(start))


def bytes_of(start: str) -> bytes:
    """Read the file that --from names. Raises UsageError."""
    try:
        return FilePath(start).read_bytes()
    except OSError as error:
        raise UsageError(
            f"--from {start} is neither a sequence, a key, a URL nor a file that can be read: {error.strerror}"
        ) from None
