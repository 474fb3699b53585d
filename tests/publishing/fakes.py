"""An object store and a Kafka cluster in memory. Both note the effects on them in order, and fail where a test says."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from stream_learner.checkpoints.store import Store
from stream_learner.config import Settings
from stream_learner.contract import keys
from stream_learner.contract.figures import Figures
from stream_learner.contract.manifest import (
    Arithmetic,
    Decision,
    Manifest,
    ModelArguments,
    ModelSpec,
    Object,
    Preprocessing,
    decode_manifest,
    digest,
)
from stream_learner.contract.spans import Positions, Span
from stream_learner.contract.topics import Names
from stream_learner.contract.vocabulary import Reason, Split
from stream_learner.contract.window import Forgetting, accuracy
from stream_learner.errors import FencedError, PublishError, TopicsError
from stream_learner.formats.record import Record, Rejection
from stream_learner.learning.classes import Classes
from stream_learner.learning.identity import identity
from stream_learner.learning.outcome import Candidate
from stream_learner.monitoring.report import Report
from stream_learner.publishing.checkpoint_writer import CheckpointWriter
from stream_learner.publishing.recover import Recovered, Recovery
from stream_learner.publishing.snapshot import Snapshot
from stream_learner.run.progress import Progress
from stream_learner.streams.cluster import Cluster
from stream_learner.streams.history import History
from stream_learner.streams.manifests import Foreign, Found, Newest, accepted
from stream_learner.streams.replay import Replay
from stream_learner.streams.rights import Role

TOPIC = "images"
SIDE = 8


class Effects:
    """Names of effects in the order in which they were asked for. A call that a test chose fails before its effect."""

    def __init__(self):
        self.names: list[str] = []
        self._failing: dict[tuple[str, int], Exception] = {}
        self._calls: dict[str, int] = defaultdict(int)

    def fail(self, name: str, error: Exception, call: int = 1) -> None:
        """Raise `error` at the call-th call (from 1, counted from now) of an effect."""
        self._failing[name, self._calls[name] + call] = error

    def note(self, name: str) -> None:
        self._calls[name] += 1
        if error := self._failing.pop((name, self._calls[name]), None):
            raise error
        self.names.append(name)

    def take(self) -> list[str]:
        """Return the names since the last call."""
        names, self.names = self.names, []
        return names


class FakeStore(Store):
    """The real store, in memory. It notes writes and deletions by the last part of the key."""

    def __init__(self, effects: Effects):
        super().__init__("memory:///")
        self._effects = effects

    def put(self, key: str, data: bytes) -> Object:
        self._effects.note("put part" if "/memory/" in key else f"put {key.rpartition('/')[2]}")
        return super().put(key, data)

    def delete(self, keys: list[str]) -> None:
        for key in keys:
            self._effects.note(f"delete {key.rpartition('/')[2]}")
        super().delete(keys)

    @property
    def objects(self) -> set[str]:
        """The keys of the run's objects."""
        return {*self.times("digits/")}


class Written(NamedTuple):
    """A record of an output topic."""

    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] = ()


class FakeCluster(Cluster):
    """Brokers in memory: committed records by topic, the input's records, and the positions of the offsets group."""

    def __init__(self, settings: Settings, effects: Effects):
        super().__init__(settings)
        self.effects = effects
        self.names = Names.under(settings.prefix)
        self.id = "cluster 1"
        self.ids = {name: f"{name} 1" for name in [*settings.input.topics, self.names.checkpoints]}
        self.input: list[Record] = []
        self.first = 0
        self.written: dict[str, list[Written]] = defaultdict(list)
        self.positions: Positions = {}
        self.behind = False
        self.letter_bytes = 1_000_000
        self.fences = 0

    def create_again(self, topic: str) -> None:
        """Delete a topic and create one of the same name."""
        self.ids[topic] = f"{topic} 2"
        self.written.pop(topic, None)

    def cluster_id(self) -> str:
        return self.id

    def check_topics(self, role: Role) -> None:
        self.effects.note(f"check topics for {role.value}")

    def topic_ids(self, names: list[str]) -> dict[str, str]:
        if missing := {*names} - self.ids.keys():
            raise TopicsError(f"{missing} are missing")
        return {name: self.ids[name] for name in names}

    def dead_letter_limit(self) -> int:
        return self.letter_bytes

    def input_bounds(self) -> tuple[Positions, Positions]:
        return {TOPIC: {0: self.first}}, {TOPIC: {0: len(self.input)}}

    def mirrored_positions(self) -> Positions:
        return self.positions

    def newest_manifest(self, checkpoints_topic_id: str, positions: Positions, wait: bool) -> Newest:
        del positions
        self.effects.note("read manifests" if wait else "look at manifests")
        foreign = Foreign(self.names.checkpoints)
        in_history = [*self._found(self.names.history, Foreign(self.names.history))]
        found = [*self._found(self.names.checkpoints, foreign)]
        displaced = not found
        if displaced:
            of_topic = checkpoints_topic_id
            found = [f for f in in_history if f.manifest.topic_ids[self.names.checkpoints] == of_topic]
        return Newest(
            max(found, key=_order, default=None),
            [foreign] if foreign.offsets else [],
            displaced=displaced and bool(found),
            behind=self.behind,
            last_epoch=max((f.manifest.epoch for f in in_history), default=0),
        )

    def history(self) -> History:
        return FakeHistory(self._settings, self.written[self.names.history])

    def replay(self, topic: str, partition: int, offset: int) -> Replay:
        assert (topic, partition) == (TOPIC, 0)
        return FakeReplay(self.input, offset)

    def manifests(self) -> list[Manifest]:
        """The manifests of the checkpoints topic."""
        return [decode_manifest(written.value or b"") for written in self.written[self.names.checkpoints]]

    def _found(self, topic: str, foreign: Foreign) -> Iterator[Found]:
        return found_in(self._settings, topic, self.written[topic], foreign)


