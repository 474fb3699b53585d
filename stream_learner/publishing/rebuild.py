"""A checkpoint made once more from an earlier state and the ledgers since: the same bytes, or something is not what the
manifests say it is.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import structlog

from stream_learner.checkpoints import state
from stream_learner.checkpoints.store import Store
from stream_learner.config import Settings
from stream_learner.errors import InputError, MismatchError, StateError, UsageError
from stream_learner.learning.batch import Batch, Decode
from stream_learner.learning.identity import check_network
from stream_learner.learning.learner import Learner
from stream_learner.learning.snapshot import Snapshot
from stream_learner.publishing.poison import setting_aside
from stream_learner.records import keys, ledger
from stream_learner.records.decoder import Decoder
from stream_learner.records.manifest import Arithmetic, Manifest, State, decode_manifest, digest
from stream_learner.records.spans import Positions, Span, Spans, each
from stream_learner.streams import topics
from stream_learner.streams.manifests import Foreign, read_manifests
from stream_learner.streams.replay import Replay
from stream_learner.streams.rights import Role
from stream_learner.streams.topics import Names

log = structlog.get_logger()

BEGINNING = "0"


@dataclass(frozen=True)
class Rebuilt:
    """What was done: batches and records learned again on the way from checkpoint `start` (0: none) to `end`.

    The digests `state`, and `release` if the checkpoint released a model, are equal to the manifest's.
    """

    start: int
    end: int
    batches: int
    records: int
    state: str
    release: str | None


def rebuild(
    settings: Settings, store: Store, start: str, target: str, on_progress: Callable[[int, int], None]
) -> Rebuilt:
    """Learn again what made a checkpoint and compare the bytes.

    `start` is a checkpoint's sequence (0: before the first), its state's key or URL, or a file with the state's bytes;
    `target` is a sequence or a file with a manifest. `on_progress(offsets, total)` is called as it proceeds. Raises
    MismatchError when the bytes differ, UsageError, StateError, InputError, StoreError, KafkaUnavailableError.
    """
    history = _history(settings)
    end = _target(settings, history, target)
    before, path = _path(history, store, start, end)
    _check_topics(settings, end)
    learner = Learner(settings)
    if before:
        _restore(settings, learner, store, before, start)
    total = sum(_offsets(manifest.spans) for manifest in path)
    batches = records = done = 0
    decode = Decoder.from_settings(settings)
    replays: dict[tuple[str, int], Replay] = {}
    with ExitStack() as opened:
        for manifest in path:
            learner.progress.close()  # only the last state is compared; the others need not even be copied
            for topic, partition, offset in each(_begin(manifest)):
                learner.progress.positions.setdefault(topic, {}).setdefault(partition, offset)
            for topic, partition, span in each(manifest.spans):
                if (topic, partition) not in replays:
                    replay = Replay(settings.kafka, topic, partition, span.start)
                    replays[topic, partition] = opened.enter_context(closing(replay))
            for batch in _batches(manifest, replays, decode):
                learner.learn(batch)
                if learner.release_due:
                    learner.decide_release()
                batches, records, done = batches + 1, records + batch.records, done + _offsets(batch.spans)
                on_progress(done, total)
    return Rebuilt(
        before.sequence if before else 0, end.sequence, batches, records, *_compared(end, learner.snapshot())
    )


def _history(settings: Settings) -> dict[str, Manifest]:
    """Return every manifest by its digest, in the order of their commits."""
    topics.check(settings, role=Role.REBUILD)
    foreign = Foreign(Names.of(settings).history)
    history = {found.digest: found.manifest for found in read_manifests(settings, foreign, wait=False)}
    if foreign.offsets:
        log.warning("records that are not manifests of the run were skipped", why=str(foreign))
    if not history:
        skipped = f", only records that are not: {foreign}" if foreign.offsets else ""
        raise StateError(
            f"topic {foreign.topic} holds no manifest of run {settings.run.id!r}{skipped}; there is nothing to rebuild"
        )
    return history


def _target(settings: Settings, history: dict[str, Manifest], target: str) -> Manifest:
    try:
        if not target.isdecimal():
            value = Path(target).read_bytes()
            if settings.security.verify_key_files and digest(value) not in history:
                raise StateError(f"--to {target} is not one of the signed manifests in the history topic")
            return decode_manifest(value)
        # After `run --fresh` there are two chains: the newer one's.
        return [manifest for manifest in history.values() if manifest.sequence == int(target)][-1]
    except IndexError:
        sequences = [manifest.sequence for manifest in history.values()]
        raise UsageError(
            f"--to {target} is no manifest in the history topic, which holds {min(sequences)} to {max(sequences)}"
        ) from None
    except OSError as error:
        raise UsageError(f"--to {target} is neither a sequence nor a file that can be read: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"--to {target} is {error}") from None


def _path(
    history: dict[str, Manifest], store: Store, start: str, end: Manifest
) -> tuple[Manifest | None, list[Manifest]]:
    """Return the manifest whose state is the start (None: the beginning), and those from there to the end."""
    is_start = _matches(start, store)
    path = [end]
    while (predecessor := path[0].predecessor) is not None:
        before = history.get(predecessor)
        if before is None:
            raise UsageError(
                f"the history topic does not reach back from checkpoint {path[0].sequence}; take a later --from"
            )
        if is_start(before):
            return before, path
        path.insert(0, before)
    if start != BEGINNING:
        raise UsageError(
            f"--from {start} is not the state of a checkpoint before {end.sequence}; give a sequence, the key or URL "
            f"of a state, a file with its bytes, or {BEGINNING} for the beginning"
        )
    return None, path


def _matches(start: str, store: Store) -> Callable[[Manifest], bool]:
    if start.isdecimal():
        return lambda manifest: manifest.sequence == int(start)
    if _is_file(start):
        name = digest(_bytes_of(start))
        return lambda manifest: manifest.state.digest == name
    # The store may have moved since the manifest was written.
    return lambda m: start in (m.state.key, m.url(m.state), f"{store.url}/{m.state.key}")


def _is_file(start: str) -> bool:
    return not (start.isdecimal() or "://" in start or keys.is_key(start))


def _bytes_of(start: str) -> bytes:
    try:
        return Path(start).read_bytes()
    except OSError as error:
        raise UsageError(
            f"--from {start} is neither a sequence, a key, a URL nor a file that can be read: {error.strerror}"
        ) from None


def _check_topics(settings: Settings, end: Manifest) -> None:
    now = topics.topic_ids(settings, settings.input.topics)
    for name, topic_id in now.items():
        if end.topic_ids.get(name, topic_id) != topic_id:
            raise InputError(f"topic {name} was deleted and made again since; the records that were learned are gone")


def _begin(manifest: Manifest) -> Positions:
    """Return the positions of all partitions before a manifest's spans were learned; some were not read in them."""
    spans = manifest.spans
    return {
        topic: {p: spans.get(topic, {}).get(p, Span(at, at)).start for p, at in partitions.items()}
        for topic, partitions in manifest.positions.items()
    }


