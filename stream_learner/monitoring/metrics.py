"""Prometheus metrics of a worker.

The names are an interface: dashboards, alerts and the demo's view read them. All units are base units. A figure that is
not known yet is NaN or absent, so that no alert fires on it.
"""

import logging
import math
import time
from bisect import bisect_left
from collections.abc import Iterable
from copy import copy
from datetime import datetime
from functools import partial
from itertools import accumulate, product

from prometheus_client import (
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    PROCESS_COLLECTOR,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    Metric,
)
from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from stream_learner.contract import event_time
from stream_learner.contract.manifest import Manifest
from stream_learner.contract.spans import Positions, each
from stream_learner.contract.vocabulary import Label, Reason, Split
from stream_learner.contract.window import RECENT_SAMPLES, Accuracy, Recent
from stream_learner.monitoring.health import Answer, Health, Phase
from stream_learner.monitoring.report import Report

NAMESPACE = "stream_learner"
BATCH_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
CHECKPOINT_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
WEIGHT_BUCKETS = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.5, 2.0, 3.0, 5.0, 10.0, math.inf)


class RunRegistry(CollectorRegistry):
    """A registry whose series, including those of the process, have the run's id as the label `run`.

    It is a label and not an info metric to join with: alerts must name a run after its worker and series are gone.
    """

    def __init__(self, run_id: str):
        super().__init__()
        self._run = {"run": run_id}
        for collector in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
            self.register(collector)

    def collect(self) -> Iterable[Metric]:
        for metric in super().collect():
            labelled = copy(metric)
            labelled.samples = [sample._replace(labels={**sample.labels, **self._run}) for sample in metric.samples]
            yield labelled


