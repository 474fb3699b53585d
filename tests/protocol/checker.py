"""Reads what a run published, as an outsider would, and asserts that everything fed is accounted for exactly once.

Nothing of the worker's is used: another Kafka client, plain JSON, plain files.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple
from urllib.parse import urlparse
from urllib.request import url2pathname

import safetensors.numpy
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition
from feed import MAX_RECORD_BYTES, Draft, Fed, Headers, client

READ_DEADLINE_S = 30.0
SPLITS = ("train", "validation", "test")
ERRORS = "__connect.errors."

Place = tuple[str, int]


class Read(NamedTuple):
    """A record as a consumer gets it."""

    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers


@dataclass
class Log:
    """What a run published: the output topics' committed records, the group offsets, and the objects by URL that the
    newest manifest names; one that is not there is missing."""

    metrics: list[Read]
    checkpoints: list[Read]
    history: list[Read]
    weights: list[Read]
    dead_letters: list[Read]
    group: dict[Place, int]
    objects: dict[str, bytes]

    @property
    def windows(self) -> list[dict[str, Any]]:
        return [json.loads(read.value or b"") for read in self.metrics]

    @property
    def manifests(self) -> list[dict[str, Any]]:
        return [json.loads(read.value or b"") for read in self.history]

    @property
    def manifest(self) -> dict[str, Any]:
        """The newest."""
        return json.loads(self.checkpoints[-1].value or b"")

    def release(self) -> bytes:
        """The release's bytes, joined from the weights topic."""
        values = {read.offset: read.value or b"" for read in self.weights}
        return b"".join(values[chunk["offset"]] for chunk in self.manifest["release"]["chunks"])


def read(bootstrap_servers: str, run_id: str, inputs: Iterable[Place]) -> Log:
    """Reads a run whose topics' prefix is its id."""
    topics = ("metrics", "checkpoints", "history", "weights", "dead-letters")
    records = {topic: read_topic(bootstrap_servers, f"{run_id}.{topic}") for topic in topics}
    group = Consumer(client(bootstrap_servers) | {"group.id": f"stream-learner.{run_id}.{run_id}"})
    committed = group.committed([TopicPartition(*place) for place in inputs], timeout=READ_DEADLINE_S)
    group.close()
    return Log(
        *records.values(),
        group={(place.topic, place.partition): place.offset for place in committed},
        objects=_objects(json.loads(records["checkpoints"][-1].value or b"")),
    )


def read_topic(bootstrap_servers: str, topic: str) -> list[Read]:
    """Committed records of a topic of one partition."""
    consumer = Consumer(
        client(bootstrap_servers)
        | {
            "group.id": "outsider",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 10,
        }
    )
    consumer.assign([TopicPartition(topic, 0, 0)])
    found: list[Read] = []
    while (message := consumer.poll(READ_DEADLINE_S)) is not None:
        error = message.error()
        if error and error.code() == KafkaError._PARTITION_EOF:
            consumer.close()
            return found
        assert error is None, error
        found.append(_read(message))
    raise AssertionError(f"{topic} could not be read to its end")


def _read(message: Message) -> Read:
    headers = [(name, value or b"") for name, value in message.headers() or []]
    return Read(message.offset() or 0, message.key(), message.value(), headers)  # pyright: ignore


def _objects(manifest: dict[str, Any]) -> dict[str, bytes]:
    paths = {reference["url"]: url2pathname(urlparse(reference["url"]).path) for reference in _named(manifest)}
    return {url: data for url, path in paths.items() if (data := _bytes(path)) is not None}


