"""An object store and a Kafka cluster in memory. Both note the effects on them in order, and fail where a test says."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from stream_learner.checkpoints.store import Store
from stream_learner.config import Settings
from stream_learner.contract.manifest import Manifest, decode_manifest
from stream_learner.contract.objects import Object
from stream_learner.contract.pins import Chosen
from stream_learner.contract.spans import Positions, RowPositions
from stream_learner.contract.topics import Names
from stream_learner.errors import FencedError, PublishError, TopicsError
from stream_learner.formats.record import Record
from stream_learner.streams.cluster import Cluster
from stream_learner.streams.history import History
from stream_learner.streams.manifests import Foreign, Found, Newest, accepted
from stream_learner.streams.replay import Replay
from stream_learner.streams.rights import Role

TOPIC = "images"


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
        self.positions: RowPositions = {}
        self.behind = False
        self.letter_bytes = 1_000_000
        self.pinned: Chosen | None = None
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

    def mirrored_positions(self) -> RowPositions:
        return self.positions

    def newest_manifest(self, checkpoints_topic_id: str, mirrored: RowPositions, wait: bool) -> Newest:
        del mirrored
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

    def pinned_release(self) -> Chosen | None:
        self.effects.note("read pins")
        return self.pinned

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
        self._positions: RowPositions = {}
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

    def offsets(self, positions: RowPositions) -> None:
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
