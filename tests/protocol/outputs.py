"""A run's output records and objects, as an outsider reads them.

It uses no code of the worker, but another Kafka client, plain JSON, plain files and HTTP.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.error import URLError
from urllib.request import urlopen

from confluent_kafka import Consumer, IsolationLevel, KafkaError, Message, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._listoffsets import LatestSpec, OffsetSpec
from feed import Headers, client

READ_DEADLINE_S = 30.0
MARKERS_DEADLINE_S = 200.0  # brokers end a dead worker's transaction after its time-out, 102 s by the defaults
POLL_S = 0.01

Place = tuple[str, int]
# Offset of a record, and its row in a message that holds many records; otherwise 0.
At = tuple[int, int]


class Read(NamedTuple):
    """A record as a consumer gets it."""

    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers


@dataclass
class Log:
    """A run's output: committed records of the output topics, group offsets, and the objects that manifests name.

    `objects` is by key. It lacks those that are not in the store.
    """

    metrics: list[Read]
    checkpoints: list[Read]
    history: list[Read]
    weights: list[Read]
    dead_letters: list[Read]
    group: dict[Place, At]
    objects: dict[str, bytes]

    @property
    def windows(self) -> list[dict[str, Any]]:
        return [json.loads(read.value or b"") for read in self.metrics]

    @property
    def manifests(self) -> list[dict[str, Any]]:
        return [json.loads(read.value or b"") for read in self.history]

    @property
    def manifest(self) -> dict[str, Any]:
        """The newest manifest."""
        return json.loads(self.checkpoints[-1].value or b"")

    @property
    def stored_otherwise(self) -> list[int]:
        """The releases whose stored manifest is not the published one, apart from chunks and its own reference."""
        found = []
        for manifest in self.manifests:
            stored = self.objects.get(manifest["release"]["manifest"]["key"]) if manifest["released"] else None
            for published in inline(manifest["release"]):
                published["chunks"] = []
            if stored and json.loads(stored) != manifest | {"release": manifest["release"] | {"manifest": None}}:
                found.append(manifest["sequence"])
        return found

    def release(self) -> bytes:
        """The release's bytes, joined from the weights topic."""
        return joined(self.manifest["release"], self.weights)


def read(bootstrap_servers: str, prefix: str, inputs: Iterable[Place]) -> Log:
    """Read a run's output from the topics of a prefix."""
    topics = [f"{prefix}.{name}" for name in ("metrics", "checkpoints", "history", "weights", "dead-letters")]
    _await_markers(bootstrap_servers, topics)
    records = {topic: read_topic(bootstrap_servers, topic) for topic in topics}
    group = Consumer(client(bootstrap_servers) | {"group.id": f"stream-learner.{prefix}.worker"})
    committed = group.committed([TopicPartition(*place) for place in inputs], timeout=READ_DEADLINE_S)
    group.close()
    return Log(
        *records.values(),
        group={
            (place.topic, place.partition): (place.offset, int(place.metadata or 0))
            for place in committed
            if place.offset >= 0
        },
        objects=objects([json.loads(read.value or b"") for read in records[f"{prefix}.history"]]),
    )


def _await_markers(bootstrap_servers: str, topics: Iterable[str]) -> None:
    """Wait until no open transaction hides records of these topics, each of one partition.

    Brokers write the end of a transaction to one partition after the other, so for a moment only some show it (KIP-98).
    """
    admin = AdminClient(client(bootstrap_servers))
    latest: dict[TopicPartition, OffsetSpec] = {TopicPartition(topic, 0): LatestSpec() for topic in topics}

    def ends(isolation_level: IsolationLevel) -> list[int]:
        found = admin.list_offsets(latest, isolation_level=isolation_level)
        return [found[place].result(READ_DEADLINE_S).offset for place in latest]

    written = ends(IsolationLevel.READ_UNCOMMITTED)
    deadline = time.monotonic() + MARKERS_DEADLINE_S
    while any(seen < end for seen, end in zip(ends(IsolationLevel.READ_COMMITTED), written, strict=True)):
        assert time.monotonic() < deadline, f"a transaction stays open in one of {', '.join(topics)}"
        time.sleep(POLL_S)