def _bytes(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _named(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Every object that a manifest names."""
    release = manifest["release"]
    return [
        manifest["state"],
        *(kept["object"] for kept in manifest["kept"]),
        *([release["object"], release["evaluation"]] if release else []),
    ]


def check(log: Log, fed: Sequence[Fed]) -> None:
    """Asserts that a log holds a whole and sound account of every record fed that the newest manifest has passed."""
    check_chain(log)
    check_windows(log, fed)
    check_objects(log)
    check_release(log)
    check_dead_letters(log, fed)
    check_positions(log)


def check_chain(log: Log) -> None:
    """Manifests 1..n once each, each naming the digest of the one before; the newest is the history's last."""
    manifests = log.manifests
    assert [m["sequence"] for m in manifests] == list(range(1, len(manifests) + 1)), "sequences are not 1..n"
    assert manifests[0]["predecessor"] is None, "the first manifest has a predecessor"
    for before, after in pairwise(log.history):
        named = json.loads(after.value or b"")["predecessor"]
        assert named == _digest(before.value), f"the chain is broken at offset {after.offset}"
    assert log.checkpoints[-1].value == log.history[-1].value, "the newest manifest is not the history's last"


def check_windows(log: Log, fed: Sequence[Fed]) -> None:
    """Windows cover each partition without gap or overlap up to its position, and count what was fed."""
    fates: dict[Place, dict[int, str | None]] = {}
    for record in fed:
        fates.setdefault((record.topic, record.partition), {})[record.offset] = record.draft.fate
    reached = dict.fromkeys(fates, 0)
    windows, manifests = log.windows, log.manifests
    assert [w["sequence"] for w in windows] == [m["sequence"] for m in manifests], "not one window for each manifest"
    for window, manifest in zip(windows, manifests, strict=True):
        where = f"window {window['sequence']}"
        assert window["spans"] == manifest["spans"], f"{where} covers other offsets than its manifest"
        expected: Counter[str | None] = Counter()
        for place, (start, end) in places(window["spans"]).items():
            assert start == reached[place], f"{where} begins at {place} {start}, not {reached[place]}"
            reached[place] = end
            expected += Counter(fates[place][offset] for offset in range(start, end) if offset in fates[place])
        assert window["records"] == expected.total(), f"{where} counts {window['records']}, not {expected.total()}"
        hashed = expected.pop(None, 0)
        rejected = {reason: count for reason, count in expected.items() if reason not in SPLITS}
        assert window["rejected"] == rejected, f"{where} rejects {window['rejected']}, not {rejected}"
        surplus = {split: window["splits"].get(split, 0) - expected[split] for split in SPLITS}
        assert min(surplus.values()) >= 0, f"{where} has too few of a split: {surplus}"
        assert sum(surplus.values()) == hashed, f"{where} has {surplus} over the known splits, not {hashed} in all"
        assert window["learned"] == window["splits"].get("train", 0), f"{where} did not learn its training samples"
    assert reached == places(log.manifest["positions"]), "the windows do not end at the manifest's positions"


def check_objects(log: Log) -> None:
    """Every object that the newest manifest names is there, has its digest, and holds tensors."""
    for reference in _named(log.manifest):
        url = reference["url"]
        assert url in log.objects, f"{url} is missing"
        data = log.objects[url]
        assert (len(data), _digest(data)) == (reference["size"], reference["digest"]), f"{url} has another digest"
        assert safetensors.numpy.load(data), f"{url} holds no tensors"


def check_release(log: Log) -> None:
    """The chunks in the weights topic, joined, are the last release's object."""
    release = log.manifest["release"]
    assert not release or _digest(log.release()) == release["object"]["digest"], "the chunks are not the release"


def check_dead_letters(log: Log, fed: Sequence[Fed]) -> None:
    """Every rejected record is in the dead letters once, its bytes unchanged, with the headers that say why."""
    letters: dict[tuple[str, int, int], Read] = {}
    for letter in log.dead_letters:
        errors = {n.removeprefix(ERRORS): v.decode() for n, v in letter.headers if n.startswith(ERRORS)}
        origin = errors["topic"], int(errors["partition"]), int(errors["offset"])
        assert origin not in letters, f"{origin} is in the dead letters twice"
        letters[origin] = letter
        assert errors.keys() == {"topic", "partition", "offset", "stage", "exception.class.name", "exception.message"}
    positions = places(log.manifest["positions"])
    rejected = {
        (r.topic, r.partition, r.offset): r.draft
        for r in fed
        if r.draft.fate not in (None, *SPLITS) and r.offset < positions[r.topic, r.partition]
    }
    assert letters.keys() == rejected.keys(), "the dead letters are not the rejected records"
    for origin, draft in rejected.items():
        _check_dead_letter(letters[origin], draft, origin)


def _check_dead_letter(letter: Read, draft: Draft, origin: tuple[str, int, int]) -> None:
    headers = [(name, value) for name, value in letter.headers if not name.startswith(ERRORS)]
    errors = {name.removeprefix(ERRORS): value for name, value in letter.headers}
    assert errors["exception.class.name"].decode() == draft.fate, f"{origin} has another reason"
    assert errors["stage"] == (b"learn" if draft.fate == "too_many_classes" else b"decode"), f"{origin}: stage"
    assert errors["exception.message"], f"{origin} has no message"
    if len(draft.value or b"") > MAX_RECORD_BYTES:
        assert letter.value is None, f"{origin} is too large to be there whole"
        assert headers == [("truncated", b"true"), ("digest", _digest(draft.value).encode())], f"{origin}: headers"
    else:
        assert letter.value == draft.value, f"{origin} has other bytes"
        assert headers == draft.headers, f"{origin} has other headers"
        # A producer may not send a record without both.
        assert letter.key == (b"" if draft.key is draft.value is None else draft.key), f"{origin} has another key"


def check_positions(log: Log) -> None:
    """The group offsets mirror the newest manifest's positions."""
    assert log.group == places(log.manifest["positions"]), "the group offsets are not the manifest's positions"


def places(nested: dict[str, dict[str, Any]]) -> dict[Place, Any]:
    """What is nested by topic and partition, flat."""
    return {(topic, int(p)): value for topic, partitions in nested.items() for p, value in partitions.items()}


def _digest(data: bytes | None) -> str:
    return "sha256:" + hashlib.sha256(data or b"").hexdigest()
