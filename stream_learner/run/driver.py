"""Drive a learner along the stream: give it batches, and return reports and snapshots."""

import copy
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from stream_learner.config import Settings
from stream_learner.contract.spans import Positions, RowsRead, Spans, extend_all
from stream_learner.contract.tensors import Arrays
from stream_learner.contract.vocabulary import Reason
from stream_learner.contract.window import Drift
from stream_learner.formats.record import Rejection
from stream_learner.learning.learned import Learned
from stream_learner.learning.learner import Learner
from stream_learner.learning.parallel import Parallel
from stream_learner.learning.saved import Saved
from stream_learner.learning.state_dict import StateDict, join, prefixed, split, under
from stream_learner.learning.stored import part
from stream_learner.monitoring.report import Report
from stream_learner.networks.tensors import as_arrays, as_tensors
from stream_learner.publishing.snapshot import Decided, ShardState, Snapshot
from stream_learner.run.batch import Batch
from stream_learner.run.inputs import joined
from stream_learner.run.progress import Progress
from stream_learner.run.served import Served
from stream_learner.run.together import alone

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
    def fresh(cls, settings: Settings, positions: Positions, parallel: Parallel | None = None) -> "Driver":
        """Begin at `positions` without a state. Raises the errors of `Learner`."""
        progress = Progress(positions, predictions_topic=settings.predictions_topic)
        return cls(Learner(settings, parallel=parallel), progress, _served(settings))

    @classmethod
    def resumed(
        cls,
        settings: Settings,
        positions: Positions,
        state: tuple[Arrays, dict[str, Any]],
        parts: Mapping[str, bytes],
        released: tuple[Arrays, dict[str, Any]] | None,
        shards: Sequence[tuple[Arrays, dict[str, Any]]] = (),
        parallel: Parallel | None = None,
        rows: RowsRead | None = None,
    ) -> "Driver":
        """Resume at `positions` from a saved state, after `rows` of the messages at the positions.

        `state` holds the arrays and the document of the state. `parts` holds its parts by digest. `released` is the
        state that was saved with the last release, None before the first release. `shards` are the states of this
        rank's shards, empty if the run has a single shard. Raises ValueError when the states do not fit the settings,
        and the errors of `Learner`.
        """
        joined, served = _joined(*state), _served(settings)
        saved = Saved(joined, parts, released and _joined(*released), [_joined(*shard) for shard in shards])
        learner = Learner(settings, saved, parallel)
        if served and SERVED in joined:
            arrays, document = state
            with part(SERVED):
                served.load_state_dict(under(SERVED, arrays), document.get(SERVED))
        return cls(learner, Progress(positions, state[1], settings.predictions_topic, rows), served)

    def learn(self, *batches: Batch) -> Report:
        """Learn a batch for each shard of this rank. Raises ValueError when offsets do not continue the positions."""
        began = time.monotonic()
        learned = self.learner.learn_shards([b.samples for b in batches], [b.records for b in batches])
        figures = _figures_of_rank(batches, learned, self.learner.parallel)
        report = _report(batches, learned, figures, self.learner.records, time.monotonic() - began)
        if self.served:
            (batch,) = batches  # the settings allow only one shard
            refused = {refused.sample for refused in learned.refused}
            report.served = self.served.evaluate(batch.predictions, batch.samples, refused)
        report.collectives_s, report.sent_bytes = self.learner.parallel.take_traffic()
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
            shards=[ShardState(as_arrays(tensors), rest) for tensors, rest in map(split, learner.shard_states())],
            parts=learner.parts,
            positions=copy.deepcopy(self.progress.positions),
            rows=copy.deepcopy(self.progress.rows),
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


def _figures_of_rank(batches: Sequence[Batch], learned: Learned, parallel: Parallel) -> Learned:
    """Return the figures that this rank reports. Each rank counts its own samples, and rank 0 has the other figures."""
    if alone(parallel):
        return learned
    refused = {(refused.shard, refused.sample) for refused in learned.refused}
    splits = (s.split for i, b in enumerate(batches) for j, s in enumerate(b.samples) if (i, j) not in refused)
    return replace(learned if parallel.rank == 0 else Learned(), samples=dict(Counter(splits)))


def _report(batches: Sequence[Batch], learned: Learned, figures: Learned, records: int, step_s: float) -> Report:
    """Combine batches with the result of learning them. `records` is the run's record count, with these batches."""
    sources = (batches[refused.shard].sources[refused.sample].encoded() for refused in learned.refused)
    refused = [Rejection(s, r.reason, "learn", r.message) for s, r in zip(sources, learned.refused, strict=True)]
    rejections = [rejection for batch in batches for rejection in batch.rejections] + refused
    rejected = {rejection.record.at: rejection.reason for rejection in rejections}
    reasons = (rejected.get(place) for batch in batches for place in batch.places)
    spans: Spans = {}
    for batch in batches:
        extend_all(spans, batch.spans)
    return Report(
        spans=spans,
        rows=joined(batch.rows for batch in batches),
        records=sum(batch.records for batch in batches),
        figures=figures,
        used=[reason is None for reason in reasons if reason is not Reason.RARE_LABEL],
        tombstones=sum(batch.tombstones for batch in batches),
        pieces=[batch.pieces for batch in batches],
        lost=[lost for batch in batches for lost in batch.lost],
        rejections=rejections,
        drifts=[Drift(records, spans, *change) for change in figures.drifts],
        odd_timestamps=sum((batch.odd_timestamps for batch in batches), Counter()),
        poll_s=sum(batch.poll_s for batch in batches),
        decode_s=sum(batch.decode_s for batch in batches),
        step_s=step_s,
    )