class Metrics:
    """The worker's metrics in `registry`. Any thread may call the methods, but only one may call `observe`."""

    def __init__(
        self,
        registry: CollectorRegistry,
        version: str,
        topics: Iterable[str] = (),
        own_topics: Iterable[str] = (),
        policies: Iterable[str] = (),
    ):
        """Register the metrics.

        `topics` are the input topics, `own_topics` the run's own topics that it reads, `policies` the weight policies.
        All series exist from now on, except those by partition (see `begin`) and by class.
        """
        counter = partial(Counter, namespace=NAMESPACE, registry=registry)
        gauge = partial(Gauge, namespace=NAMESPACE, registry=registry)
        histogram = partial(Histogram, namespace=NAMESPACE, registry=registry)
        partition = ("topic", "partition")
        self._values: dict[tuple[Gauge, str, int], float] = {}

        self._records_in = counter("records_in_total", "Input records read, in records.")
        self._learned = counter("records_learned_total", "Training samples learned, in records.")
        self._held_out = counter("records_held_out_total", "Samples held out, by split, in records.", ("split",))
        self._rejected = counter(
            "records_rejected_total", "Dead letters, by input topic and reason, in records.", ("topic", "reason")
        )
        self._tombstones = counter("tombstones_total", "Deletion markers that were skipped, in records.")
        self._lost = counter(
            "records_lost_total",
            "Offsets that fell off retention or were damaged before they were read, in offsets.",
            partition,
        )
        self._odd_timestamps = counter(
            "record_timestamps_total",
            "Records with an odd timestamp: more than an hour ahead of the worker's clock (`future`) or no time at all "
            "(`unknown`), in records.",
            ("kind",),
        )
        self._steps = counter("steps_total", "Optimizer updates, in steps.")
        self._loss = gauge("loss", "Weighted loss of the last batch that was learned, mean over its steps, in nats.")
        self._accuracy = gauge(
            "accuracy",
            "Accuracy, as a ratio from 0 to 1: prequential is faded over about the last "
            f"{RECENT_SAMPLES} training samples, recent is over exactly the last {RECENT_SAMPLES}, validation and test "
            "are of the last release.",
            ("kind",),
        )
        self._accuracy_samples = gauge(
            "accuracy_samples", "Samples that the accuracy of this kind is computed over, in samples.", ("kind",)
        )
        self._weights = _WeightHistograms(registry)
        self._calibration_error = gauge(
            "calibration_error",
            f"Expected calibration error, as a ratio from 0 to 1: recent is over the last {RECENT_SAMPLES} training "
            "samples, predicted before they were learned; validation is of the last release.",
            ("kind",),
        )
        self._kappa = gauge(
            "kappa",
            f"Cohen's kappa over the last {RECENT_SAMPLES} training samples, predicted before they were learned, as a "
            "ratio: 1 is perfect, 0 is chance.",
        )
        self._class_accuracy = gauge(
            "class_accuracy",
            f"Accuracy of each class among the last {RECENT_SAMPLES} training samples, predicted before they were "
            "learned, as a ratio from 0 to 1.",
            ("label",),
        )
        self._forgetting = gauge(
            "forgetting",
            "Best recall of a class at an earlier release minus its recall at the last release, on the test samples, "
            "as a ratio from -1 to 1.",
            ("label",),
        )
        self._drifts = counter("drifts_total", "Rises of the prequential error that the detector found, in drifts.")
        self._drift_window = gauge(
            "drift_window", "Newest training samples between which the drift detector sees no change, in samples."
        )
        self._boosted = gauge("boosted", "Whether learning is boosted after a drift: 1 when it is, 0 when not.")
        self._log_start = gauge(
            "log_start", "Oldest offset that the brokers keep, as an offset, from the last fetch.", partition
        )
        self._position = gauge("position", "Next offset to learn, as an offset.", partition)
        self._lag_records = gauge("lag_records", "Distance from the partition's end, in records.", partition)
        self._lag_seconds = gauge(
            "lag_seconds",
            "Age of the oldest record that was not read, in seconds; 0 at the partition's end, NaN if its time is not "
            "known.",
            partition,
        )
        self._poll = histogram(
            "poll_seconds", "Waiting for Kafka, per batch with offsets, in seconds.", buckets=BATCH_BUCKETS_S
        )
        self._decode = histogram(
            "decode_seconds", "Decoding, per batch with records, in seconds.", buckets=BATCH_BUCKETS_S
        )
        self._step = histogram("step_seconds", "Learning, per batch with steps, in seconds.", buckets=BATCH_BUCKETS_S)
        self._memory_items = gauge("memory_items", "Samples kept for replay, by label, in samples.", ("label",))
        self._memory_bytes = gauge("memory_bytes", "Encoded images kept for replay, in bytes.")
        self._unsaved = gauge(
            "unsaved_records", "Input records learned since the last committed checkpoint, in records."
        )

        self._checkpoint = histogram(
            "checkpoint_seconds", "From snapshot to commit, per checkpoint, in seconds.", buckets=CHECKPOINT_BUCKETS_S
        )
        self._checkpoint_time = gauge(
            "last_checkpoint_timestamp_seconds",
            "Time of the last checkpoint, in seconds since 1970, UTC; before the first, the start of the process.",
        )
        self._checkpoint_bytes = gauge("last_checkpoint_bytes", "Size of the last saved state, in bytes.")
        self._sequence = gauge(
            "checkpoint_sequence", "Sequence of the last checkpoint, as a number; 0 before the first."
        )
        self._releases = counter("releases_total", "Released models, in releases.")
        self._discarded = counter(
            "records_discarded_total", "Offsets whose learning was undone by going back to a release, in offsets."
        )
        self._refusals = counter("release_refusals_total", "Candidates that the gate refused, in candidates.")
        self._refused = gauge(
            "refused_since_release", "Candidates refused for being worse since the last release, in candidates."
        )
        self._negative_flip_rate = gauge(
            "negative_flip_rate",
            "Validation samples that the last release predicted right and the last candidate wrong, as a ratio from 0 "
            "to 1.",
        )
        self._old_class_drop = gauge(
            "old_class_drop",
            "Mean recall of the last release minus that of the last candidate, over the classes that the release knew, "
            "as a ratio from -1 to 1.",
        )
        self._store_failures = counter("store_failures_total", "Failed writes to the object store, in attempts.")

        self._kafka_warnings = counter(
            "kafka_warnings_total",
            "Warnings of the Kafka client (lost connections, time-outs, refusals), in messages.",
        )
        self._answered = {
            Answer.FETCH: gauge(
                "last_fetch_timestamp_seconds",
                "Time of the brokers' last answer to a fetch of the input, with or without records, in seconds since "
                "1970, UTC; before the first, the start. A worker that still has records to learn does not fetch.",
            ),
            Answer.COMMIT: gauge(
                "last_commit_timestamp_seconds",
                "Time of this process's last commit of a checkpoint, in seconds since 1970, UTC; before the first, the "
                "start.",
            ),
            Answer.METADATA: gauge(
                "last_metadata_timestamp_seconds",
                "Time of the brokers' last answer to a request for metadata, in seconds since 1970, UTC; before the "
                "first, the start. The worker sends such a request every few seconds in every phase.",
            ),
        }
        self._silence = gauge(
            "kafka_silence_seconds",
            "Time since the brokers' last answer, or age of the oldest unanswered fetch of a partition if that is "
            "more, in seconds.",
        )
        self._foreign_records = counter(
            "foreign_records_total",
            "Records in the run's own topics that are not its manifests, skipped at the start, in records.",
            ("topic",),
        )
        self._phase = gauge("phase", "Phase of the worker: 1 for the current phase, 0 for the others.", ("phase",))

        self._live = gauge("live", "Whether the worker's loop runs, as `/livez` shows: 1 when it does, 0 when not.")

        build = Info("build", "The program's version; no unit, always 1.", namespace=NAMESPACE, registry=registry)
        build.info({"version": version})
        for unknown in (
            self._loss,
            self._kappa,
            self._checkpoint_bytes,
            self._negative_flip_rate,
            self._old_class_drop,
        ):
            unknown.set(math.nan)
        for kind in ("prequential", "recent", "validation", "test"):
            self._accuracy.labels(kind).set(math.nan)
        for kind in ("recent", "validation", "test"):
            self._accuracy_samples.labels(kind)
        for kind in ("recent", "validation"):
            self._calibration_error.labels(kind).set(math.nan)
        self._checkpoint_time.set(time.time())
        # A rate over a series that appears with its first event misses that event.
        for split in (Split.VALIDATION, Split.TEST):
            self._held_out.labels(split)
        for kind in event_time.KINDS:
            self._odd_timestamps.labels(kind)
        for topic, reason in product(topics, Reason):
            self._rejected.labels(topic, reason)
        for topic in own_topics:
            self._foreign_records.labels(topic)
        for policy in policies:
            self._weights.observe(policy, [])
        self._classes_shown: set[Label] = set()

    def follow(self, health: Health) -> None:
        """Show the phase and the brokers' last answers at each scrape, and count the Kafka client's warnings."""
        for phase in Phase:
            self._phase.labels(phase).set_function(lambda phase=phase: health.phase is phase)
        self._live.set_function(lambda: health.why_not_live() is None)
        for answer, gauge in self._answered.items():
            gauge.set_function(lambda answer=answer: health.answered_at[answer])
        self._silence.set_function(lambda: health.silence_s)
        logging.getLogger("kafka").addHandler(_Counts(self._kafka_warnings))

    def foreign_records(self, topic: str, records: int) -> None:
        """Count records of a topic that were skipped."""
        self._foreign_records.labels(topic).inc(records)

    def begin(self, positions: Positions) -> None:
        """Show each partition and its next offset to learn, before any record is read."""
        for topic, partitions in positions.items():
            for partition, offset in partitions.items():
                self._position.labels(topic, partition).set(offset)
                self._lost.labels(topic, partition)

    def observe(self, report: Report) -> None:
        """Count a learned batch."""
        self._records_in.inc(report.records)
        self._learned.inc(report.learned)
        for split in (Split.VALIDATION, Split.TEST):
            self._held_out.labels(split).inc(report.samples.get(split, 0))
        for rejection in report.rejections:
            self._rejected.labels(rejection.record.topic, rejection.reason).inc()
        self._tombstones.inc(report.tombstones)
        for kind, count in report.odd_timestamps.items():
            self._odd_timestamps.labels(kind).inc(count)
        for topic, number, span in report.lost:
            self._lost.labels(topic, number).inc(span.end - span.start)
        if report.spans:
            self._poll.observe(report.poll_s)
        if report.records:
            self._decode.observe(report.decode_s)
        if report.steps:
            self._steps.inc(report.steps)
            self._loss.set(report.loss_sum / report.steps)
            self._step.observe(report.step_s)
        for policy, factors in report.weights.items():
            self._weights.observe(policy, factors)
        self._drifts.inc(len(report.drifts))
        for topic, partition, span in each(report.spans):
            self._position.labels(topic, partition).set(span.end)

    def observe_lag(self, topic: str, partition: int, records: int, seconds: float) -> None:
        """Set the lag behind a partition's end. A partition that was added after `begin` is shown from now on."""
        if (self._lag_records, topic, partition) not in self._values:
            self._position.labels(topic, partition)
            self._lost.labels(topic, partition)
        self._set(self._lag_records, topic, partition, records)
        self._set(self._lag_seconds, topic, partition, seconds)

    def observe_log_start(self, topic: str, partition: int, offset: int) -> None:
        """Set the oldest offset of a partition that can still be read."""
        self._set(self._log_start, topic, partition, offset)

    def _set(self, gauge: Gauge, topic: str, partition: int, value: float) -> None:
        """Set a gauge if its value changed: of hundreds of partitions, most are idle."""
        place = gauge, topic, partition
        if self._values.get(place) != value:
            self._values[place] = value
            gauge.labels(topic, partition).set(value)

    def observe_refused(self, candidates: int) -> None:
        """Set the number of candidates refused for being worse since the last release."""
        self._refused.set(candidates)

    def observe_memory(self, fill: dict[Label, int], size_bytes: int) -> None:
        """Set the number of samples in the memory by label, and the bytes of their encoded images."""
        for label, items in fill.items():
            self._memory_items.labels(label).set(items)
        self._memory_bytes.set(size_bytes)

    def observe_recent(self, recent: Recent | None, drift_window: int, boosted: bool) -> None:
        """Set the figures of the last training samples (None before the first) and of the drift detector.

        `drift_window` is the number of newest samples between which the detector sees no change. `boosted` says whether
        learning is boosted.
        """
        self._drift_window.set(drift_window)
        self._boosted.set(boosted)
        if recent is None:
            return
        self._accuracy.labels("prequential").set(recent.faded_accuracy)
        self._show("recent", recent.accuracy)
        self._kappa.set(math.nan if recent.kappa is None else recent.kappa)
        self._show_calibration("recent", recent.calibration_error)
        classes = recent.accuracy.per_class
        for c in classes:
            self._class_accuracy.labels(c.label).set(c.correct / c.total)
        for label in self._classes_shown - {c.label for c in classes}:
            self._class_accuracy.remove(label)
        self._classes_shown = {c.label for c in classes}

    def observe_unsaved(self, records: int) -> None:
        """Set the number of input records that were learned and are in no committed checkpoint."""
        self._unsaved.set(records)

    def checkpoint_committed(self, manifest: Manifest, seconds: float) -> None:
        """Count a checkpoint that took `seconds` from snapshot to commit."""
        self._newest(manifest)
        self._checkpoint.observe(seconds)
        self._checkpoint_bytes.set(manifest.state.size)
        if manifest.released:
            self._releases.inc()
        elif manifest.decision:
            self._refusals.inc()
        self._discarded.inc(sum(span.end - span.start for _, _, span in each(manifest.discarded)))

    def recovered(self, manifest: Manifest) -> None:
        """Show the newest checkpoint, found at the start, without counting it: this process did not make it."""
        self._newest(manifest)

    def _newest(self, manifest: Manifest) -> None:
        self._sequence.set(manifest.sequence)
        self._checkpoint_time.set(datetime.fromisoformat(manifest.created_at).timestamp())
        if manifest.release:
            self._show("validation", manifest.release.validation)
            self._show("test", manifest.release.test)
            self._show_calibration("validation", manifest.release.calibration_error)
            for c in manifest.release.forgetting.per_class if manifest.release.forgetting else []:
                self._forgetting.labels(c.label).set(c.forgetting)
        if manifest.decision:
            for shown, figure in (
                (self._negative_flip_rate, manifest.decision.negative_flip_rate),
                (self._old_class_drop, manifest.decision.old_class_drop),
            ):
                shown.set(math.nan if figure is None else figure)

    def store_failed(self) -> None:
        """Count a failed write to the object store, which will be tried again."""
        self._store_failures.inc()

    def _show(self, kind: str, accuracy: Accuracy) -> None:
        if accuracy.accuracy is not None:
            self._accuracy.labels(kind).set(accuracy.accuracy)
            self._accuracy_samples.labels(kind).set(accuracy.total)

    def _show_calibration(self, kind: str, error: float | None) -> None:
        if error is not None:
            self._calibration_error.labels(kind).set(error)


