"""Publish snapshots in numbered effects: first write objects to the store, then commit one short transaction."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from typing import Any, Protocol

import structlog

from stream_learner.checkpoints import retention
from stream_learner.checkpoints.store import Store
from stream_learner.config import Settings
from stream_learner.contract import keys, ledger, signatures, tensors
from stream_learner.contract.dead_letter import DeadLetter
from stream_learner.contract.documents import time_text
from stream_learner.contract.manifest import Manifest, OnnxGraph, Release, digest
from stream_learner.contract.objects import Chunk, Earlier, Object, Published, State
from stream_learner.contract.pins import Chosen
from stream_learner.contract.spans import Positions, RowPositions, row_positions
from stream_learner.contract.topics import Names
from stream_learner.errors import KafkaUnavailableError, StateError, StoreError
from stream_learner.formats.record import Rejection
from stream_learner.learning.outcome import Candidate
from stream_learner.networks.tensors import as_arrays
from stream_learner.program import PROGRAM
from stream_learner.publishing.canary import canary
from stream_learner.publishing.fit import fit
from stream_learner.publishing.formats import Formats, Onnx
from stream_learner.publishing.marker import write_marker
from stream_learner.publishing.recover import Recovered
from stream_learner.publishing.shares import Peers, ShareWriter, encoded_state
from stream_learner.publishing.snapshot import Snapshot
from stream_learner.publishing.tally import joined
from stream_learner.publishing.topic_ids import check_topic_ids
from stream_learner.streams.cluster import Cluster
from stream_learner.streams.topics import CHUNK_BYTES, MAX_DOCUMENT_BYTES, RECORD_OVERHEAD_BYTES

log = structlog.get_logger()

SWEEP_EVERY_S = 3600.0


class Transaction(Protocol):
    """The methods of `stream_learner.streams.transaction.Transaction` that are used here."""

    def begin(self) -> None: ...
    def send(self, topic: str, value: bytes | None, key: bytes | None, headers: Any = None) -> Any: ...
    def confirm(self, futures: Sequence[Any], deadline: float) -> list[tuple[str, int, int]]: ...
    def offsets(self, positions: RowPositions) -> None: ...
    def commit(self) -> None: ...


class ReadBack(Protocol):
    """The methods of `stream_learner.streams.journal.ReadBack` that are used here."""

    def verify(self, offset: int, value: bytes, deadline: float) -> None: ...


class Clients(Protocol):
    """The members of `stream_learner.streams.clients.Clients` that are used here."""

    @property
    def cluster(self) -> Cluster: ...
    @property
    def transaction(self) -> Transaction: ...
    @property
    def read_back(self) -> ReadBack: ...


@dataclass(frozen=True, slots=True)
class Prepared:
    """A snapshot whose objects are in the store. No manifest names these objects yet."""

    snapshot: Snapshot
    lag: Positions
    sequence: int
    state: Object
    parts: list[Object]
    release: "PreparedRelease | None"
    earlier: list[Earlier]
    created_at: str


@dataclass(frozen=True, slots=True)
class PreparedRelease:
    """The stored objects of a release, and the bytes of those that also go to the weights topic.

    The keys of `objects` and `inline` are the objects' names.
    """

    objects: dict[str, Object]
    inline: dict[str, bytes]
    onnx: Onnx | None
    missing_formats: dict[str, str]
    manifest: Object | None = None


class CheckpointWriter:
    """Writes snapshots as checkpoints, one after the other. Never changes the learner.

    Effect 1 is the snapshot, which `run/driver.py` takes. `BackgroundPublisher` calls the methods for effects 2 to 4.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        clients: Clients,
        recovered: Recovered,
        formats: Formats,
        peers: Peers,
    ):
        """Continue after the recovered checkpoint, if there is one. Raises KafkaUnavailableError."""
        last = recovered.checkpoint
        self._settings = settings
        self._signer = settings.security.signer
        self._names = Names.under(settings.prefix)
        self._store = store
        self._formats = formats
        self._cluster = clients.cluster
        self._transaction = clients.transaction
        self._read_back = clients.read_back
        self._topic_ids = recovered.topic_ids
        self._epoch = recovered.epoch
        self._last = last and last.manifest
        self._last_digest = last and last.manifest_digest
        self._shares = ShareWriter(store, settings.run.id, last.manifest.parts if last else [])
        self._peers = peers
        self._pinned: Chosen | None = None
        self._before: Manifest | None = None
        self._marked = last is not None  # recovery has written the marker
        self._swept_at = -SWEEP_EVERY_S
        # The topic's `max.message.bytes` may be lower than the settings need. The dead letter of a larger record holds
        # only the start of the key.
        self._max_letter_bytes = self._cluster.dead_letter_limit() - RECORD_OVERHEAD_BYTES

    def prepare(self, snapshot: Snapshot, lag: Positions) -> Prepared:
        """Effect 2: write the snapshot's objects to the store. Can be called again after an error.

        Each call writes to a new folder, and writes only the parts that are not in the store.

        Raises StoreError, KafkaUnavailableError, TopicsError when a topic is missing or the manifest is too large for
        its topic, InputError when a topic was deleted and created again.
        """
        learned = [topic for topic in self._topic_ids if topic != self._names.predictions]
        check_topic_ids(self._topic_ids, self._cluster.topic_ids(learned))
        sequence = self._last.sequence + 1 if self._last else 1
        folder = keys.new_folder(self._settings.run.id, sequence)
        try:
            return self._put(folder, sequence, snapshot, lag)
        except StoreError:
            # An unreliable store must not fill with objects that no manifest names.
            with suppress(StoreError):
                self._store.delete(list(self._store.times(folder)))
            raise

    def _put(self, folder: str, sequence: int, snapshot: Snapshot, lag: Positions) -> Prepared:
        # First the parts, then the state that needs them, then the objects of a release. Writes are create-only and
        # flushed to disk: a worker that was replaced can add objects, but cannot change existing objects.
        own = self._shares.put(sequence, snapshot)
        shares = [own, *self._peers.shares(sequence)]
        if any(share.replica != own.replica for share in shares):
            raise StateError(
                "the ranks of the run have learned different parameters, so nothing more is published. Restart to "
                "resume from the last checkpoint; if it happens again, check that all ranks run the same program, "
                "settings and kind of machine"
            )
        shards = [shard for share in shares for shard in share.shards]
        parts = [part for share in shares for part in share.parts]
        encoded = encoded_state(snapshot, [shard.digest for shard in shards])
        state_object = self._store.put(f"{folder}/{keys.STATE}", encoded)
        release = None
        if snapshot.candidate and snapshot.decision and snapshot.decision.released:
            release = self._put_release(folder, snapshot.candidate)
        earlier = self._earlier(release is not None)
        prepared = Prepared(snapshot, lag, sequence, state_object, shards + parts, release, earlier, _now())
        if release is None:
            return prepared
        # A pinned release may be needed for longer than the history topic keeps its manifest.
        _, manifest = fit(self._manifest(prepared, {}), MAX_DOCUMENT_BYTES)
        stored = self._store.put(f"{folder}/{keys.MANIFEST}", manifest)
        return replace(prepared, release=replace(release, manifest=stored))

    def _earlier(self, is_released: bool) -> list[Earlier]:
        """Return the earlier releases to keep. Read the pins topic only if a release would be dropped."""
        earlier = [*self._last.earlier] if self._last else []
        if is_released and self._last and self._last.release:
            earlier.append(self._last.release.as_earlier())
        keeping, now = self._settings.release, _now()
        kept = retention.keep_releases(earlier, keeping.keep, keeping.keep_days, now)
        if kept == earlier:
            return earlier
        try:
            self._pinned = self._cluster.pinned_release()
        except KafkaUnavailableError as error:
            log.warning("the pins topic cannot be read, so a pinned release may be deleted", why=str(error))
        pinned = self._pinned.digest if self._pinned and self._pinned.epoch == self._epoch else None
        return retention.keep_releases(earlier, keeping.keep, keeping.keep_days, now, pinned)

    def _put_release(self, folder: str, candidate: Candidate) -> PreparedRelease:
        written = {
            keys.RELEASE: tensors.encode(as_arrays(candidate.parameters)),
            keys.EVALUATION: tensors.encode(as_arrays(candidate.evaluation)),
            keys.CANARY: tensors.encode(canary(candidate)),
        }
        onnx, missing = None, {}
        if "onnx" in self._settings.release.formats:
            made = self._formats.onnx(candidate)
            if isinstance(made, Onnx):
                onnx, written[keys.ONNX] = made, made.graph
            else:
                missing["onnx"] = made
        objects = {name: self._store.put(f"{folder}/{name}", data) for name, data in written.items()}
        most = self._settings.release.inline_max_bytes
        inline = {name: data for name, data in written.items() if name != keys.EVALUATION and len(data) <= most}
        return PreparedRelease(objects, inline, onnx, missing)

    def commit(self, prepared: Prepared) -> Manifest:
        """Effect 3: commit window, dead letters, weights, manifest and positions in one transaction.

        After any error the outcome is unknown: the process must end, and a restart recovers. Raises FencedError,
        PublishError.
        """
        interval = prepared.snapshot.interval
        deadline = time.monotonic() + self._settings.transaction_timeout_s
        # 3a. Send the window, the dead letters and the chunks of the release. The manifest names the chunks' offsets.
        self._transaction.begin()
        run_key = self._settings.run.id.encode()
        _, window = fit(self._window(prepared), MAX_DOCUMENT_BYTES)
        sent = [self._transaction.send(self._names.metrics, window, run_key, self._signature(window))]
        sent += [self._send_dead_letter(rejection) for rejection in interval.dead_letters]
        chunks = {name: self._send_chunks(name, data) for name, data in _inline(prepared).items()}
        # 3b. Confirm each record before the next step depends on it.
        self._transaction.confirm(sent, deadline)
        places = iter(self._transaction.confirm(list(chain.from_iterable(chunks.values())), deadline))
        chunk_places = {name: [Chunk(*next(places)) for _ in sent] for name, sent in chunks.items()}
        # 3c. Send the manifest: the same bytes to the checkpoints topic and to the history topic.
        manifest, value = fit(self._manifest(prepared, chunk_places), MAX_DOCUMENT_BYTES)
        signature = self._signature(value)
        futures = [
            self._transaction.send(self._names.checkpoints, value, run_key, signature),
            self._transaction.send(self._names.history, value, str(manifest.sequence).encode(), signature),
        ]
        (_, _, offset), _ = self._transaction.confirm(futures, deadline)
        # 3d. Send the positions as group offsets, for lag tools and to detect that this manifest is missing. A worker
        #     resumes from the manifest's positions. Without the predictions topic: if it was deleted, the brokers would
        #     refuse its offsets.
        positions = row_positions(prepared.snapshot.positions, prepared.snapshot.rows)
        self._transaction.offsets({t: ps for t, ps in positions.items() if t != self._names.predictions})
        # 3e. Commit, and read the manifest back. The commit counts only once other programs can read the manifest.
        self._transaction.commit()
        self._read_back.verify(offset, value, deadline)
        self._before, self._last, self._last_digest = self._last, manifest, digest(value)
        self._shares.keep(manifest.parts)
        return manifest

    def clean(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Effect 4: clean up after a commit. If a crash prevents this, the next start or sweep cleans up.

        Raises StoreError, KafkaUnavailableError.
        """
        assert self._last is not None
        # 4a. Write the marker after the first commit. A start that finds the marker but no manifest knows that
        #     manifests are lost.
        if not self._marked:
            topic_id = self._topic_ids[self._names.checkpoints]
            write_marker(self._store, self._settings, self._cluster, topic_id, self._epoch)
            self._marked = True
        # 4b. Delete objects that the new manifest no longer names, and objects that killed workers left.
        if self._before is not None:
            retention.delete_dropped(self._store, self._before, self._last)
        if clock() - self._swept_at >= SWEEP_EVERY_S:
            retention.sweep_orphans(self._store, self._settings.run.id, self._last)
            self._swept_at = clock()

    def _send_chunks(self, name: str, data: bytes) -> list[Any]:
        # Compaction keeps the newest chunk of each key, so it keeps this release until the next release is committed.
        return [
            self._transaction.send(self._names.weights, data[start : start + CHUNK_BYTES], f"{name}/{number}".encode())
            for number, start in enumerate(range(0, len(data), CHUNK_BYTES))
        ]

    def _signature(self, value: bytes) -> list[tuple[str, bytes]]:
        return [(signatures.HEADER, self._signer.sign(value))] if self._signer else []

    def _window(self, prepared: Prepared):
        snapshot = prepared.snapshot
        return snapshot.interval.tally.window(
            run_id=self._settings.run.id,
            epoch=self._epoch,
            sequence=prepared.sequence,
            created_at=prepared.created_at,
            validation=snapshot.candidate.validation if snapshot.candidate else None,
            test=snapshot.candidate.test if snapshot.candidate else None,
            calibration_error=snapshot.candidate.calibration_error if snapshot.candidate else None,
            forgetting=snapshot.candidate.forgetting if snapshot.candidate else None,
            recent=snapshot.recent,
            lag=prepared.lag,
        )

    def _manifest(self, prepared: Prepared, chunks: dict[str, list[Chunk]]) -> Manifest:
        snapshot = prepared.snapshot
        release = self._release(prepared, chunks) or (self._last.release if self._last else None)
        existing = self._last.kept if self._last else []
        new = State(prepared.sequence, prepared.state, release=release.sequence if release else None)
        kept = retention.keep(existing, new, self._settings.checkpoint.keep)
        parts = {state.sequence: self._last.parts_of(state) for state in existing} if self._last else {}
        poisoned, poisoned_rows = snapshot.interval.poisoned
        kept, shared = retention.share(kept, parts | {prepared.sequence: prepared.parts})
        return Manifest(
            program=PROGRAM,
            run_id=self._settings.run.id,
            epoch=self._epoch,
            sequence=prepared.sequence,
            predecessor=self._last_digest,
            created_at=prepared.created_at,
            positions=snapshot.positions,
            rows=snapshot.rows,
            spans=snapshot.interval.tally.read.spans,
            lost=snapshot.interval.tally.read.lost,
            ledger=ledger.encode(snapshot.interval.batches, snapshot.interval.tally.read.spans),
            arithmetic=snapshot.arithmetic,
            store=self._store.url,
            topic_ids=self._topic_ids,
            state=prepared.state,
            kept=kept,
            parts=shared,
            released=bool(snapshot.decision and snapshot.decision.released),
            decision=snapshot.decision,
            release=release,
            earlier=prepared.earlier,
            poisoned=poisoned,
            poisoned_rows=poisoned_rows,
            rolled_back_to=release.sequence if release and snapshot.discarded is not None else None,
            discarded=snapshot.discarded or {},
            weights=joined(self._last.weights if self._last else {}, snapshot.interval.tally.weights),
            omitted=self._last.omitted if self._last and release is self._last.release else [],
        )

    def _release(self, prepared: Prepared, chunks: dict[str, list[Chunk]]) -> Release | None:
        candidate, release = prepared.snapshot.candidate, prepared.release
        if candidate is None or release is None:
            return None
        published = {name: Published(written, chunks.get(name, [])) for name, written in release.objects.items()}
        onnx = release.onnx and OnnxGraph(
            published=published[keys.ONNX], unused=release.onnx.unused, compared=release.onnx.compared
        )
        return Release(
            sequence=prepared.sequence,
            created_at=prepared.created_at,
            object=published[keys.RELEASE].object,
            chunks=published[keys.RELEASE].chunks,
            model=candidate.model,
            labels=candidate.labels,
            retired=candidate.retired,
            preprocessing=candidate.preprocessing,
            dtype="float32",
            validation=candidate.validation,
            test=candidate.test,
            calibration_error=candidate.calibration_error,
            forgetting=candidate.forgetting,
            evaluation=published[keys.EVALUATION].object,
            canary=published[keys.CANARY],
            onnx=onnx,
            missing_formats=release.missing_formats,
            manifest=release.manifest,
        )

    def _send_dead_letter(self, rejection: Rejection) -> Any:
        record = rejection.record
        letter = DeadLetter(
            record.topic,
            record.partition,
            record.offset,
            rejection.stage,
            rejection.reason,
            rejection.message,
            record.key,
            record.value,
            record.headers,
            row=record.row,
            rows_read=rejection.rows_read,
        )
        key, value, headers = letter.encode(self._max_letter_bytes)
        return self._transaction.send(self._names.dead_letters, value, key, headers)


def _inline(prepared: Prepared) -> dict[str, bytes]:
    """Return the bytes of the objects that also go to the weights topic, by the objects' names."""
    return prepared.release.inline if prepared.release else {}


def _now() -> str:
    return time_text(datetime.now(UTC))
