"""The Prometheus series of a worker: their names, meanings, units and labels.

The names are an interface: dashboards, alerts and the demo's view read them. All units are base units. A figure that is
not known yet is NaN or absent, so that no alert fires on it.
"""

import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable
from copy import copy
from functools import partial
from itertools import accumulate

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

from stream_learner.contract.window import RECENT_SAMPLES
from stream_learner.monitoring.health import Answer

NAMESPACE = "stream_learner"
BATCH_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
DELAY_BUCKETS_S = (1, 10, 60, 600, 3_600, 6 * 3_600, 24 * 3_600, 2 * 24 * 3_600, 7 * 24 * 3_600)
CHECKPOINT_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
WEIGHT_BUCKETS = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.5, 2.0, 3.0, 5.0, 10.0, math.inf)


class RunRegistry(CollectorRegistry):
    """A registry that adds the label `run`, the run's id, to every series, including those of the process.

    A separate info metric with the id would not suffice: an alert must name a run even when its worker is gone. If the
    run has several ranks, every series also has the label `rank`.
    """

    def __init__(self, run_id: str, rank: int | None = None):
        super().__init__()
        self._run = {"run": run_id} if rank is None else {"run": run_id, "rank": str(rank)}
        for collector in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
            self.register(collector)

    def collect(self) -> Iterable[Metric]:
        for metric in super().collect():
            labelled = copy(metric)
            labelled.samples = [sample._replace(labels={**sample.labels, **self._run}) for sample in metric.samples]
            yield labelled


