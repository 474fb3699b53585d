"""Rebuilds a checkpoint from an earlier state and the ledgers of the manifests since then.

If the bytes differ on the same software and hardware, a manifest is wrong.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import structlog

from stream_learner.checkpoints.store import Store
from stream_learner.config import Settings
from stream_learner.contract import ledger, tensors
from stream_learner.contract.manifest import Manifest, digest
from stream_learner.contract.objects import State
from stream_learner.contract.spans import Positions, Span, each, offsets_in
from stream_learner.contract.tensors import Arrays
from stream_learner.errors import MismatchError, StateError
from stream_learner.formats.decoder import Decoder
from stream_learner.formats.record import Place, Record, Rows
from stream_learner.learning.identity import check_network
from stream_learner.learning.learner import Learner
from stream_learner.learning.process import set_up_torch
from stream_learner.networks.tensors import as_arrays
from stream_learner.publishing.checkpoint_writer import PROGRAM
from stream_learner.publishing.lineage import BEGINNING, bytes_of, find_path, is_file, made_otherwise, made_with
from stream_learner.publishing.recover import SHARDS
from stream_learner.publishing.shares import encoded_state
from stream_learner.publishing.snapshot import Snapshot
from stream_learner.publishing.topic_ids import check_topic_ids
from stream_learner.run.arrivals import Read, with_predictions
from stream_learner.run.batch import Batch
from stream_learner.run.batches import Decode
from stream_learner.run.driver import Driver
from stream_learner.run.lives import setting_aside
from stream_learner.run.outage import Outage, patient
from stream_learner.streams.cluster import Cluster
from stream_learner.streams.replay import Replay
from stream_learner.streams.rights import Role

log = structlog.get_logger()


class Rereading:
    """Reads one partition again for batches, which may begin and end inside a message with rows."""

    def __init__(self, replay: Replay, offset: int, rows: int):
        """Begin at `offset`, after `rows` rows of the message there."""
        self.rows = rows
        """Number of rows that were read of the next message."""
        self._replay = replay
        self._offset = offset
        self._inside: Record | None = None  # the message in which the last batch ended
        self._found: Rows | None = None  # its rows

    def forget(self) -> None:
        """Decode the message in which the last batch ended again. The next manifest may set this message aside."""
        self._found = None

    def skip(self, offset: int) -> None:
        """Continue at `offset`."""
        self._replay.skip(offset)
        self._offset, self.rows, self._inside = offset, 0, None

    def read(self, end: int, rows: int, batch: Batch, read: Read) -> None:
        """Add the records up to the offset `end` to the batch, and the rows up to `rows` of the message at `end`.

        Raises ValueError when that message has fewer rows.
        """
        begun, self._inside = self._inside, None
        for record in chain([begun] if begun else [], self._replay.read(end + (rows > 0))):
            found = (record is begun and self._found) or batch.add(record, read)
            if found is None:
                continue
            first = self.rows if record.offset == self._offset else 0
            last = rows if record.offset == end else len(found.fields)
            for number in range(first, last):
                batch.add(record.at_row(number, found), read)
            if record.offset == end and rows <= len(found.fields):
                self._inside, self._found = record, found
        if rows and not self._inside:
            raise ValueError(f"the message at offset {end} has no {rows} rows")
        self._offset, self.rows = end, rows


@dataclass(frozen=True)
class Rebuilt:
    """Result of a rebuild from checkpoint `start` (0: the beginning) to `end`.

    `batches` and `records` are the numbers of batches and records that were learned again. `state` is the digest of the
    state, which equals the digest in the manifest. `release` is the digest of the released weights, which also equals
    the digest in the manifest. `release` is None if the checkpoint released no model.
    """

    start: int
    end: int
    batches: int
    records: int
    state: str
    release: str | None


def rebuild(
    settings: Settings,
    store: Store,
    cluster: Cluster,
    start: str,
    target: str,
    on_progress: Callable[[int, int], None],
) -> Rebuilt:
    """Learn the records of a checkpoint again and compare the bytes.

    `start` is a checkpoint's sequence, its state's key or URL, or a file with the state's bytes. 0 is the run's start.
    `target` is a sequence or a file with a manifest. `on_progress(offsets, total)` is called repeatedly. Raises
    MismatchError when the bytes differ, UsageError, StateError, InputError, StoreError, DependencyError,
    KafkaUnavailableError.
    """
    cluster.check_topics(Role.REBUILD)
    with ExitStack() as opened:
        history = opened.enter_context(closing(cluster.history()))
        path = find_path(settings, history, store, start, target)
        gone = "The records that were learned are gone, so this checkpoint cannot be rebuilt"
        topic_ids = cluster.topic_ids(settings.topics_read)
        check_topic_ids(path.end.topic_ids, topic_ids, gone)
        driver = _resumed(settings, store, path.start, start)
        doubts = [*path.changes, *_differences(driver.learner, path.end)]
        if doubts:
            log.warning("the bytes may differ", why="; ".join(doubts))
        batches = records = done = 0
        decided = None
        decode = patient(Decoder.from_settings(settings), Outage(settings.kafka.give_up_s, threading.Event()))
        replays: dict[tuple[str, int], Rereading] = {}
        for manifest in path.manifests(history):
            driver.progress.close()  # no snapshot here, because only the last state is compared
            check_topic_ids(manifest.topic_ids, topic_ids, gone)  # a run survives a change of its predictions topic
            for topic, partition, offset in each(_begin(manifest)):
                positions = driver.progress.positions.setdefault(topic, {})
                if topic == settings.predictions_topic:
                    positions[partition] = offset
                positions.setdefault(partition, offset)
            for topic, partition, span in each(manifest.spans):
                if (topic, partition) not in replays:
                    replay = opened.enter_context(closing(cluster.replay(topic, partition, span.start)))
                    rows = driver.progress.rows.get(topic, {}).get(partition, 0)
                    replays[topic, partition] = Rereading(replay, span.start, rows)
            for replay in replays.values():
                replay.forget()
            shards = _batches(settings, manifest, replays, decode)
            while step := [*islice(shards, settings.run.shards)]:
                driver.learn(*step)
                decided = driver.decide() if driver.learner.release_due else None
                batches, records = batches + 1, records + sum(batch.records for batch in step)
                done += sum(offsets_in(batch.spans) for batch in step)
                on_progress(done, path.offsets)
            if driver.progress.rows != manifest.rows:
                raise StateError(
                    f"checkpoint {manifest.sequence} cannot be rebuilt: the rows that were learned of messages at its "
                    f"positions are {driver.progress.rows} by its ledger, but {manifest.rows} by `rows`"
                )
    digests = _compared(path.end, driver.snapshot(decided), doubts)
    return Rebuilt(path.start.sequence if path.start else 0, path.end.sequence, batches, records, *digests)


def _begin(manifest: Manifest) -> Positions:
    """Return the positions before a manifest's spans. They include partitions without a span."""
    spans = manifest.spans
    return {
        topic: {p: spans.get(topic, {}).get(p, Span(at, at)).start for p, at in partitions.items()}
        for topic, partitions in manifest.positions.items()
    }


