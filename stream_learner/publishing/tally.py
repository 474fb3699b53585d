"""Sums over the records between two snapshots."""

from collections.abc import Mapping

import msgspec

from stream_learner.contract import event_time
from stream_learner.contract.spans import Spans, Stretches, each, extend_all
from stream_learner.contract.vocabulary import Label, Split
from stream_learner.contract.window import MAX_DRIFTS, Distribution, Drift, Window, accuracy
from stream_learner.formats import rejects
from stream_learner.formats.rejects import Rejects
from stream_learner.monitoring.report import Report
from stream_learner.publishing.served_tally import ServedTally


class Read(msgspec.Struct):
    """Sums over the records that one rank read."""

    spans: Spans = {}
    lost: Stretches = {}
    records: int = 0
    splits: dict[str, int] = {}
    rejects: Rejects = {}
    tombstones: int = 0
    timestamps: dict[str, int] = msgspec.field(default_factory=lambda: dict.fromkeys(event_time.KINDS, 0))

    def join(self, other: "Read") -> None:
        """Add the sums of a rank that read other partitions."""
        extend_all(self.spans, other.spans)
        for topic, partition, stretches in each(other.lost):
            self.lost.setdefault(topic, {})[partition] = stretches
        self.records += other.records
        for split, number in other.splits.items():
            self.splits[split] = self.splits.get(split, 0) + number
        for topic, reasons in other.rejects.items():
            for reason, number in reasons.items():
                rejects.add(self.rejects, topic, reason, number)
        self.tombstones += other.tombstones
        for kind, number in other.timestamps.items():
            self.timestamps[kind] += number


class Tally:
    """Sums of reports until a window closes. Only `read` differs between the ranks of a run."""

    def __init__(self):
        self.read = Read()
        self.steps = 0
        self.loss_sum = 0.0
        self.prequential: dict[Label, tuple[int, int]] = {}
        self.weights: dict[str, Distribution] = {}
        self.drift_count = 0
        self.drifts: list[Drift] = []
        self.served: ServedTally | None = None

    def add(self, report: Report) -> None:
        """Add a report. Raises ValueError when its offsets do not follow the offsets of the earlier reports."""
        read = self.read
        extend_all(read.spans, report.spans)
        for topic, partition, span in report.lost:
            read.lost.setdefault(topic, {}).setdefault(partition, []).append(span)
        read.records += report.records
        for split, count in report.figures.samples.items():
            read.splits[split.value] = read.splits.get(split.value, 0) + count
        rejects.count(read.rejects, report.rejections)
        read.tombstones += report.tombstones
        for kind, count in report.odd_timestamps.items():
            read.timestamps[kind] += count
        self.steps += report.figures.steps
        self.loss_sum += report.figures.loss_sum
        if report.served:
            self.served = self.served or ServedTally()
            self.served.add(report.served)
        self.drift_count += len(report.drifts)
        self.drifts += report.drifts[: MAX_DRIFTS - len(self.drifts)]
        for label, (correct, total) in report.figures.prequential.items():
            before = self.prequential.get(label, (0, 0))
            self.prequential[label] = (before[0] + correct, before[1] + total)
        found = {policy: _distribution(factors) for policy, factors in report.figures.weights.items()}
        self.weights = joined(self.weights, found)

    def window(self, **rest) -> Window:
        """Return the window. `rest` holds the fields that are not sums."""
        return Window(
            spans=self.read.spans,
            lost=self.read.lost,
            records=self.read.records,
            splits=self.read.splits,
            rejected=rejects.by_reason(self.read.rejects),
            rejected_by_topic=self.read.rejects,
            tombstones=self.read.tombstones,
            timestamps=self.read.timestamps,
            learned=self.read.splits.get(Split.TRAIN.value, 0),
            steps=self.steps,
            loss=self.loss_sum / self.steps if self.steps else None,
            weights=self.weights,
            prequential=accuracy((label, *counts) for label, counts in self.prequential.items()),
            served=self.served and self.served.window(),
            drift_count=self.drift_count,
            drifts=self.drifts,
            **rest,
        )


def joined(before: Mapping[str, Distribution], after: Mapping[str, Distribution]) -> dict[str, Distribution]:
    """Return the distributions of the values of both, by name."""
    both = {name: _joined(before[name], found) for name, found in after.items() if name in before}
    return {**before, **after, **both}


def _distribution(factors: list[float]) -> Distribution:
    return Distribution(len(factors), sum(factors) / len(factors), min(factors), max(factors))


def _joined(before: Distribution, after: Distribution) -> Distribution:
    count = before.count + after.count
    return Distribution(
        count=count,
        mean=before.mean + (after.mean - before.mean) * after.count / count,
        min=min(before.min, after.min),
        max=max(before.max, after.max),
    )