class Series:
    """The series of a worker in a registry, with their first values."""

    def __init__(self, registry: CollectorRegistry, version: str):
        counter = partial(Counter, namespace=NAMESPACE, registry=registry)
        gauge = partial(Gauge, namespace=NAMESPACE, registry=registry)
        histogram = partial(Histogram, namespace=NAMESPACE, registry=registry)
        partition = ("topic", "partition")

        self.updates = Updates(registry)  # the first collector: a scrape asks them in turn
        self.records_in = counter("records_in_total", "Input records read, in records.")
        self.learned = counter("records_learned_total", "Training samples learned, in records.")
        self.held_out = counter("records_held_out_total", "Samples held out, by split, in records.", ("split",))
        self.rejected = counter(
            "records_rejected_total", "Dead letters, by input topic and reason, in records.", ("topic", "reason")
        )
        self.tombstones = counter("tombstones_total", "Deletion markers that were skipped, in records.")
        self.lost = counter(
            "records_lost_total",
            "Offsets that retention deleted, or that a broker's disk damaged, before they were read, in offsets.",
            partition,
        )
        self.odd_timestamps = counter(
            "record_timestamps_total",
            "Records with an odd timestamp: more than an hour ahead of the worker's clock (`future`) or no valid time "
            "(`unknown`), in records.",
            ("kind",),
        )
        self.collectives = counter(
            "collectives_seconds_total",
            "Time in which this rank exchanged data with the other ranks, including its waits for them, in seconds.",
        )
        self.sent_bytes = counter(
            "collectives_sent_bytes_total",
            "Bytes that this rank sent to the other ranks for these exchanges, in bytes.",
        )
        self.steps = counter("steps_total", "Optimizer updates, in steps.")
        self.loss = gauge("loss", "Weighted loss of the last batch that was learned, mean over its steps, in nats.")
        self.accuracy = gauge(
            "accuracy",
            f"Accuracy, as a ratio from 0 to 1. prequential: over about the last {RECENT_SAMPLES} training samples "
            "that were predicted before they were learned, where older samples count less. recent: over exactly the "
            f"last {RECENT_SAMPLES} such samples. validation, test: of the last release.",
            ("kind",),
        )
        self.accuracy_samples = gauge(
            "accuracy_samples", "Samples from which the accuracy of this kind is computed, in samples.", ("kind",)
        )
        self.weights = WeightHistograms(registry)
        self.calibration_error = gauge(
            "calibration_error",
            f"Expected calibration error, as a ratio from 0 to 1: recent is over the last {RECENT_SAMPLES} training "
            "samples that were predicted before they were learned; validation is of the last release.",
            ("kind",),
        )
        self.kappa = gauge(
            "kappa",
            f"Cohen's kappa over the last {RECENT_SAMPLES} training samples that were predicted before they were "
            "learned, as a ratio: 1 is perfect, 0 is chance.",
        )
        self.class_accuracy = gauge(
            "class_accuracy",
            f"Accuracy of each class among the last {RECENT_SAMPLES} training samples that were predicted before they "
            "were learned, as a ratio from 0 to 1.",
            ("label",),
        )
        self.forgetting = gauge(
            "forgetting",
            "Best recall of a class at an earlier release minus its recall at the last release, on the test samples, "
            "as a ratio from -1 to 1.",
            ("label",),
        )
        self.drifts = counter("drifts_total", "Rises of the prequential error that the detector found, in drifts.")
        self.drift_window = gauge(
            "drift_window",
            "Length of the drift detector's window, in which the detector sees no change, in samples.",
        )
        self.boosted = gauge("boosted", "Whether learning is boosted after a drift: 1 when it is, 0 when not.")
        self.served_predictions = counter(
            "served_predictions_total",
            "Served predictions by outcome, in predictions. scored: the label arrived. invalid, without_id, repeated: "
            "not used. expired, dropped: removed before the label arrived.",
            ("outcome",),
        )
        self.served_waiting = gauge(
            "served_predictions_waiting", "Served predictions that wait for their label, in predictions."
        )
        self.served_accuracy = gauge(
            "served_accuracy",
            "Accuracy of the served predictions of a release whose labels arrived, over the whole run, as a ratio from "
            "0 to 1. Only the ten releases that were scored last are shown.",
            ("epoch", "release"),
        )
        self.served_scored = gauge(
            "served_accuracy_predictions",
            "Predictions from which the served accuracy of this release is computed, in predictions.",
            ("epoch", "release"),
        )
        self.served_delay = histogram(
            "served_label_delay_seconds",
            "Time from a served prediction to its label, by the timestamps of the two records, in seconds.",
            buckets=DELAY_BUCKETS_S,
        )
        self.log_start = gauge(
            "log_start", "Oldest offset that the brokers keep, as an offset, from the last fetch.", partition
        )
        self.position = gauge("position", "Next offset to learn, as an offset.", partition)
        self.lag_records = gauge("lag_records", "Distance from the partition's end, in messages.", partition)
        self.lag_seconds = gauge(
            "lag_seconds",
            "Age of the oldest record that was not read, in seconds; 0 at the partition's end, NaN if its time is not "
            "known.",
            partition,
        )
        self.poll = histogram(
            "poll_seconds",
            "Time spent waiting for Kafka, for each batch that covers offsets, in seconds.",
            buckets=BATCH_BUCKETS_S,
        )
        self.decode = histogram(
            "decode_seconds",
            "Time spent decoding, for each batch that has records, in seconds.",
            buckets=BATCH_BUCKETS_S,
        )
        self.step = histogram(
            "step_seconds",
            "Time spent learning, for each batch with optimizer steps, in seconds.",
            buckets=BATCH_BUCKETS_S,
        )
        self.memory_items = gauge("memory_items", "Samples kept for replay, by label, in samples.", ("label",))
        self.memory_bytes = gauge("memory_bytes", "Encoded images kept for replay, in bytes.")
        self.unsaved = gauge(
            "unsaved_records", "Input records learned since the last committed checkpoint, in records."
        )

        self.checkpoint = histogram(
            "checkpoint_seconds",
            "Time from snapshot to commit, for each checkpoint, in seconds.",
            buckets=CHECKPOINT_BUCKETS_S,
        )
        self.checkpoint_time = gauge(
            "last_checkpoint_timestamp_seconds",
            "Time of the last checkpoint, in seconds since 1970, UTC; before the first, the start of the process.",
        )
        self.checkpoint_bytes = gauge("last_checkpoint_bytes", "Size of the last saved state, in bytes.")
        self.sequence = gauge(
            "checkpoint_sequence", "Sequence of the last checkpoint, as a number; 0 before the first."
        )
        self.releases = counter("releases_total", "Released models, in releases.")
        self.discarded = counter(
            "records_discarded_total", "Offsets whose learning was undone by going back to a release, in offsets."
        )
        self.formats_missing = counter(
            "release_formats_missing_total",
            "Releases without a format of release.formats, in releases. The manifest says why.",
            ("format",),
        )
        self.refusals = counter("release_refusals_total", "Candidates that the gate refused, in candidates.")
        self.refused = gauge(
            "refused_since_release",
            "Candidates since the last release that were refused because they were worse, in candidates.",
        )
        self.negative_flip_rate = gauge(
            "negative_flip_rate",
            "Share of the validation samples that the last release predicted right and the last candidate wrong, as a "
            "ratio from 0 to 1.",
        )
        self.old_class_drop = gauge(
            "old_class_drop",
            "Mean recall of the last release minus the mean recall of the last candidate, over the classes that the "
            "release knew, as a ratio from -1 to 1.",
        )
        self.store_failures = counter("store_failures_total", "Failed writes to the object store, in attempts.")

        self.kafka_warnings = counter(
            "kafka_warnings_total",
            "Warnings of the Kafka client (lost connections, time-outs, refusals), in messages.",
        )
        self.answered = {
            Answer.FETCH: gauge(
                "last_fetch_timestamp_seconds",
                "Time of the brokers' last answer to a fetch of the input, with or without records, in seconds since "
                "1970, UTC; before the first, the start. A worker that has read ahead up to its limit does not fetch.",
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
        self.silence = gauge(
            "kafka_silence_seconds",
            "Time since the brokers' last answer, or the age of the oldest unanswered fetch of a partition, whichever "
            "is longer, in seconds.",
        )
        self.foreign_records = counter(
            "foreign_records_total",
            "Records in the run's own topics that are not its manifests, skipped at the start, in records.",
            ("topic",),
        )
        self.phase = gauge("phase", "Phase of the worker: 1 for the current phase, 0 for the others.", ("phase",))

        self.live = gauge("live", "Whether the worker's loop runs, as `/livez` shows: 1 when it does, 0 when not.")
        self.format_waits = gauge(
            "format_waits",
            "Whether the record format asks to read a record later, as `/readyz` shows: 1 when it does, 0 when not.",
        )

        build = Info("build", "The program's version; no unit, always 1.", namespace=NAMESPACE, registry=registry)
        build.info({"version": version})
        for unknown in (self.loss, self.kappa, self.checkpoint_bytes, self.negative_flip_rate, self.old_class_drop):
            unknown.set(math.nan)
        for kind in ("prequential", "recent", "validation", "test"):
            self.accuracy.labels(kind).set(math.nan)
        for kind in ("recent", "validation", "test"):
            self.accuracy_samples.labels(kind)
        for kind in ("recent", "validation"):
            self.calibration_error.labels(kind).set(math.nan)
        self.checkpoint_time.set(time.time())


class Updates(Collector):
    """A collector without series. At each scrape it calls `update`, which sets gauges of other collectors."""

    def __init__(self, registry: CollectorRegistry):
        self.update: Callable[[], None] = lambda: None
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        self.update()
        return ()


class WeightHistograms(Collector):
    """A histogram for each policy.

    prometheus-client's own histogram takes 1.5 us per value. A small network learns a sample in the same time.
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
