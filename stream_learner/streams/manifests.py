"""Reads a run's manifests, and separates them from foreign records in the same topics."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from stream_learner.config import AnySettings
from stream_learner.contract.manifest import Manifest, NewerVersionError, decode_manifest, digest
from stream_learner.contract.signatures import Verifier
from stream_learner.contract.spans import RowPositions, each, row_positions
from stream_learner.contract.topics import Names
from stream_learner.errors import StateError
from stream_learner.formats.record import Record
from stream_learner.streams.journal import read_committed

# Number of offsets at the history topic's end that a check reads first. If these offsets are not enough, the check
# reads ten times as many offsets, and finally the whole topic.
LOOK_TAIL = 10
# The same number for a check after the checkpoints topic held foreign records or lacked the newest manifest.
HISTORY_TAIL = 1_000
ONE_RUN = "topics belong to one run: set topics.prefix or run.id"
SIGN_FIRST = 'a run that has not been signed must write a signed checkpoint first (docs/security.md, "Signing")'


class Found(NamedTuple):
    """A manifest of the run, the digest of its bytes, and its offset."""

    manifest: Manifest
    digest: str
    offset: int


@dataclass
class Foreign:
    """Offsets of a topic's foreign records, and the reason why the last of these records is foreign.

    A record is foreign if it is not a manifest of the run, or if it repeats an older manifest.
    """

    topic: str
    offsets: list[int] = field(default_factory=list)
    last: int = -1
    why: str = ""

    def add(self, offset: int, why: str) -> None:
        self.offsets.append(offset)
        if offset > self.last:
            self.last, self.why = offset, why

    def __str__(self) -> str:
        return f"{self.topic} has {len(self.offsets)} foreign records, the last at offset {self.last} ({self.why})"


@dataclass(frozen=True)
class Newest:
    """The run's newest manifest (None if there is none), and the foreign records that were found with it."""

    found: Found | None
    foreign: list[Foreign]
    displaced: bool = False
    """Whether only the history topic holds the manifest."""
    behind: bool = False
    """Whether the run's mirrored positions are ahead of the manifest, and foreign records were skipped. The newest
    manifest is then missing or damaged."""
    last_epoch: int = 0
    """Highest epoch of all manifests that were read, including manifests of an older checkpoints topic. It is 0 if no
    manifest was read."""


def read_manifests(
    settings: AnySettings, foreign: Foreign, tail: int | None = None, wait: bool = True
) -> Iterator[Found]:
    """Yield the run's manifests in `foreign.topic`, each once, and add all other records to `foreign`.

    `tail` and `wait` are passed to `read_committed`. Raises KafkaUnavailableError, and StateError when a newer version
    of this program wrote a manifest.
    """
    verifier = settings.security.verifier
    seen: set[str] = set()
    for record in read_committed(settings, foreign.topic, tail, wait):
        try:
            found = accepted(record, settings.run.id, verifier)
            if found.digest in seen:
                raise ValueError("it is a copy of an earlier manifest")
        except ValueError as error:
            foreign.add(record.offset, str(error))
        else:
            seen.add(found.digest)
            yield found


def read_newest(settings: AnySettings, topic_id: str, mirrored: RowPositions, wait: bool = True) -> Newest:
    """Return the run's newest manifest, which has the highest sequence of the highest epoch. Skip foreign records.

    `topic_id` is the current id of the checkpoints topic. `mirrored` are the run's mirrored positions, if known.
    If they show that no manifest is missing, read only the checkpoints topic. Otherwise also read the end of
    the history topic, which holds the same manifests: in the checkpoints topic, compaction may have deleted the newest
    manifest because of a foreign record with the run's key. Raises the errors of `read_manifests`.
    """
    names = Names.under(settings.prefix)
    foreign, newest = Foreign(names.checkpoints), None
    # Do not skip manifests of an older topic with the same name. The caller reports them with a better message.
    for found in read_manifests(settings, foreign, wait=wait):
        if newest and found.manifest.order <= newest.manifest.order:
            foreign.add(found.offset, f"{_named(found.manifest)} comes after {_named(newest.manifest)}")
        else:
            newest = found
    met = [foreign] if foreign.offsets else []
    wrong = bool(met) or _behind(newest, mirrored)
    if mirrored and not wrong:
        return Newest(newest, [], last_epoch=_epoch(newest))
    in_history, last_epoch, history = _newest_in_history(
        settings, topic_id, mirrored, wait, HISTORY_TAIL if wrong else LOOK_TAIL
    )
    met += [history] if history.offsets and (wrong or in_history) else []
    displaced = newest is None and in_history is not None
    if newest is None or (in_history and in_history.manifest.order > newest.manifest.order):
        newest = in_history
    behind = bool(met) and _behind(newest, mirrored)
    return Newest(newest, met, displaced, behind, max(_epoch(newest), last_epoch))