def _restore(settings: Settings, learner: Learner, store: Store, before: Manifest, start: str) -> None:
    if before.release:
        check_network(before.release.model, settings.model)
    data = _bytes_of(start) if _is_file(start) else store.fetch(before.state)
    try:
        document = state.decode_document(data)
        parts = store.fetch_all(before.parts_of(before.kept[-1]), known={})
        learner.restore(state.decode_tensors(data), document, parts, before.positions)
        saved = before.released_state()
        if before.release and saved:
            if saved.object != before.state:
                data = _released(store, saved)
            learner.restore_released(state.decode_tensors(data), state.decode_document(data))
    except ValueError as error:
        raise StateError(f"the state of checkpoint {before.sequence} does not fit the settings: {error}") from None


def _released(store: Store, saved: State) -> bytes:
    """What the gate compares with, and training may go back to."""
    try:
        return store.fetch(saved.object)
    except StateError as error:
        raise StateError(
            f"the state of checkpoint {saved.sequence}, the last release then, is needed too: {error}. Take a --from "
            f"that released a model, or {BEGINNING} for the beginning"
        ) from None


def _batches(manifest: Manifest, replays: dict[tuple[str, int], Replay], decode: Decode) -> Iterator[Batch]:
    """Yield the batches between a manifest and the one before, read again."""
    poisoned = {(t, p, o) for t, partitions in manifest.poisoned.items() for p, os in partitions.items() for o in os}
    decode = setting_aside(poisoned, decode)
    at = {(topic, partition): span.start for topic, partition, span in each(manifest.spans)}
    try:
        for pieces in ledger.decode(manifest.ledger, manifest.spans):
            batch = Batch()
            for topic, partition, end in pieces:
                replay, start = replays[topic, partition], at[topic, partition]
                for lost in manifest.lost.get(topic, {}).get(partition, ()):
                    if start <= lost.start < end:
                        _read(replay, lost.start, batch, decode)
                        replay.skip(lost.end)
                _read(replay, end, batch, decode)
                batch.cover(topic, partition, start, end)
                at[topic, partition] = end
            yield batch
    except ValueError as error:
        raise StateError(f"checkpoint {manifest.sequence} cannot be rebuilt: {error}") from None


def _read(replay: Replay, end: int, batch: Batch, decode: Decode) -> None:
    """Add the records up to the offset `end` to the batch."""
    for record in replay.read(end):
        batch.add(record, decode)


def _offsets(spans: Spans) -> int:
    return sum(span.end - span.start for _, _, span in each(spans))


def _compared(end: Manifest, snapshot: Snapshot) -> tuple[str, str | None]:
    """Digests of the state and of the released weights. Raises MismatchError when one is not the manifest's."""
    made = {"state": (digest(state.encode(snapshot.tensors, snapshot.document)), end.state.digest)}
    if end.released and end.release and snapshot.candidate:
        made["release"] = digest(state.encode(snapshot.candidate.weights)), end.release.object.digest
    for what, (rebuilt, published) in made.items():
        if rebuilt != published:
            then, now = _words(end.arithmetic), _words(snapshot.arithmetic)
            raise MismatchError(
                f"the {what} of checkpoint {end.sequence} was rebuilt as {rebuilt}, and published as {published}. "
                + (
                    f"It was computed with {then}, now with {now}"
                    if then != now
                    else f"Both with {now}: settings differ"
                )
            )
    return made["state"][0], made["release"][0] if "release" in made else None


def _words(arithmetic: Arithmetic) -> str:
    return f"PyTorch {arithmetic.torch} on {arithmetic.device}, {arithmetic.instructions}, {arithmetic.threads} threads"
