"""The largest possible window and manifest, through the real broker."""

import random
import uuid
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import msgspec
import numpy as np
import pytest
import torch

from stream_learner.checkpoints.store import Store
from stream_learner.config import MAX_RELEASES, MAX_SEGMENTS, KafkaSettings, Settings
from stream_learner.contract.figures import Figures, Scored, ServedFigures
from stream_learner.contract.ledger import Piece
from stream_learner.contract.manifest import (
    Arithmetic,
    Decision,
    ModelArguments,
    ModelSpec,
    Preprocessing,
    Release,
    digest,
    encode,
)
from stream_learner.contract.objects import Earlier, State
from stream_learner.contract.spans import Span
from stream_learner.contract.vocabulary import Label, Reason, Split
from stream_learner.contract.window import (
    MAX_DRIFTS,
    MAX_SERVED_RELEASES,
    ClassForgetting,
    Confusion,
    Drift,
    Forgetting,
    Recent,
    accuracy,
)
from stream_learner.errors import TopicsError
from stream_learner.follow.status import read_status
from stream_learner.formats.labels import MAX_LABEL_BYTES, MAX_LABELS_BYTES, encoded_bytes
from stream_learner.formats.record import MAX_ROWS, Record, Rejection
from stream_learner.learning.outcome import Candidate
from stream_learner.monitoring.report import Report
from stream_learner.publishing import checkpoint_writer
from stream_learner.publishing.checkpoint_writer import CheckpointWriter
from stream_learner.publishing.fit import fit
from stream_learner.publishing.formats import Formats
from stream_learner.publishing.recover import Recovered
from stream_learner.publishing.shares import NoPeers
from stream_learner.publishing.snapshot import Interval, Snapshot
from stream_learner.publishing.tally import Tally
from stream_learner.run.progress import MAX_ENTRIES, Progress
from stream_learner.streams import topics
from stream_learner.streams.clients import Clients
from stream_learner.streams.connection import ask
from stream_learner.streams.topics import MAX_DOCUMENT_BYTES

PARTITIONS = 600
CLASSES = 1000
DRIFTS = 3000
# Quotation marks double in JSON: nothing in a label takes more.
LABELS: list[Label] = [f"{index:04d}".ljust(256, '"') for index in range(CLASSES)]


def long_names(prefix: str) -> list[str]:
    return [f"{prefix}.{index}.".ljust(200, "x") for index in range(PARTITIONS)]


@pytest.fixture
def settings(kafka: KafkaSettings, unique_name: str) -> Iterator[Settings]:
    """A run that reads 600 topics with long names."""
    names = long_names(uuid.uuid4().hex[:8])
    found = Settings.model_validate(
        {
            "run": {"id": unique_name.ljust(200, "x")},
            "kafka": kafka.model_dump(),
            "input": {"topics": names},
            "checkpoint": {"store": "memory:///"},
        }
    )
    one = {"num_partitions": 1, "replication_factor": 1, "configs": {}}
    ask(kafka, "making topics", lambda admin: admin.create_topics(dict.fromkeys(names, one), wait_for_metadata=True))
    topics.create(found)
    yield found
    ask(kafka, "deleting topics", lambda admin: admin.delete_topics(names))


def worst_report(names: list[str], records_each: int) -> Report:
    """Return pieces of all partitions in a random order, which does not compress.

    It has every reason to reject in every topic, thousands of drifts, and all labels.
    """
    rng = random.Random(0)
    ends, pieces = dict.fromkeys(names, 0), []
    for _ in range(MAX_ENTRIES):
        name = rng.choice(names)
        ends[name] += rng.randrange(1, 1000)
        pieces.append(Piece(name, 0, ends[name]))
    spans = {name: {0: Span(0, end)} for name, end in ends.items()}
    rejections = [
        Rejection(Record(name, 0, 0, 0, None, b"", []), reason, "decode", "") for name in names for reason in Reason
    ]
    return Report(
        spans=spans,
        rows={name: {0: Span(0, MAX_ROWS)} for name in names},
        records=records_each,
        pieces=[pieces],
        rejections=rejections,
        figures=Figures(
            samples={Split.TRAIN: records_each},
            prequential=dict.fromkeys(LABELS, (123, 12345)),
            weights={"record": [1.0]},
        ),
        drifts=[Drift(records_each, spans, 0.1234567891234, 0.987654321)] * DRIFTS,
        served=ServedFigures(
            scored=[
                Scored(1, release, label, True, 1 / 3, 1 / 7)
                for release in range(1, MAX_SERVED_RELEASES + 3)
                for label in LABELS
            ]
        ),
    )