def read_topic(bootstrap_servers: str, topic: str, start: int = 0) -> list[Read]:
    """Read the committed records of a topic of one partition, from an offset on."""
    return [*reads(bootstrap_servers, topic, start)]


def reads(bootstrap_servers: str, topic: str, start: int = 0) -> Iterator[Read]:
    """Yield what `read_topic` returns. A topic may hold more than fits in memory."""
    consumer = Consumer(
        client(bootstrap_servers)
        | {
            "group.id": "outsider",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",  # what retention has deleted is not waited for
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 10,
        }
    )
    consumer.assign([TopicPartition(topic, 0, start)])
    while (message := consumer.poll(READ_DEADLINE_S)) is not None:
        error = message.error()
        if error and error.code() == KafkaError._PARTITION_EOF:
            consumer.close()
            return
        assert error is None, error
        yield _read(message)
    raise AssertionError(f"{topic} could not be read to its end")


def _read(message: Message) -> Read:
    headers = [*(message.headers() or [])]
    return Read(message.offset() or 0, message.key(), message.value(), headers)  # pyright: ignore


def objects(manifests: Sequence[dict[str, Any]]) -> dict[str, bytes]:
    """Return the objects that any of the manifests names, by key, from the last manifest's store."""
    keys = {reference["key"] for manifest in manifests for reference in named_objects(manifest)}
    return {key: data for key in keys if (data := _bytes(f"{manifests[-1]['store']}/{key}")) is not None}


def _bytes(url: str) -> bytes | None:
    """Return an object, or None if it is missing. A bucket is read through the server that the worker uses."""
    bucket = url.removeprefix("s3://")
    try:
        with urlopen(url if bucket == url else f"{os.environ['AWS_ENDPOINT_URL']}/{bucket}") as file:
            return file.read()
    except URLError as error:
        if isinstance(error.reason, FileNotFoundError) or getattr(error, "code", None) == HTTPStatus.NOT_FOUND:
            return None
        raise


def named_objects(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the reference of every object that a manifest names."""
    release = manifest["release"]
    return [
        manifest["state"],
        *(kept["object"] for kept in manifest["kept"]),
        *manifest["parts"],
        *([release["evaluation"], release["manifest"]] if release else []),
        *(published["object"] for published in inline(release)),
        *(reference for earlier in manifest["earlier"] for reference in of_earlier(earlier).values()),
    ]


def of_earlier(earlier: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the objects of an earlier release by their names in a manifest."""
    return {name: earlier[name] for name in ("object", "evaluation", "canary", "onnx", "manifest") if earlier[name]}


def inline(release: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the objects of a release that the weights topic may hold too, with their chunks in order."""
    if not release:
        return []
    onnx = release["onnx"]
    return [release, release["canary"], *([onnx["published"]] if onnx else [])]


def matches(data: bytes, reference: dict[str, Any]) -> bool:
    return (len(data), digest(data)) == (reference["size"], reference["digest"])


def joined(published: dict[str, Any], weights: Iterable[Read]) -> bytes:
    """Join the chunks of an object that are in the weights topic."""
    values = {read.offset: read.value or b"" for read in weights}
    return b"".join(values.get(chunk["offset"], b"") for chunk in published["chunks"])


def roll_backs(log: Log) -> list[dict[str, Any]]:
    """Return the manifests of checkpoints at which training went back."""
    return [manifest for manifest in log.manifests if manifest["rolled_back_to"] is not None]


def discarded(log: Log) -> int:
    """Count the discarded offsets."""
    spans = [span for manifest in log.manifests for span in places(manifest["discarded"]).values()]
    return sum(end - start for start, end in spans)


def places(nested: dict[str, dict[str, Any]]) -> dict[Place, Any]:
    """Flatten a document that is nested by topic and partition."""
    return {(topic, int(p)): value for topic, partitions in nested.items() for p, value in partitions.items()}


def digest(data: bytes | None) -> str:
    return "sha256:" + hashlib.sha256(data or b"").hexdigest()