class _Counts(logging.Handler):
    """Log handler that counts kafka-python's warnings. kafka-python retries by itself and only logs failures."""

    def __init__(self, counter: Counter):
        super().__init__(logging.WARNING)
        self._counter = counter

    def emit(self, record: logging.LogRecord) -> None:  # noqa: ARG002
        self._counter.inc()


class _WeightHistograms(Collector):
    """A histogram for each policy.

    prometheus-client's own histogram takes 1.5 us per value, as long as a small network needs to learn a sample.
    """

    def __init__(self, registry: CollectorRegistry):
        self._counts: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}
        registry.register(self)

    def observe(self, policy: str, values: list[float]) -> None:
        counts = self._counts.setdefault(policy, [0] * len(WEIGHT_BUCKETS))
        for value in values:
            counts[bisect_left(WEIGHT_BUCKETS, value)] += 1
        self._sums[policy] = self._sums.get(policy, 0.0) + sum(values)

    def collect(self) -> Iterable[HistogramMetricFamily]:
        family = HistogramMetricFamily(
            f"{NAMESPACE}_sample_weight",
            "Weights of the training samples learned: each policy's factor, and the `combined` weight; no unit.",
            labels=["policy"],
        )
        for policy, total in list(self._sums.items()):
            cumulative = accumulate(list(self._counts[policy]))
            buckets = [(floatToGoString(le), count) for le, count in zip(WEIGHT_BUCKETS, cumulative, strict=True)]
            family.add_metric([policy], buckets, total)
        yield family