def _newest_in_history(
    settings: AnySettings, topic_id: str, mirrored: RowPositions, wait: bool, tail: int | None
) -> tuple[Found | None, int, Foreign]:
    """Return the newest manifest of the current checkpoints topic, the highest epoch, and the foreign records.

    First read the last `tail` offsets of the history topic, then as many as needed.
    """
    names = Names.under(settings.prefix)
    while True:
        newest, last_epoch, foreign = None, 0, Foreign(names.history)
        for found in read_manifests(settings, foreign, tail, wait):
            last_epoch = max(last_epoch, found.manifest.epoch)
            if found.manifest.topic_ids.get(names.checkpoints) != topic_id:
                continue
            if newest is None or found.manifest.order > newest.manifest.order:
                newest = found
        is_enough = not foreign.offsets if tail == LOOK_TAIL else newest is not None
        if tail is None or (is_enough and not _behind(newest, mirrored)):
            return newest, last_epoch, foreign
        tail = tail * 10 if tail < 100 * HISTORY_TAIL else None


def no_manifest(settings: AnySettings, newest: Newest) -> StateError:
    """Return the error for a topic that holds foreign records only."""
    return StateError(
        f"topic {Names.under(settings.prefix).checkpoints} holds no manifest of run {settings.run.id!r}, only foreign "
        f"records: {'; '.join(map(str, newest.foreign))}. Nothing was changed; {advice(settings)}"
    )


def advice(settings: AnySettings) -> str:
    """Return advice for topics that hold only foreign records."""
    return f"{ONE_RUN}; {SIGN_FIRST}" if settings.security.verifier else ONE_RUN


def accepted(record: Record, run_id: str, verifier: Verifier | None) -> Found:
    """Decode a manifest of the run.

    Raises ValueError when the record is not such a manifest, StateError when a newer version of this program wrote it.
    """
    if record.value is None:
        raise ValueError(record.unreadable or "it has no value")
    check_signature(record, verifier)
    try:
        manifest = decode_manifest(record.value)
    except NewerVersionError as error:
        if error.run_id != run_id:
            raise
        raise StateError(
            f"offset {record.offset} of topic {record.topic} was written by a newer version of this program ({error}); "
            "start that version"
        ) from None
    if manifest.run_id != run_id:
        raise ValueError(f"it belongs to run {manifest.run_id!r}")
    return Found(manifest, digest(record.value), record.offset)


def check_signature(record: Record, verifier: Verifier | None) -> None:
    """Raise ValueError when there are keys, and none of them has signed the record's value."""
    if verifier and not verifier.accepts(record.value or b"", record.headers):
        raise ValueError("it is not signed by one of security.verify_key_files")


def _epoch(found: Found | None) -> int:
    return found.manifest.epoch if found else 0


def _named(manifest: Manifest) -> str:
    return f"manifest {manifest.sequence} of epoch {manifest.epoch}"


def _behind(newest: Found | None, mirrored: RowPositions) -> bool:
    if newest is None:
        return bool(mirrored)
    # Compare only partitions in the manifest: the mirror may include topics from before a `run --fresh`.
    reached = row_positions(newest.manifest.positions, newest.manifest.rows)
    return any(reached.get(topic, {}).get(p, place) < place for topic, p, place in each(mirrored))
