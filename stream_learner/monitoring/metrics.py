"""Update the Prometheus series of a worker."""

import logging
import math
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from itertools import product

from prometheus_client import CollectorRegistry, Counter, Gauge

from stream_learner.contract import event_time
from stream_learner.contract.figures import SERVED_OUTCOMES
from stream_learner.contract.manifest import Manifest
from stream_learner.contract.spans import Positions, each
from stream_learner.contract.vocabulary import Label, Reason, Split
from stream_learner.contract.window import Accuracy, Recent
from stream_learner.monitoring.health import Health, Phase
from stream_learner.monitoring.report import Report
from stream_learner.monitoring.series import Series


class Metrics:
    """The worker's metrics in `registry`. Any thread may call the methods, but only one thread may call `observe`."""

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
        After this call all series exist, except the series of partitions (see `begin`) and of classes.
        """
        self._series = Series(registry, version)
        self._values: dict[tuple[Gauge, str, int], float] = {}
        # A rate over a series that appears with its first event misses that event.
        for split in (Split.VALIDATION, Split.TEST):
            self._series.held_out.labels(split)
        for kind in event_time.KINDS:
            self._series.odd_timestamps.labels(kind)
        self._series.formats_missing.labels("onnx")
        for outcome in SERVED_OUTCOMES:
            self._series.served_predictions.labels(outcome)
        for topic, reason in product(topics, Reason):
            self._series.rejected.labels(topic, reason)
        for topic in own_topics:
            self._series.foreign_records.labels(topic)
        for policy in policies:
            self._series.weights.observe(policy, [])
        self._classes_shown: set[Label] = set()
        self._served_shown: set[tuple[int, int]] = set()

    def follow(self, health: Health) -> None:
        """Show phase, waits and the brokers' last answers at each scrape, and count the Kafka client's warnings."""
        for phase in Phase:
            self._series.phase.labels(phase).set_function(lambda phase=phase: health.phase is phase)
        self._series.live.set_function(lambda: health.why_not_live() is None)
        self._series.format_waits.set_function(lambda: health.waits_for is not None)
        for answer, gauge in self._series.answered.items():
            gauge.set_function(lambda answer=answer: health.answered_at[answer])
        self._series.silence.set_function(lambda: health.silence_s)
        logging.getLogger("kafka").addHandler(_Counts(self._series.kafka_warnings))

    def update_with(self, update: Callable[[], None]) -> None:
        """Call `update` at each scrape, before the metrics are read. It runs on the thread of the monitoring port."""
        self._series.updates.update = update

    def foreign_records(self, topic: str, records: int) -> None:
        """Count skipped records: records in one of the run's own topics that are not its manifests."""
        self._series.foreign_records.labels(topic).inc(records)

    def begin(self, positions: Positions) -> None:
        """Show each partition and its next offset to learn, before any record is read."""
        for topic, partitions in positions.items():
            for partition, offset in partitions.items():
                self._series.position.labels(topic, partition).set(offset)
                self._series.lost.labels(topic, partition)

    def observe(self, report: Report) -> None:
        """Count a learned batch."""
        self._series.records_in.inc(report.records)
        self._series.learned.inc(report.figures.learned)
        for split in (Split.VALIDATION, Split.TEST):
            self._series.held_out.labels(split).inc(report.figures.samples.get(split, 0))
        for rejection in report.rejections:
            self._series.rejected.labels(rejection.record.topic, rejection.reason).inc()
        self._series.tombstones.inc(report.tombstones)
        for kind, count in report.odd_timestamps.items():
            self._series.odd_timestamps.labels(kind).inc(count)
        for topic, number, span in report.lost:
            self._series.lost.labels(topic, number).inc(span.end - span.start)
        if report.spans:
            self._series.poll.observe(report.poll_s)
        if report.records:
            self._series.decode.observe(report.decode_s)
        if report.figures.steps:
            self._series.steps.inc(report.figures.steps)
            self._series.loss.set(report.figures.loss_sum / report.figures.steps)
            self._series.step.observe(report.step_s)
        self._series.collectives.inc(report.collectives_s)
        self._series.sent_bytes.inc(report.sent_bytes)
        for policy, factors in report.figures.weights.items():
            self._series.weights.observe(policy, factors)
        if report.served:
            for outcome, predictions in report.served.outcomes.items():
                self._series.served_predictions.labels(outcome).inc(predictions)
            for scored in report.served.scored:
                if scored.delay_s is not None:
                    self._series.served_delay.observe(scored.delay_s)
        self._series.drifts.inc(len(report.drifts))
        for topic, partition, span in each(report.spans):
            self._series.position.labels(topic, partition).set(span.end)

    def observe_lag(self, topic: str, partition: int, records: int, seconds: float) -> None:
        """Set the lag behind a partition's end. A partition that was added after `begin` is shown from now on."""
        if (self._series.lag_records, topic, partition) not in self._values:
            self._series.position.labels(topic, partition)
            self._series.lost.labels(topic, partition)
        self._set(self._series.lag_records, topic, partition, records)
        self._set(self._series.lag_seconds, topic, partition, seconds)

    def observe_log_start(self, topic: str, partition: int, offset: int) -> None:
        """Set the oldest offset of a partition that can still be read."""
        self._set(self._series.log_start, topic, partition, offset)

    def _set(self, gauge: Gauge, topic: str, partition: int, value: float) -> None:
        """Set a gauge only if its value changed. This saves time: of hundreds of partitions, most are idle."""
        place = gauge, topic, partition
        if self._values.get(place) != value:
            self._values[place] = value
            gauge.labels(topic, partition).set(value)

    def observe_refused(self, candidates: int) -> None:
        """Set the number of candidates since the last release that were refused because they were worse."""
        self._series.refused.set(candidates)

    def observe_memory(self, fill: dict[Label, int], size_bytes: int) -> None:
        """Set the number of samples in the memory by label, and the bytes of their encoded images."""
        for label, items in fill.items():
            self._series.memory_items.labels(label).set(items)
        self._series.memory_bytes.set(size_bytes)

    def observe_recent(self, recent: Recent | None, drift_window: int, boosted: bool) -> None:
        """Set the figures of the last training samples (None before the first) and of the drift detector.

        `drift_window` is the number of newest samples in which the detector sees no change. `boosted` says whether
        learning is boosted.
        """
        self._series.drift_window.set(drift_window)
        self._series.boosted.set(boosted)
        if recent is None:
            return
        self._series.accuracy.labels("prequential").set(recent.faded_accuracy)
        self._show("recent", recent.accuracy)
        self._series.kappa.set(math.nan if recent.kappa is None else recent.kappa)
        self._show_calibration("recent", recent.calibration_error)
        classes = recent.accuracy.per_class
        for c in classes:
            self._series.class_accuracy.labels(c.label).set(c.correct / c.total)
        for label in self._classes_shown - {c.label for c in classes}:
            self._series.class_accuracy.remove(label)
        self._classes_shown = {c.label for c in classes}

    def observe_served(self, waiting: int, totals: dict[tuple[int, int], tuple[int, int]]) -> None:
        """Set the number of served predictions that wait, and the accuracy of releases.

        `totals` has the correct and all scored predictions by epoch and sequence of the release.
        """
        self._series.served_waiting.set(waiting)
        for release, (correct, total) in totals.items():
            self._series.served_accuracy.labels(*release).set(correct / total)
            self._series.served_scored.labels(*release).set(total)
        for release in self._served_shown - totals.keys():
            self._series.served_accuracy.remove(*release)
            self._series.served_scored.remove(*release)
        self._served_shown = set(totals)

    def observe_unsaved(self, records: int) -> None:
        """Set the number of input records that were learned and are in no committed checkpoint."""
        self._series.unsaved.set(records)

    def checkpoint_committed(self, manifest: Manifest, seconds: float) -> None:
        """Count a checkpoint that took `seconds` from snapshot to commit."""
        self._newest(manifest)
        self._series.checkpoint.observe(seconds)
        self._series.checkpoint_bytes.set(manifest.state.size)
        if manifest.released:
            self._series.releases.inc()
            for name in manifest.release.missing_formats if manifest.release else ():
                self._series.formats_missing.labels(name).inc()
        elif manifest.decision:
            self._series.refusals.inc()
        self._series.discarded.inc(sum(span.end - span.start for _, _, span in each(manifest.discarded)))

    def shared(self) -> None:
        """Show that rank 0 has committed a checkpoint with the share of this rank."""
        self._series.checkpoint_time.set(time.time())

    def recovered(self, manifest: Manifest) -> None:
        """Show the checkpoint that was found at the start. Do not count it, because an earlier process made it."""
        self._newest(manifest)

    def _newest(self, manifest: Manifest) -> None:
        self._series.sequence.set(manifest.sequence)
        self._series.checkpoint_time.set(datetime.fromisoformat(manifest.created_at).timestamp())
        if manifest.release:
            self._show("validation", manifest.release.validation)
            self._show("test", manifest.release.test)
            self._show_calibration("validation", manifest.release.calibration_error)
            for c in manifest.release.forgetting.per_class if manifest.release.forgetting else []:
                self._series.forgetting.labels(c.label).set(c.forgetting)
        if manifest.decision:
            for shown, figure in (
                (self._series.negative_flip_rate, manifest.decision.negative_flip_rate),
                (self._series.old_class_drop, manifest.decision.old_class_drop),
            ):
                shown.set(math.nan if figure is None else figure)

    def store_failed(self) -> None:
        """Count a failed write to the object store, which will be tried again."""
        self._series.store_failures.inc()

    def _show(self, kind: str, accuracy: Accuracy) -> None:
        if accuracy.accuracy is not None:
            self._series.accuracy.labels(kind).set(accuracy.accuracy)
            self._series.accuracy_samples.labels(kind).set(accuracy.total)

    def _show_calibration(self, kind: str, error: float | None) -> None:
        if error is not None:
            self._series.calibration_error.labels(kind).set(error)


class _Counts(logging.Handler):
    """Log handler that counts kafka-python's warnings. kafka-python retries by itself and only logs failures."""

    def __init__(self, counter: Counter):
        super().__init__(logging.WARNING)
        self._counter = counter

    def emit(self, record: logging.LogRecord) -> None:  # noqa: ARG002
        self._counter.inc()