def worst_snapshot(names: list[str]) -> Snapshot:
    """Return a release of a model with all labels, and each object that a manifest may name."""
    scores = accuracy((label, 1234, 123456) for label in LABELS)
    progress = Progress({})
    progress.add(worst_report(names, 123456))
    interval = progress.close()
    interval.dead_letters.clear()  # records of their own
    arguments = ModelArguments(classes=CLASSES, height=32, width=32, channels=3, mean=[0.5], std=[0.25])
    candidate = Candidate(
        parameters={"head": torch.zeros(1)},
        model=ModelSpec("cnn", arguments),
        labels=LABELS,
        retired=list(range(CLASSES)),
        preprocessing=Preprocessing(32, 32, 3, [0.5], [0.25]),
        validation=scores,
        test=scores,
        calibration_error=0.1,
        forgetting=Forgetting(
            mean=0.1, per_class=[ClassForgetting(label=x, best=1 / 3, forgetting=1 / 7) for x in LABELS]
        ),
        evaluation={"images": torch.zeros(1, 32, 32, 3, dtype=torch.uint8), "labels": torch.zeros(1)},
        logits=torch.zeros(1, CLASSES),
    )
    return Snapshot(
        tensors={"x": np.zeros(1, np.float32)},
        document={},
        shards=[],
        parts={digest(part): part for part in map(str.encode, map(str, range(MAX_SEGMENTS // 4)))},
        positions=progress.positions,
        rows=progress.rows,
        interval=interval,
        recent=Recent(
            accuracy=scores,
            faded_accuracy=1 / 3,
            kappa=1 / 3,
            calibration_error=1 / 3,
            confusions=[Confusion(LABELS[0], LABELS[index], 100) for index in range(10)],
        ),
        arithmetic=Arithmetic("2.9.0", "cpu", "AVX2", 1, digest(b"settings")),
        candidate=candidate,
        decision=Decision(released=True, abstained=True, candidate=0.5, last=None, samples=100, reason=""),
        discarded=interval.tally.read.spans,
    )


def worst_earlier(release: Release) -> Earlier:
    earlier = release.as_earlier()
    graph = msgspec.structs.replace(earlier.object, key=earlier.object.key.replace("release.safetensors", "graph.onnx"))
    assert earlier.manifest
    return msgspec.structs.replace(earlier, onnx=graph)


@pytest.fixture
def writer(settings: Settings) -> Iterator[CheckpointWriter]:
    clients = Clients(settings, lambda _: None)
    clients.transaction.fence()
    ids = topics.topic_ids(settings, [*settings.input.topics, topics.Names.under(settings.prefix).checkpoints])
    recovered = Recovered({}, ids, epoch=1)
    formats = Formats(settings.release)
    yield CheckpointWriter(settings, Store(settings.checkpoint.store), clients, recovered, formats, NoPeers())
    clients.close()
    clients.transaction._producer.close(60)
    clients.read_back._consumer.close()


def test_the_largest_window_and_manifest_fit_in_their_topics(settings: Settings, writer: CheckpointWriter, monkeypatch):
    names = settings.input.topics
    snapshot = worst_snapshot(names)
    writer.commit(writer.prepare(snapshot, {name: {0: 123456} for name in names}))
    found = read_status(settings)
    assert found.window
    assert found.manifest
    assert found.manifest.release
    assert len(msgspec.json.encode(found.window)) <= MAX_DOCUMENT_BYTES
    assert len(msgspec.json.encode(found.manifest)) <= MAX_DOCUMENT_BYTES
    # The important fields are present. The omitted ones are named, and no others are missing.
    assert found.manifest.positions == snapshot.positions
    assert found.manifest.spans == found.window.spans == snapshot.interval.tally.read.spans
    assert found.manifest.ledger.batches == 1
    assert found.manifest.release.labels == LABELS
    assert found.window.drift_count == DRIFTS
    assert found.window.omitted == ["drifts", "served.releases.accuracy.per_class"]
    assert found.window.served
    assert len(found.window.served.releases) == MAX_SERVED_RELEASES
    assert found.manifest.omitted == []
    # The same with all that several kept states may add.
    more = msgspec.structs.replace(
        found.manifest,
        parts=4 * found.manifest.parts,
        kept=[State(1, found.manifest.state, [0, 1, 2, 3], 1) for _ in range(1000)],
        earlier=[worst_earlier(found.manifest.release)] * (MAX_RELEASES - 1),
    )
    fitted, data = fit(more, MAX_DOCUMENT_BYTES)
    assert len(data) <= MAX_DOCUMENT_BYTES
    assert fitted.omitted == [f"release.{name}.per_class" for name in ("forgetting", "validation", "test")]
    assert fitted.earlier == more.earlier
    whole, _ = fit(msgspec.structs.replace(more, rows={}), MAX_DOCUMENT_BYTES)
    assert whole.omitted == ["release.forgetting.per_class", "release.validation.per_class"]
    # Each manifest names the omitted fields of its last release.
    monkeypatch.setattr(checkpoint_writer, "MAX_DOCUMENT_BYTES", len(encode(found.manifest)) - 100_000)
    first = writer.commit(writer.prepare(snapshot, {}))
    assert first.omitted == ["release.forgetting.per_class"]
    saved = replace(snapshot, interval=Interval(), candidate=None, decision=None, discarded=None, recent=None)
    second = writer.commit(writer.prepare(saved, {}))
    assert second.release == first.release
    assert second.omitted == first.omitted


def test_few_drifts_are_all_in_a_window_and_of_many_the_first():
    tally = Tally()
    for records in range(1, DRIFTS):
        tally.add(Report(spans={}, records=0, drifts=[Drift(records, {}, 0.1, 0.2)]))
        assert [drift.records for drift in tally.drifts] == list(range(1, min(records, MAX_DRIFTS) + 1))
        assert tally.drift_count == records


def test_lists_are_omitted_one_after_the_other_and_named():
    scores = accuracy([("cat", 1, 2)])
    window = Tally().window(
        run_id="digits",
        epoch=1,
        sequence=1,
        created_at="",
        validation=scores,
        test=None,
        recent=None,
        lag={"images": {0: 1}},
    )
    window = msgspec.structs.replace(window, prequential=scores, rejected_by_topic={"images": {"no_label": 1}})
    size = len(encode(window))
    assert fit(window, size) == (window, encode(window))
    seen = []
    with pytest.raises(TopicsError, match="fit in its topic"):  # noqa: PT012 (when is what the loop finds out)
        while True:
            fitted, data = fit(window, size := size - 1)
            assert len(data) <= size
            assert data == encode(fitted)
            if fitted.omitted not in seen:
                seen.append(fitted.omitted)
    assert seen[-1] == ["prequential.per_class", "validation.per_class", "rejected_by_topic", "lag"]
    assert all(longer[: len(shorter)] == shorter for shorter, longer in pairwise(seen))


def test_a_thousand_of_the_longest_labels_are_within_the_bound():
    assert sum(map(encoded_bytes, LABELS)) <= MAX_LABELS_BYTES
    assert {len(str(label).encode()) for label in LABELS} == {MAX_LABEL_BYTES}
