"""Drive a learner along the stream: give it batches, and return reports and snapshots."""

import copy
import time
from collections.abc import Mapping
from typing import Any

from stream_learner.config import Settings
from stream_learner.contract.spans import Positions
from stream_learner.contract.tensors import Arrays
from stream_learner.contract.vocabulary import Reason
from stream_learner.contract.window import Drift
from stream_learner.formats.record import Rejection
from stream_learner.learning.learned import Learned
from stream_learner.learning.learner import Learner, Saved
from stream_learner.learning.state_dict import StateDict, join, split
from stream_learner.monitoring.report import Report
from stream_learner.networks.tensors import as_arrays, as_tensors
from stream_learner.publishing.snapshot import Decided, Snapshot
from stream_learner.run.batches import Batch
from stream_learner.run.progress import Progress


class Driver:
    """Feeds batches to a learner. Keeps offsets, ledger and dead letters, which the learner does not know."""

    def __init__(self, learner: Learner, progress: Progress):
        self.learner = learner
        self.progress = progress

    @classmethod
    def resumed(
        cls,
        settings: Settings,
        positions: Positions,
        state: tuple[Arrays, dict[str, Any]],
        parts: Mapping[str, bytes],
        released: tuple[Arrays, dict[str, Any]] | None,
    ) -> "Driver":
        """Resume at `positions` from a saved state.

        `state` holds the arrays and the document of the state. `parts` holds its parts by digest. `released` is the
        state that was saved with the last release, None before the first release. Raises ValueError when the states do
        not fit the settings, and the errors of `Learner`.
        """
        saved = Saved(_joined(*state), parts, released and _joined(*released))
        return cls(Learner(settings, saved), Progress(positions, state[1]))

    def learn(self, batch: Batch) -> Report:
        """Learn a batch. Raises ValueError when the offsets of the batch do not continue the positions."""
        began = time.monotonic()
        learned = self.learner.learn(batch.samples, batch.records)
        report = _report(batch, learned, self.learner.records, time.monotonic() - began)
        self.progress.add(report)
        return report

    def decide(self) -> Decided:
        """Decide whether to release the model or to return to the last release; see `Learner.decide`."""
        outcome, discarded = self.learner.decide(), None
        if outcome.decision.released or outcome.rolled_back:
            learned = self.progress.settle()
            discarded = learned if outcome.rolled_back else None
        return Decided(outcome.candidate, outcome.decision, discarded)

    def snapshot(self, decided: Decided | None = None) -> Snapshot:
        """Copy the state, and end the interval since the last snapshot. `decided` is the decision just made, if any.

        The learned state does not change.
        """
        learner = self.learner
        tensors, document = split(learner.state_dict())
        return Snapshot(
            tensors=as_arrays(tensors),
            document=document | self.progress.document(),
            parts=learner.parts,
            positions=copy.deepcopy(self.progress.positions),
            interval=self.progress.close(),
            recent=learner.recent,
            arithmetic=learner.arithmetic,
            candidate=decided and decided.candidate,
            decision=decided and decided.decision,
            discarded=decided and decided.discarded,
        )


def _joined(arrays: Arrays, document: dict[str, Any]) -> StateDict:
    return join(as_tensors(arrays), document)


def _report(batch: Batch, learned: Learned, records: int, step_s: float) -> Report:
    """Combine a batch with the result of learning it. `records` is the run's record count, including this batch."""
    refused = [Rejection(batch.sources[r.sample], r.reason, "learn", r.message) for r in learned.refused]
    rejections = batch.rejections + refused
    rejected = {rejection.record[:3]: rejection.reason for rejection in rejections}  # by topic, partition, offset
    reasons = (rejected.get(place) for place in batch.places)
    return Report(
        spans=batch.spans,
        records=batch.records,
        figures=learned,
        used=[reason is None for reason in reasons if reason is not Reason.RARE_LABEL],
        tombstones=batch.tombstones,
        pieces=batch.pieces,
        lost=batch.lost,
        rejections=rejections,
        drifts=[Drift(records, batch.spans, *change) for change in learned.drifts],
        odd_timestamps=batch.odd_timestamps,
        poll_s=batch.poll_s,
        decode_s=batch.decode_s,
        step_s=step_s,
    )
