"""Paths through a long history topic: few manifests are read apart from those on the path."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Producer

from stream_learner import config
from stream_learner.checkpoints.store import Store
from stream_learner.config import Settings
from stream_learner.contract import ledger
from stream_learner.contract.manifest import Arithmetic, Manifest, decode_manifest, digest, encode
from stream_learner.contract.objects import Object, State
from stream_learner.contract.spans import Span
from stream_learner.errors import StateError, UsageError
from stream_learner.local.broker import Broker
from stream_learner.publishing.lineage import find_path
from stream_learner.streams import topics
from stream_learner.streams.history import History
from stream_learner.streams.manifests import Foreign, Found

MANIFESTS = 2_000
FOLDER = "00000000-0000-0000-0000-000000000000"


class Counting(History):
    """Counts the manifests that are read."""

    count = 0

    def read(self, start: int, end: int, foreign: Foreign | None = None) -> Iterator[Found]:
        for found in super().read(start, end, foreign):
            self.count += 1
            yield found


Written = Callable[..., Counting]


@pytest.fixture
def settings(broker: Broker, unique_name: str, tmp_path: Path) -> Settings:
    overrides = [
        f"run.id={unique_name}",
        f'input.topics=["{unique_name}.input"]',
        f"kafka.bootstrap_servers={broker.bootstrap_servers}",
        f"checkpoint.store={tmp_path}",
    ]
    return config.load(None, overrides)


@pytest.fixture
def written(settings: Settings) -> Iterator[Written]:
    """Return a function that writes values to a history topic and returns its reader."""
    topics.create(settings)
    opened: list[Counting] = []

    def written(*values: bytes) -> Counting:
        producer = Producer({"bootstrap.servers": settings.kafka.bootstrap_servers})
        for value in values:
            producer.produce(f"{settings.prefix}.history", value, b"", partition=0)
            producer.poll(0)
        producer.flush()
        opened.append(Counting(settings))
        return opened[-1]

    yield written
    for history in opened:
        history.close()


def chain(run_id: str, count: int, epoch: int = 1, **later: Any) -> list[bytes]:
    """Return manifests 1 to `count`, of 10 records each. `later` are fields of the second half."""
    values: list[bytes] = []
    for sequence in range(1, count + 1):
        key = f"{run_id}/{sequence:012d}-{FOLDER}/state.safetensors"
        state = Object(key, 1, digest(f"{epoch} {sequence}".encode()))
        spans = {"images": {0: Span(10 * sequence - 10, 10 * sequence)}}
        manifest = Manifest(
            program="a program",
            run_id=run_id,
            epoch=epoch,
            sequence=sequence,
            predecessor=digest(values[-1]) if values else None,
            created_at="2025-01-01T00:00:00.000Z",
            positions={"images": {0: 10 * sequence}},
            spans=spans,
            lost={},
            ledger=ledger.encode([], {}),
            arithmetic=Arithmetic("2.5.0", "cpu", "AVX2", 1, digest(b"settings")),
            store="file:///objects",
            topic_ids={},
            state=state,
            kept=[State(sequence, state)],
            parts=[],
            released=False,
            decision=None,
            release=None,
        )
        if sequence > count // 2:
            manifest = msgspec.structs.replace(manifest, **later)
        values.append(encode(manifest))
    return values


def sequences(history: History, settings: Settings, start: str, target: str) -> list[int]:
    path = find_path(settings, history, Store(settings.checkpoint.store), start, target)
    found = [manifest.sequence for manifest in path.manifests(history)]
    assert path.offsets == 10 * len(found)
    assert (path.start.sequence if path.start else 0) == found[0] - 1
    return found


def test_of_a_long_history_little_more_than_the_path_is_read(settings: Settings, written: Written) -> None:
    history = written(*chain(settings.run.id, MANIFESTS))
    for start, end in (MANIFESTS - 1, MANIFESTS), (500, 510), (1, 2), (900, 1200):
        history.count = 0
        assert sequences(history, settings, str(start), str(end)) == [*range(start + 1, end + 1)]
        # Those on the path twice, at most as many again, and what the search for the end looks at.
        assert history.count <= 3 * (end - start) + 60
    assert sequences(history, settings, "0", str(MANIFESTS)) == [*range(1, MANIFESTS + 1)]


def test_a_start_is_found_by_its_key_and_its_bytes(settings: Settings, written: Written, tmp_path: Path) -> None:
    history = written(*chain(settings.run.id, 100))
    key = f"{settings.run.id}/{40:012d}-{FOLDER}/state.safetensors"
    (tmp_path / "state").write_bytes(b"1 40")
    for start in key, f"file:///objects/{key}", str(tmp_path / "state"):
        assert sequences(history, settings, start, "45") == [41, 42, 43, 44, 45]


def test_what_others_write_does_not_lead_astray(settings: Settings, written: Written) -> None:
    """Junk, copies of old manifests everywhere, and a forged manifest beside each genuine one."""
    genuine = chain(settings.run.id, 60)
    values: list[bytes] = []
    for i, value in enumerate(genuine):
        forged = json.dumps(json.loads(value) | {"program": "forged", "positions": {"images": {"0": 10 * i + 10}}})
        values += [b"junk", value, genuine[0], genuine[i // 2], forged.encode()]
    history = written(*values, *40 * [genuine[3]])
    path = find_path(settings, history, Store(settings.checkpoint.store), "0", "50")
    programs = [manifest.program for manifest in path.manifests(history)]
    assert set(programs[:-1]) == {"a program"}
    assert len(programs) == 50
    with pytest.raises(UsageError, match="--to 61 is not in the history topic, which has checkpoints 1 to 60"):
        sequences(history, settings, "0", "61")


def test_of_several_epochs_the_newest_is_taken_that_has_the_checkpoint(
    settings: Settings, written: Written, tmp_path: Path
) -> None:
    old, new = chain(settings.run.id, 30), chain(settings.run.id, 20, epoch=2)
    history = written(*old, *new)
    for target, epoch in ("20", 2), ("25", 1):
        path = find_path(settings, history, Store(settings.checkpoint.store), "10", target)
        assert {manifest.epoch for manifest in path.manifests(history)} == {epoch}
    (tmp_path / "manifest").write_bytes(old[14])
    path = find_path(settings, history, Store(settings.checkpoint.store), "10", str(tmp_path / "manifest"))
    assert [manifest.order for manifest in path.manifests(history)] == [(1, n) for n in range(11, 16)]


def test_a_change_of_settings_on_the_path_is_reported(settings: Settings, written: Written) -> None:
    changed = Arithmetic("2.5.0", "cpu", "AVX2", 2, digest(b"other settings"))
    history = written(*chain(settings.run.id, 40, arithmetic=changed))
    store = Store(settings.checkpoint.store)
    (change,) = find_path(settings, history, store, "0", "40").changes
    assert change == "checkpoint 21 was made with threads 2 (not 1), other settings, unlike 20"
    assert find_path(settings, history, store, "20", "40").changes == []
    assert find_path(settings, history, store, "0", "20").changes == []


def test_of_many_changes_the_last_are_reported_and_the_others_counted(settings: Settings, written: Written) -> None:
    value, values = b"", []
    for i, link in enumerate(chain(settings.run.id, 60)):
        predecessor = digest(value) if value else None
        value = encode(msgspec.structs.replace(decode_manifest(link), program=f"program {i}", predecessor=predecessor))
        values.append(value)
    path = find_path(settings, written(*values), Store(settings.checkpoint.store), "0", "60")
    assert len([*path.between]) == 59
    assert path.changes[0] == "checkpoint 60 was made with program program 59 (not program 58), unlike 59"
    assert path.changes[3:] == ["56 earlier changes"]


def test_who_takes_long_with_each_manifest_takes_no_broker_for_silent(
    settings: Settings, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `rebuild` does, which learns the records of one before it takes the next."""
    monkeypatch.setattr("stream_learner.streams.history.POLL_MS", 0)  # some polls find nothing
    now, read = 0.0, 0
    end = written(*chain(settings.run.id, MANIFESTS)).end
    with closing(History(settings, lambda: now)) as slow:
        for _ in slow.read(0, end):
            now += 2 * settings.kafka.request_timeout_s
            read += 1
    assert read == MANIFESTS


def test_a_history_without_manifests(settings: Settings, written: Written) -> None:
    history = written(b"junk")
    with pytest.raises(StateError, match=r"holds no manifest of run .*, only other records"):
        sequences(history, settings, "0", "1")
