"""Recovery: find the last committed checkpoint in the topics and the store, so that a worker can resume from it."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog

from stream_learner.checkpoints.store import Store
from stream_learner.config import Settings
from stream_learner.contract import keys, tensors
from stream_learner.contract.documents import MAX_EPOCH
from stream_learner.contract.manifest import Manifest
from stream_learner.contract.objects import Object
from stream_learner.contract.spans import Positions, RowPositions, RowsRead
from stream_learner.contract.tensors import Arrays
from stream_learner.contract.topics import Names
from stream_learner.errors import InputError, StateError
from stream_learner.learning.identity import check_fits, check_network, identity
from stream_learner.publishing.marker import check_marker, fenced_folder, last_epoch, replace_marker, write_marker
from stream_learner.publishing.topic_ids import check_topic_ids
from stream_learner.streams.cluster import Cluster
from stream_learner.streams.manifests import ONE_RUN, Found, Newest, no_manifest
from stream_learner.streams.rights import Role

log = structlog.get_logger()

# Name of the list of the shards' states in the document of a state. Each one is a part, named by its digest.
SHARDS = "shard_states"


@dataclass(frozen=True)
class Checkpoint:
    """A manifest and the objects that it names, fetched and verified.

    `shards` are the states of this rank's shards, empty if the run has a single shard. `parts` are their parts.
    """

    manifest: Manifest
    manifest_digest: str
    document: dict[str, Any]
    tensors: Arrays
    parts: dict[str, bytes]
    released: tuple[Arrays, dict[str, Any]] | None
    shards: list[tuple[Arrays, dict[str, Any]]]


@dataclass(frozen=True)
class Recovered:
    """The point from which learning continues. `checkpoint` is None at a fresh start."""

    positions: Positions
    topic_ids: dict[str, str]
    epoch: int
    checkpoint: Checkpoint | None = None

    @property
    def rows(self) -> RowsRead:
        """Rows that were learned of the messages at the positions, as in the checkpoint's manifest."""
        return self.checkpoint.manifest.rows if self.checkpoint else {}


class Fetch:
    """Fetches the objects that manifests name, and checks that their states fit the settings."""

    def __init__(self, settings: Settings, store: Store, shards: Sequence[int]):
        """Take the shards whose states are needed."""
        self._settings = settings
        self._store = store
        self._shards = shards
        self._identity = identity(settings)  # computed once, because it reads the file `model.weights`

    def __call__(self, manifest: Manifest, manifest_digest: str, known: Mapping[str, bytes]) -> Checkpoint:
        """Return the checkpoint of a manifest. `known` are parts by digest that were fetched before.

        Raises StateError, StoreError.
        """
        if manifest.release:
            # A network is never built from names in a manifest, only from names in the settings.
            check_network(manifest.release.model, self._settings.model)
        arrays, document = self._state(manifest.state)
        released = None
        if manifest.release and (saved := manifest.released_state()):
            released = (arrays, document) if saved.object == manifest.state else self._state(saved.object)
        parts = manifest.parts_of(manifest.kept[-1])
        shards, needed = self._of_shards(document, parts) if SHARDS in document else ([], parts)
        fetched = self._store.fetch_all(needed, known)
        return Checkpoint(manifest, manifest_digest, document, arrays, fetched, released, shards)

    def _of_shards(
        self, document: dict[str, Any], parts: list[Object]
    ) -> tuple[list[tuple[Arrays, dict[str, Any]]], list[Object]]:
        """Return the states of this rank's shards, and the parts that these states name."""
        by_digest = {part.digest: part for part in parts}
        shards, named = [], set[str]()
        try:
            for shard in self._shards:
                data = self._store.fetch(by_digest[document[SHARDS][shard]])
                arrays = tensors.decode(data)
                shards.append((arrays, tensors.decode_document(data)))
                # A memory's state names its segments in an array, uint8 [N, 32].
                rows = (row for name, array in arrays.items() if name.endswith("/digests") for row in array)
                named |= {f"sha256:{row.tobytes().hex()}" for row in rows} & by_digest.keys()
        except (LookupError, TypeError, ValueError) as error:
            raise StateError(
                f"the states of the run's shards are damaged ({error!r}). Restore the store from a backup, or choose a "
                "new run.id"
            ) from None
        return shards, [by_digest[digest] for digest in sorted(named)]

    def _state(self, reference: Object) -> tuple[Arrays, dict[str, Any]]:
        data = self._store.fetch(reference)
        try:
            document = tensors.decode_document(data)
            check_fits(document, self._identity, self._settings)
            return tensors.decode(data), document
        except ValueError as error:
            raise StateError(
                f"the state {self._store.url}/{reference.key} does not fit the settings: {error}. Change the settings "
                "back, or choose a new run.id"
            ) from None


