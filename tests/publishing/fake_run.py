"""A run whose store and cluster are in memory, and what it publishes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from fakes import TOPIC, Effects, FakeClients, FakeCluster, FakeReadBack, FakeStore, FakeTransaction

from stream_learner.config import Settings
from stream_learner.contract import keys
from stream_learner.contract.figures import Figures
from stream_learner.contract.manifest import (
    Arithmetic,
    Decision,
    Manifest,
    ModelArguments,
    ModelSpec,
    Preprocessing,
    digest,
)
from stream_learner.contract.spans import Span
from stream_learner.contract.vocabulary import Reason, Split
from stream_learner.contract.window import Forgetting, accuracy
from stream_learner.formats.record import Record, Rejection
from stream_learner.learning.classes import Classes
from stream_learner.learning.identity import identity
from stream_learner.learning.outcome import Candidate
from stream_learner.monitoring.report import Report
from stream_learner.publishing.checkpoint_writer import CheckpointWriter
from stream_learner.publishing.formats import Formats
from stream_learner.publishing.recover import Recovered, Recovery
from stream_learner.publishing.shares import NoPeers, Peers
from stream_learner.publishing.snapshot import Snapshot
from stream_learner.run.progress import Progress

SIDE = 8


class FakeRun:
    """A run whose store and cluster are in memory."""

    def __init__(self, **overrides: Any):
        document: dict[str, Any] = {
            "run": {"id": "digits"},
            "input": {"topics": [TOPIC]},
            "model": {"name": "mlp", "height": SIDE, "width": SIDE, "channels": 1},
            "learning": {"device": "cpu", "threads": 1, "augment": []},
            "release": {"formats": ["safetensors"]},
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
        return Recovery(self.settings, self.store, self.cluster, (), fresh, skipped)

    def recover(self, fresh: bool = False) -> Recovered:
        """Take the run over, as a start does."""
        self.transaction = FakeTransaction(self.cluster)
        return self.recovery(fresh).take_over(self.transaction.fence)

    def writer(self, recovered: Recovered | None = None, peers: Peers | None = None) -> CheckpointWriter:
        """The writer of a worker that has taken the run over. By default, it has no other ranks."""
        recovered = recovered or self.recover()
        clients = FakeClients(self.cluster, self.transaction, FakeReadBack(self.cluster))
        return CheckpointWriter(
            self.settings, self.store, clients, recovered, Formats(self.settings.release), peers or NoPeers()
        )

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
                pieces=[[]],
                rejections=[*letters],
            )
        )
        return Snapshot(
            tensors={"x": np.full(1, start, np.float32)},
            document=identity(self.settings) | Classes(self.settings).state_dict(),
            shards=[],
            parts={digest(part): part for part in parts},
            positions={TOPIC: {0: start + records}},
            rows={},
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
        named = [*states, *manifest.parts]
        if release:
            named += [release.object, release.evaluation, release.canary.object, release.manifest]
        for earlier in manifest.earlier:
            named += [earlier.object, earlier.evaluation, earlier.canary, earlier.manifest]
        return {one.key for one in named if one}


def kept_run(batch_size: int, **overrides: Any) -> FakeRun:
    """Return a run of small states, all of which are kept. Every third batch a release is due."""
    return FakeRun(
        batch__size=batch_size,
        release__every_records=3 * batch_size,
        release__min_held_out=1,
        checkpoint__keep=100,
        memory__max_bytes=40_000,
        memory__segment_bytes=16 * 1024,
        held_out__max_bytes=16_000,
        learning__optimizer="sgd",
        **overrides,
    )


def candidate(value: float) -> Candidate:
    import torch

    arguments = ModelArguments(classes=1, height=SIDE, width=SIDE, channels=1, mean=[0.5], std=[0.25])
    scores = accuracy([("cat", 1, 1)])
    return Candidate(
        parameters={"head": torch.full((1,), value)},
        model=ModelSpec("mlp", arguments),
        labels=["cat"],
        retired=[],
        preprocessing=Preprocessing(SIDE, SIDE, 1, [0.5], [0.25]),
        validation=scores,
        test=scores,
        calibration_error=None,
        forgetting=Forgetting(mean=0.0, per_class=[]),
        evaluation={"images": torch.zeros(1, SIDE, SIDE, 1, dtype=torch.uint8), "labels": torch.zeros(1)},
        logits=torch.zeros(1, 1),
    )


def decision(released: bool) -> Decision:
    return Decision(released=released, abstained=False, candidate=0.5, last=None, samples=1, reason="a reason")


def rejection(offset: int, reason: Reason = Reason.NO_LABEL, value: bytes = b"bytes") -> Rejection:
    """A dead letter of the input."""
    return Rejection(Record(TOPIC, 0, offset, 0, None, value, []), reason, "decode", "it has no label")


def of_a_run(settings: Settings, sequence: int) -> str:
    """A key of a state that no manifest names."""
    return f"{keys.new_folder(settings.run.id, sequence)}/{keys.STATE}"