def _order(found: Found) -> tuple[int, int]:
    return found.manifest.order


def found_in(settings: Settings, topic: str, written: Iterable[Written], foreign: Foreign | None) -> Iterator[Found]:
    """Tell manifests of a run from foreign records."""
    for offset, one in enumerate(written):
        try:
            yield accepted(Record(topic, 0, offset, 0, *one), settings.run.id, settings.security.verifier)
        except ValueError as error:
            if foreign:
                foreign.add(offset, str(error))


class FakeHistory(History):
    """The history topic in memory."""

    def __init__(self, settings: Settings, written: list[Written]):
        self.topic = Names.under(settings.prefix).history
        self.first, self.end = 0, len(written)
        self._settings = settings
        self._written = written

    def close(self) -> None:
        pass

    def read(self, start: int, end: int, foreign: Foreign | None = None) -> Iterator[Found]:
        for found in found_in(self._settings, self.topic, self._written[:end], foreign):
            if found.offset >= start:
                yield found


class FakeReplay(Replay):
    """A partition in memory."""

    def __init__(self, records: list[Record], offset: int):
        self._records = records
        self._at = offset

    def skip(self, offset: int) -> None:
        self._at = max(self._at, offset)

    def read(self, end: int) -> list[Record]:
        start, self._at = self._at, max(self._at, end)
        return self._records[start:end]

    def close(self) -> None:
        pass


class FakeTransaction:
    """A transactional producer. Its records and positions show in the cluster when it commits."""

    def __init__(self, cluster: FakeCluster):
        self._cluster = cluster
        self._effects = cluster.effects
        self._fences: int | None = None
        self._open: list[tuple[str, Written]] = []
        self._positions: Positions = {}
        self.loses_commits = False

    def fence(self) -> None:
        self._effects.note("fence")
        self._cluster.fences += 1
        self._fences = self._cluster.fences

    def begin(self) -> None:
        self._effects.note("begin")
        self._open, self._positions = [], {}

    def send(self, topic: str, value: bytes | None, key: bytes | None, headers: Any = None) -> Any:
        self._effects.note(f"send {topic.rpartition('.')[2]}")
        offset = len(self._cluster.written[topic]) + [name for name, _ in self._open].count(topic)
        self._open.append((topic, Written(key, value, headers or [])))
        return topic, 0, offset

    def confirm(self, futures: Sequence[Any], deadline: float) -> list[tuple[str, int, int]]:
        del deadline
        self._effects.note("confirm")
        return [*futures]

    def offsets(self, positions: Positions) -> None:
        self._effects.note("offsets")
        self._positions = positions

    def commit(self) -> None:
        self._effects.note("commit")
        if self._fences != self._cluster.fences:
            raise FencedError("another worker of this run took over")
        if self.loses_commits:  # as kafka-python may after a record that failed
            return
        for topic, written in self._open:
            self._cluster.written[topic].append(written)
        self._cluster.positions = self._positions


class FakeReadBack:
    """Reads a manifest back from the cluster."""

    def __init__(self, cluster: FakeCluster):
        self._cluster = cluster

    def verify(self, offset: int, value: bytes, deadline: float) -> None:
        del deadline
        self._cluster.effects.note("read back")
        written = self._cluster.written[self._cluster.names.checkpoints]
        if offset >= len(written) or written[offset].value != value:
            raise PublishError(f"the manifest at offset {offset} is missing after its commit")