class Recovery:
    """Finds the newest checkpoint.

    `look` changes nothing and can be repeated. It keeps the objects that it fetched, so that `take_over` is quick.

    Both methods raise TopicsError, StateError, InputError, StoreError, KafkaUnavailableError.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        cluster: Cluster,
        shards: Sequence[int] = (),
        fresh: bool = False,
        skipped: Callable[[str, int], None] = lambda *_: None,
    ):
        """Take the shards whose states are needed, if the run has several.

        With `fresh`, start over if no manifest is left.
        `skipped(topic, records)` is called with the number of new records that are not manifests of the run.
        """
        self._settings = settings
        self._store = store
        self._cluster = cluster
        self._fresh = fresh
        self._skipped = skipped
        self._skipped_up_to: dict[str, int] = {}
        self._topic = Names.under(settings.prefix).checkpoints
        self._fetch = Fetch(settings, store, shards)
        self._seen: Checkpoint | None = None

    @property
    def seen(self) -> Manifest | None:
        """The newest manifest whose objects were fetched, None if there is none. Any thread may ask."""
        seen = self._seen
        return seen and seen.manifest

    def look(self) -> None:
        """Step 1: check everything, so that wrong settings do not end the active worker. Change nothing.

        Do not wait for an open transaction of a killed worker: step 2 aborts it.
        """
        ids = self._topic_ids()
        refused, seen = object(), None
        while True:
            try:
                # Ignore mirrored positions: they can become visible before the manifest does.
                found = self._newest(ids, {}, wait=False).found
                seen = found and found.digest
                if found:
                    self._verified(found, ids)
                return
            except StateError:
                # The active worker may have published meanwhile, and deleted objects that this manifest names.
                if seen == refused:
                    raise
                refused = seen

    def take_over(self, fence: Callable[[], None]) -> Recovered:
        """Steps 2 to 4: make this worker the only one of the run. `fence` is `Transaction.fence`."""
        ids = self._topic_ids()
        # 2. Fence: no other worker can commit for this run from now on, and its open transaction is aborted.
        fence()
        # 3. Read again, to the true end. Another worker may have committed meanwhile, and an open transaction may hide
        #    the manifest of that commit.
        newest = self._newest(ids, self._cluster.mirrored_positions(), wait=True)
        if newest.found is None:
            return self._fresh_start(ids, newest.last_epoch)
        recovered = self._verified(newest.found, ids)
        # 4. Write the marker if a crash after the first commit prevented it. The marker later shows that the run has
        #    published, even if its manifests are lost.
        write_marker(self._store, self._settings, self._cluster, ids[self._topic], recovered.epoch)
        self._seen = None  # otherwise the state would stay in memory as long as this object
        return recovered

    def _topic_ids(self) -> dict[str, str]:
        self._cluster.check_topics(Role.WORKER)
        return self._cluster.topic_ids([self._topic, *self._settings.topics_read])

    def _newest(self, ids: dict[str, str], mirrored: RowPositions, wait: bool) -> Newest:
        """Return the newest manifest, if there is one to resume from. Skip and count foreign records."""
        newest = self._cluster.newest_manifest(ids[self._topic], mirrored, wait)
        for foreign in newest.foreign:
            met = [o for o in foreign.offsets if o > self._skipped_up_to.get(foreign.topic, -1)]
            if met:
                log.warning("records that are not manifests of the run were skipped", why=str(foreign))
                self._skipped(foreign.topic, len(met))
                self._skipped_up_to[foreign.topic] = max(met)
        if newest.found is None and newest.foreign and not self._fresh:
            raise no_manifest(self._settings, newest)
        if newest.found and newest.behind:
            raise StateError(
                f"manifest {newest.found.manifest.sequence} is the newest one in the topics, but the run has committed "
                f"later positions: a manifest is missing or damaged. {'; '.join(map(str, newest.foreign))}. "
                "Nothing was changed; restore the topics from a backup, or choose a new run.id"
            )
        return replace(newest, found=None) if self._fresh and newest.displaced else newest

    def _verified(self, found: Found, ids: dict[str, str]) -> Recovered:
        """Check a manifest against topics, store and settings, and fetch its objects. Change nothing."""
        check_marker(self._store, self._settings, self._cluster, ids[self._topic])
        manifest = found.manifest
        names = Names.under(self._settings.prefix)
        check_topic_ids({t: i for t, i in manifest.topic_ids.items() if t != names.predictions}, ids)
        first, end = self._cluster.input_bounds()
        predictions = first.pop(names.predictions, None)
        positions = check_positions(manifest, first, end, self._settings.input.on_lost, names.predictions)
        if predictions is not None:
            end_of_predictions, topic_id = end[names.predictions], ids[names.predictions]
            known = known_predictions(manifest, names.predictions, topic_id, end_of_predictions)
            positions[names.predictions] = predictions | known
        if self._seen is None or self._seen.manifest_digest != found.digest:
            known = self._seen.parts if self._seen else {}
            self._seen = self._fetch(manifest, found.digest, known)
        return Recovered(positions, ids, manifest.epoch, self._seen)

    def _fresh_start(self, ids: dict[str, str], epoch_in_topics: int) -> Recovered:
        """Start at the beginning of every partition, if nothing was published or `fresh` allows it.

        The epoch is one more than the last epoch in the topics and the store.
        """
        if not self._fresh:
            self._check_nothing_was_published(ids[self._topic])
        epoch = 1 + max(epoch_in_topics, last_epoch(self._store, self._settings))
        if epoch > MAX_EPOCH:
            raise StateError(
                f"a manifest of run {self._settings.run.id!r} has epoch {MAX_EPOCH}, the highest possible one, so "
                f"another program must have written it. {ONE_RUN}, and sign manifests (docs/security.md)"
            )
        if self._fresh:
            replace_marker(self._store, self._settings, self._cluster, ids[self._topic], epoch)
        first, _ = self._cluster.input_bounds()
        return Recovered(first, ids, epoch)

    def _check_nothing_was_published(self, checkpoints_topic_id: str) -> None:
        """Raise StateError if the run has published before.

        Objects of sequence 1 alone do not show this: a killed first publication leaves such objects behind.
        """
        settings, store, run_id = self._settings, self._store, self._settings.run.id
        first = f"{1:012d}-"
        harmless = (
            f"{run_id}/{first}",
            f"{run_id}/memory/{first}",
            f"{keys.trials(run_id)}/",
            fenced_folder(settings),
            f"{run_id}/lives",
        )
        check_marker(store, settings, self._cluster, checkpoints_topic_id)
        traces = [key for key in store.times(f"{run_id}/") if not key.startswith(harmless)]
        if traces or self._cluster.mirrored_positions():
            raise StateError(
                f"run {run_id!r}, or another run with its prefix, has published before, but its checkpoints topic "
                "holds no manifest. Restore the topic from a backup, choose a new run.id and prefix, or start over "
                "with `run --fresh` (everything learned is lost)"
            )


def check_positions(
    manifest: Manifest, first: Positions, end: Positions, on_lost: str, predictions_topic: str | None = None
) -> Positions:
    """Return the manifest's positions, and the first offsets of new topics. Leave out the predictions topic.

    `first` and `end` are the bounds of the input topics' partitions. Raises InputError.
    """
    first = copy.deepcopy(first)
    for topic, partitions in manifest.positions.items():
        if topic == predictions_topic:
            continue
        if topic not in first:
            raise InputError(f"the run has learned from topic {topic}, which is not in input.topics; add it back")
        if missing := partitions.keys() - first[topic].keys():
            raise InputError(
                f"{topic} has fewer partitions than before: {', '.join(map(str, sorted(missing)))} missing; choose "
                "a new run.id to learn from the remaining partitions"
            )
        for partition in first[topic]:
            position = partitions.get(partition, 0)  # a partition that the manifest lacks was added later
            if position < first[topic][partition] and on_lost == "stop":
                raise InputError(
                    f"records of {topic}[{partition}] from offset {position} to {first[topic][partition]} were deleted "
                    "by retention before they were learned; give the topic a longer retention, and set "
                    "input.on_lost = continue to resume after them"
                )
            inside = partition in manifest.rows.get(topic, {})  # then the message at the position must exist
            if position + inside > end[topic][partition]:
                raise InputError(
                    f"{topic}[{partition}] ends at offset {end[topic][partition]}, before the run's position "
                    f"{position}: the topic has lost records, or it is another topic. Choose a new run.id"
                )
            first[topic][partition] = position
    return first


def known_predictions(manifest: Manifest, topic: str, topic_id: str, end: dict[int, int]) -> dict[int, int]:
    """Return the manifest's positions in the predictions topic, or nothing if they do not fit the topic.

    `end` are the ends of the topic's partitions. The topic is read again from its first offsets if it was created
    again or has lost its last records. A run does not stop for that, because it does not learn from this topic.
    """
    known = manifest.positions.get(topic, {})
    if not known:
        return {}
    same = manifest.topic_ids.get(topic) == topic_id
    if same and all(partition in end and offset <= end[partition] for partition, offset in known.items()):
        return known
    log.warning("the predictions topic was created again or has lost records; it is read from its beginning")
    return {}
