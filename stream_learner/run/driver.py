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
from stream_learner.learning.learner import Learner
from stream_learner.learning.saved import Saved
from stream_learner.learning.state_dict import StateDict, join, prefixed, split, under
from stream_learner.learning.stored import part
from stream_learner.monitoring.report import Report
from stream_learner.networks.tensors import as_arrays, as_tensors
from stream_learner.publishing.snapshot import Decided, Snapshot
from stream_learner.run.batches import Batch
from stream_learner.run.progress import Progress
from stream_learner.run.served import Served

SERVED = "served"
"""Name of the part of the state that holds the served predictions."""


class Driver:
    """Feeds batches to a learner. Keeps offsets, ledger and dead letters, which the learner does not know.

    `served` evaluates served predictions; None unless `served.evaluate` is true. It follows the positions: it does not
    go back when training goes back to the last release.
    """

    def __init__(self, learner: Learner, progress: Progress, served: Served | None = None):
        self.learner = learner
        self.progress = progress
        self.served = served

    @classmethod
    def fresh(cls, settings: Settings, positions: Positions) -> "Driver":
        """Begin at `positions` without a state. Raises the errors of `Learner`."""
        return cls(
            Learner(settings), Progress(positions, predictions_topic=settings.predictions_topic), _served(settings)
        )

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
        joined, served = _joined(*state), _served(settings)
        learner = Learner(settings, Saved(joined, parts, released and _joined(*released)))
        if served and SERVED in joined:
            arrays, document = state
            with part(SERVED):
                served.load_state_dict(under(SERVED, arrays), document.get(SERVED))
        return cls(learner, Progress(positions, state[1], settings.predictions_topic), served)

    def learn(self, batch: Batch) -> Report:
        """Learn a batch. Raises ValueError when the offsets of the batch do not continue the positions."""
        began = time.monotonic()
        learned = self.learner.learn(batch.samples, batch.records)
        report = _report(batch, learned, self.learner.records, time.monotonic() - began)
        if self.served and batch.spans:  # the ledger does not record an idle turn, so it must change nothing
            refused = {refused.sample for refused in learned.refused}
            report.served = self.served.evaluate(batch.predictions, batch.samples, refused)
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
        arrays, document = as_arrays(tensors), document | self.progress.document()
        if self.served:
            waiting, rest = self.served.state_dict()
            arrays, document = arrays | prefixed(SERVED, waiting), document | {SERVED: rest}
        return Snapshot(
            tensors=arrays,
            document=document,
            parts=learner.parts,
            positions=copy.deepcopy(self.progress.positions),
            interval=self.progress.close(),
            recent=learner.recent,
            arithmetic=learner.arithmetic,
            candidate=decided and decided.candidate,
            decision=decided and decided.decision,
            discarded=decided and decided.discarded,
        )


def _served(settings: Settings) -> Served | None:
    return Served(settings.served) if settings.served.evaluate else None


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