@dataclass
class FakeClients:
    """Clients of the cluster in memory."""

    cluster: FakeCluster
    transaction: FakeTransaction
    read_back: FakeReadBack


class FakeRun:
    """A run whose store and cluster are in memory."""

    def __init__(self, **overrides: Any):
        document: dict[str, Any] = {
            "run": {"id": "digits"},
            "input": {"topics": [TOPIC]},
            "model": {"name": "mlp", "height": SIDE, "width": SIDE, "channels": 1},
            "learning": {"device": "cpu", "threads": 1, "augment": []},
        }
        for name, value in overrides.items():
            section, key = name.split("__")
            document.setdefault(section, {})[key] = value
        self.settings = Settings.model_validate(document)
        self.effects = Effects()
        self.store = FakeStore(self.effects)
        self.cluster = FakeCluster(self.settings, self.effects)
        self.transaction = FakeTransaction(self.cluster)
        self.progress = Progress({TOPIC: {0: 0}})

    def recovery(self, fresh: bool = False, skipped: Any = lambda *_: None) -> Recovery:
        """The recovery of a new start."""
        return Recovery(self.settings, self.store, self.cluster, fresh, skipped)

    def recover(self, fresh: bool = False) -> Recovered:
        """Take the run over, as a start does."""
        self.transaction = FakeTransaction(self.cluster)
        return self.recovery(fresh).take_over(self.transaction.fence)

    def writer(self, recovered: Recovered | None = None) -> CheckpointWriter:
        """The writer of a worker that has taken the run over."""
        recovered = recovered or self.recover()
        clients = FakeClients(self.cluster, self.transaction, FakeReadBack(self.cluster))
        return CheckpointWriter(self.settings, self.store, clients, recovered)

    def publish(self, writer: CheckpointWriter, snapshot: Snapshot) -> Manifest:
        """Publish a snapshot as the worker does, and clean up."""
        manifest = writer.commit(writer.prepare(snapshot, {}))
        writer.clean()
        return manifest

    def snapshot(
        self,
        records: int = 10,
        released: bool | None = None,
        letters: Sequence[Rejection] = (),
        parts: Sequence[bytes] = (),
    ) -> Snapshot:
        """The next snapshot. `released` is the verdict on a candidate, None without one."""
        start = self.progress.positions[TOPIC][0]
        self.cluster.input += [
            Record(TOPIC, 0, offset, 0, None, b"", []) for offset in range(len(self.cluster.input), start + records)
        ]
        self.progress.add(
            Report(
                {TOPIC: {0: Span(start, start + records)}},
                records,
                Figures(samples={Split.TRAIN: 1}),
                rejections=[*letters],
            )
        )
        return Snapshot(
            tensors={"x": np.full(1, start, np.float32)},
            document=identity(self.settings) | Classes(self.settings).state_dict(),
            parts={digest(part): part for part in parts},
            positions={TOPIC: {0: start + records}},
            interval=self.progress.close(),
            recent=None,
            arithmetic=Arithmetic("2.9.0", "cpu", "AVX2", 1, digest(b"settings")),
            candidate=None if released is None else candidate(start),
            decision=None if released is None else decision(released),
            discarded=None,
        )

    def keys_of(self, manifest: Manifest) -> set[str]:
        """All objects that a manifest names."""
        release = manifest.release
        states = [state.object for state in manifest.kept]
        named = [*states, *manifest.parts, *([release.object, release.evaluation] if release else [])]
        return {one.key for one in named}


def candidate(value: float) -> Candidate:
    import torch

    arguments = ModelArguments(classes=1, height=SIDE, width=SIDE, channels=1, mean=[0.5], std=[0.25])
    scores = accuracy([("cat", 1, 1)])
    return Candidate(
        weights={"head": torch.full((1,), value)},
        model=ModelSpec("mlp", arguments),
        labels=["cat"],
        retired=[],
        preprocessing=Preprocessing(SIDE, SIDE, 1, [0.5], [0.25]),
        validation=scores,
        test=scores,
        calibration_error=None,
        forgetting=Forgetting(mean=0.0, per_class=[]),
        evaluation={"labels": torch.zeros(1)},
    )


def decision(released: bool) -> Decision:
    return Decision(released=released, abstained=False, candidate=0.5, last=None, samples=1, reason="a reason")


def rejection(offset: int, reason: Reason = Reason.NO_LABEL, value: bytes = b"bytes") -> Rejection:
    """A dead letter of the input."""
    return Rejection(Record(TOPIC, 0, offset, 0, None, value, []), reason, "decode", "it has no label")


def of_a_run(settings: Settings, sequence: int) -> str:
    """A key of a state that no manifest names."""
    return f"{keys.new_folder(settings.run.id, sequence)}/{keys.STATE}"