def _resumed(settings: Settings, store: Store, before: Manifest | None, start: str) -> Driver:
    set_up_torch(settings)
    if before is None:
        return Driver.fresh(settings, {})
    if before.release:
        check_network(before.release.model, settings.model)
    data = bytes_of(start) if is_file(start) else store.fetch(before.state)
    try:
        state, released = _decoded(data), None
        parts = store.fetch_all(before.parts_of(before.kept[-1]), known={})
        shards = [_decoded(parts[digest]) for digest in state[1].get(SHARDS, ())]
        saved = before.released_state()
        if before.release and saved:
            released = state if saved.object == before.state else _decoded(_released(store, saved))
        return Driver.resumed(settings, before.positions, state, parts, released, shards, rows=before.rows)
    except (ValueError, KeyError) as error:
        raise StateError(f"the state of checkpoint {before.sequence} does not fit the settings: {error}") from None


def _decoded(data: bytes) -> tuple[Arrays, dict[str, Any]]:
    document = tensors.decode_document(data)
    return tensors.decode(data), document


def _released(store: Store, saved: State) -> bytes:
    """Return the state of the last release. The gate compares candidates with it, and training may return to it."""
    try:
        return store.fetch(saved.object)
    except StateError as error:
        raise StateError(
            f"the state of checkpoint {saved.sequence}, which has the last release, is also needed: {error}. "
            f"For --from, choose a checkpoint that released a model, or {BEGINNING} for the beginning"
        ) from None


def _batches(
    settings: Settings, manifest: Manifest, replays: dict[tuple[str, int], Rereading], decode: Decode
) -> Iterator[Batch]:
    """Read the batches of a manifest's ledger again, and yield them: for each step, one for each shard."""
    poisoned = {Place(topic, p, at) for topic, p, offsets in each(manifest.poisoned) for at in offsets}
    poisoned |= {Place(topic, p, *at) for topic, p, rows in each(manifest.poisoned_rows) for at in rows}
    read = with_predictions(settings, setting_aside(poisoned, decode))
    at = {(topic, partition): span.start for topic, partition, span in each(manifest.spans)}
    try:
        for pieces in ledger.decode(manifest.ledger, manifest.spans):
            batch = Batch()
            for topic, partition, end, rows in pieces:
                replay, start = replays[topic, partition], at[topic, partition]
                skipped = replay.rows
                for lost in manifest.lost.get(topic, {}).get(partition, ()):
                    if start <= lost.start < end:
                        replay.read(lost.start, 0, batch, read)
                        replay.skip(lost.end)
                replay.read(end, rows, batch, read)
                batch.cover(topic, partition, start, end, skipped, rows)
                at[topic, partition] = end
            yield batch
    except ValueError as error:
        raise StateError(f"checkpoint {manifest.sequence} cannot be rebuilt: {error}") from None


def _differences(learner: Learner, end: Manifest) -> list[str]:
    """Describe how software, hardware and settings have changed since the checkpoint was computed."""
    differing = made_otherwise(made_with(PROGRAM, learner.arithmetic), made_with(end.program, end.arithmetic))
    return [f"it is rebuilt with {differing}, unlike checkpoint {end.sequence}"] if differing else []


def _compared(end: Manifest, snapshot: Snapshot, doubts: list[str]) -> tuple[str, str | None]:
    """Return the digests of the state and of the released weights. Raises MismatchError if the manifest differs."""
    shards = [digest(tensors.encode(*shard)) for shard in snapshot.shards]
    made = {"state": (digest(encoded_state(snapshot, shards)), end.state.digest)}
    if end.released and end.release and snapshot.candidate:
        made["release"] = digest(tensors.encode(as_arrays(snapshot.candidate.parameters))), end.release.object.digest
    for what, (rebuilt, published) in made.items():
        if rebuilt != published:
            raise MismatchError(
                f"the {what} of checkpoint {end.sequence} was rebuilt as {rebuilt}, but published as {published}: "
                + ("; ".join(doubts) or "with the same settings, program and machine; your own code may differ")
            )
    return made["state"][0], made["release"][0] if "release" in made else None
