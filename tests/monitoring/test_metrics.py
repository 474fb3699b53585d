import logging
import math
import time
from collections import Counter
from datetime import UTC, datetime
from itertools import product

import msgspec
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from stream_learner.contract.figures import Figures, Scored, ServedFigures
from stream_learner.contract.ledger import Ledger
from stream_learner.contract.manifest import (
    Arithmetic,
    Decision,
    Manifest,
    ModelArguments,
    ModelSpec,
    Preprocessing,
    Release,
    digest,
)
from stream_learner.contract.objects import Object, Published
from stream_learner.contract.spans import Span
from stream_learner.contract.vocabulary import Reason, Split
from stream_learner.contract.window import ClassForgetting, Confusion, Drift, Forgetting, Recent, accuracy
from stream_learner.formats.record import Record, Rejection
from stream_learner.monitoring.health import Answer, Health, Phase
from stream_learner.monitoring.metrics import Metrics
from stream_learner.monitoring.report import Report
from stream_learner.monitoring.series import RunRegistry

OBJECT = Object(key="digits/memory/1", size=100, digest="sha256:00")
CREATED = datetime(2025, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    return Metrics(registry, version="1.2.3")


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"stream_learner_{name}", labels)


def is_nan(figure: float | None) -> bool:
    return figure is not None and math.isnan(figure)


def report(**rest) -> Report:
    return Report(**({"spans": {"images": {0: Span(0, 10)}}, "records": 10} | rest))


def release(validation: tuple[int, int], test: tuple[int, int]) -> Release:
    return Release(
        sequence=1,
        created_at=CREATED.isoformat(),
        object=OBJECT,
        chunks=[],
        model=ModelSpec("mlp", ModelArguments(classes=2, height=8, width=8, channels=1, mean=[0.5], std=[0.25])),
        labels=["cat"],
        preprocessing=Preprocessing(32, 32, 3, [0.5], [0.25]),
        dtype="float32",
        validation=accuracy([("cat", *validation)]),
        test=accuracy([("cat", *test)]),
        calibration_error=0.125,
        forgetting=Forgetting(mean=0.25, per_class=[ClassForgetting(label="cat", best=0.75, forgetting=0.25)]),
        evaluation=OBJECT,
        canary=Published(OBJECT, []),
    )


def decision(released: bool) -> Decision:
    return Decision(released=released, abstained=False, candidate=0.5, last=0.5, samples=100, reason="")


def manifest(sequence: int, decided: Decision | None, last: Release | None) -> Manifest:
    return Manifest(
        program="stream-learner 1.2.3",
        run_id="run",
        epoch=1,
        sequence=sequence,
        predecessor=None,
        created_at=CREATED.isoformat(),
        positions={},
        spans={},
        lost={},
        ledger=Ledger(0, [], ""),
        arithmetic=Arithmetic("2.5.0", "cpu", "AVX2", 1, digest(b"settings")),
        store="file:///objects",
        topic_ids={},
        state=OBJECT,
        parts=[],
        kept=[],
        released=bool(decided and decided.released),
        decision=decided,
        release=last,
    )


def test_before_anything_happened_counts_are_0_and_the_rest_is_unknown(registry):
    started = time.time()
    Metrics(registry, "1.2.3", ["images", "more"], ["digits.checkpoints"], ["record"]).begin({"images": {0: 4}})
    for topic, reason in product(["images", "more"], Reason):
        assert value(registry, "records_rejected_total", topic=topic, reason=reason) == 0
    assert value(registry, "records_held_out_total", split="validation") == 0
    assert value(registry, "records_held_out_total", split="test") == 0
    assert value(registry, "records_in_total") == 0
    assert value(registry, "checkpoint_sequence") == 0
    assert value(registry, "build_info", version="1.2.3") == 1
    assert value(registry, "drifts_total") == 0
    assert value(registry, "foreign_records_total", topic="digits.checkpoints") == 0
    assert value(registry, "sample_weight_count", policy="record") == 0
    assert value(registry, "records_lost_total", topic="images", partition="0") == 0
    assert value(registry, "position", topic="images", partition="0") == 4
    for unknown in ("loss", "kappa", "last_checkpoint_bytes"):
        assert is_nan(value(registry, unknown))
    for kind in ("prequential", "recent", "validation", "test"):
        assert is_nan(value(registry, "accuracy", kind=kind))
    for kind in ("recent", "validation"):
        assert is_nan(value(registry, "calibration_error", kind=kind))
    # An alert on its age fires also when the first checkpoint does not come.
    assert started <= (value(registry, "last_checkpoint_timestamp_seconds") or 0) <= time.time()


def test_every_series_names_its_run():
    registry = RunRegistry("digits")
    Metrics(registry, "1.2.3", ["images"]).follow(Health(live_timeout_s=10))
    samples = [sample for metric in registry.collect() for sample in metric.samples]
    assert {sample.labels.get("run") for sample in samples} == {"digits"}
    assert {"process_start_time_seconds", "stream_learner_phase"} <= {sample.name for sample in samples}
    assert registry.get_sample_value("stream_learner_phase", {"phase": "starting", "run": "digits"}) == 1


def test_every_series_names_its_rank_if_there_are_several():
    registry = RunRegistry("digits", rank=1)
    Metrics(registry, "1.2.3", ["images"])
    samples = [sample for metric in registry.collect() for sample in metric.samples]
    assert {(sample.labels.get("run"), sample.labels.get("rank")) for sample in samples} == {("digits", "1")}


def test_a_batch_is_counted(registry, metrics):
    record = Record("images", 0, 3, 0, None, b"", [])
    for _ in range(2):
        metrics.observe(
            report(
                spans={"images": {0: Span(4, 10), 1: Span(0, 4)}},
                tombstones=3,
                figures=Figures(samples={Split.TRAIN: 6, Split.VALIDATION: 2, Split.TEST: 1}, steps=2, loss_sum=3.0),
                rejections=[Rejection(record, Reason.NO_LABEL, "decode", "the record has no label")],
                odd_timestamps={"unknown": 1, "future": 3},
                drifts=[Drift(10, {}, 0.1, 0.4)],
                poll_s=0.2,
                collectives_s=0.3,
                sent_bytes=4_400,
                decode_s=0.002,
                step_s=0.02,
            )
        )
    assert value(registry, "records_in_total") == 20
    assert value(registry, "records_learned_total") == 12
    assert value(registry, "records_held_out_total", split="validation") == 4
    assert value(registry, "records_held_out_total", split="test") == 2
    assert value(registry, "tombstones_total") == 6
    assert value(registry, "record_timestamps_total", kind="unknown") == 2
    assert value(registry, "record_timestamps_total", kind="future") == 6
    assert value(registry, "records_rejected_total", topic="images", reason="no_label") == 2
    assert value(registry, "steps_total") == 4
    assert value(registry, "loss") == 1.5
    assert value(registry, "drifts_total") == 2
    assert value(registry, "position", topic="images", partition="0") == 10
    assert value(registry, "position", topic="images", partition="1") == 4
    assert value(registry, "poll_seconds_sum") == pytest.approx(0.4)
    assert value(registry, "decode_seconds_bucket", le="0.0025") == 2
    assert value(registry, "step_seconds_count") == 2
    assert value(registry, "collectives_seconds_total") == pytest.approx(0.6)
    assert value(registry, "collectives_sent_bytes_total") == 8_800


def test_a_batch_without_training_samples_moves_the_position_alone(registry, metrics):
    metrics.observe(report(figures=Figures(samples={Split.TEST: 10})))
    assert value(registry, "position", topic="images", partition="0") == 10
    assert value(registry, "poll_seconds_count") == 1
    assert value(registry, "step_seconds_count") == 0
    assert math.isnan(value(registry, "loss") or 0)


def test_served_predictions_are_counted_by_outcome_and_release(registry, metrics):
    assert value(registry, "served_predictions_total", outcome="expired") == 0
    scored = [Scored(1, 7, "cat", True, 0.5, delay_s) for delay_s in (30.0, 90.0, None)]
    metrics.observe(report(served=ServedFigures(5, Counter(scored=3, invalid=1), scored, waiting=4)))
    assert value(registry, "served_predictions_total", outcome="scored") == 3
    assert value(registry, "served_predictions_total", outcome="invalid") == 1
    assert value(registry, "served_label_delay_seconds_bucket", le="60.0") == 1
    assert value(registry, "served_label_delay_seconds_sum") == 120
    metrics.observe_served(4, {(1, 7): (3, 4), (2, 8): (0, 1)})
    metrics.observe_served(3, {(1, 7): (4, 8)})
    assert value(registry, "served_predictions_waiting") == 3
    assert value(registry, "served_accuracy", epoch="1", release="7") == 0.5
    assert value(registry, "served_accuracy_predictions", epoch="1", release="7") == 8
    assert value(registry, "served_accuracy", epoch="2", release="8") is None


def test_every_policys_weights_are_a_histogram(registry, metrics):
    metrics.observe(report(figures=Figures(weights={"record": [0.0, 1.0, 1.0], "combined": [0.0, 0.5, 3.0]})))
    metrics.observe(report(figures=Figures(weights={"record": [1e9], "combined": [10.0]})))
    metrics.observe(report())

    def at_most(le: str) -> list[float | None]:
        return [value(registry, "sample_weight_bucket", policy=p, le=le) for p in ("record", "combined")]

    assert at_most("0.0") == [1, 1]
    assert at_most("0.5") == [1, 2]
    assert at_most("1.0") == [3, 2]
    assert at_most("10.0") == [3, 4]
    assert at_most("+Inf") == [4, 4]
    assert value(registry, "sample_weight_count", policy="record") == 4
    assert value(registry, "sample_weight_sum", policy="combined") == 13.5
    assert b'stream_learner_sample_weight_bucket{le="5.0",policy="combined"} 3.0' in generate_latest(registry)


def test_lag_memory_and_what_is_unsaved_are_the_last_seen(registry, metrics):
    for records in (7, 5):
        metrics.observe_lag("images", 2, records, 0.5)
        metrics.observe_memory({"cat": records, 4: 1}, 3072)
        metrics.observe_unsaved(records)
    assert value(registry, "lag_records", topic="images", partition="2") == 5
    assert value(registry, "lag_seconds", topic="images", partition="2") == 0.5
    assert value(registry, "memory_items", label="cat") == 5
    assert value(registry, "memory_items", label="4") == 1
    assert value(registry, "memory_bytes") == 3072
    assert value(registry, "unsaved_records") == 5


def recent(*counts: tuple[str, int, int], kappa: float | None = 0.5) -> Recent:
    return Recent(
        accuracy=accuracy(counts),
        faded_accuracy=0.625,
        kappa=kappa,
        calibration_error=0.0625,
        confusions=[Confusion("cat", "dog", 2)],
    )


def test_recent_figures_are_the_last_seen_and_a_class_that_left_is_not_shown(registry, metrics):
    metrics.observe_recent(recent(("cat", 1, 4), ("dog", 2, 4)), drift_window=96, boosted=True)
    assert value(registry, "accuracy", kind="prequential") == 0.625
    assert value(registry, "accuracy", kind="recent") == 3 / 8
    assert value(registry, "accuracy_samples", kind="recent") == 8
    assert value(registry, "calibration_error", kind="recent") == 0.0625
    assert value(registry, "kappa") == 0.5
    assert (value(registry, "class_accuracy", label="cat"), value(registry, "class_accuracy", label="dog")) == (
        0.25,
        0.5,
    )
    assert (value(registry, "drift_window"), value(registry, "boosted")) == (96, 1)

    metrics.observe_recent(recent(("dog", 3, 4), kappa=None), drift_window=128, boosted=False)
    assert value(registry, "class_accuracy", label="dog") == 0.75
    assert value(registry, "class_accuracy", label="cat") is None
    assert math.isnan(value(registry, "kappa") or 0)
    assert (value(registry, "drift_window"), value(registry, "boosted")) == (128, 0)


def test_before_the_first_training_sample_no_figure_is_made_up(registry, metrics):
    metrics.observe_recent(None, drift_window=0, boosted=False)
    assert is_nan(value(registry, "accuracy", kind="prequential"))
    assert math.isnan(value(registry, "kappa") or 0)
    assert (value(registry, "drift_window"), value(registry, "boosted")) == (0, 0)


def test_a_save_is_no_release_and_a_refusal_keeps_the_last_releases_accuracy(registry, metrics):
    metrics.checkpoint_committed(manifest(1, None, None), 0.3)
    assert value(registry, "checkpoint_sequence") == 1
    assert value(registry, "last_checkpoint_timestamp_seconds") == CREATED.timestamp()
    assert value(registry, "last_checkpoint_bytes") == OBJECT.size
    assert value(registry, "checkpoint_seconds_sum") == 0.3
    assert value(registry, "releases_total") == value(registry, "release_refusals_total") == 0
    assert is_nan(value(registry, "accuracy", kind="test"))

    last = release(validation=(3, 4), test=(1, 2))
    metrics.checkpoint_committed(manifest(2, decision(True), last), 0.3)
    metrics.checkpoint_committed(manifest(3, decision(False), last), 0.3)
    assert value(registry, "releases_total") == 1
    assert value(registry, "release_refusals_total") == 1
    assert value(registry, "accuracy", kind="validation") == 0.75
    assert value(registry, "accuracy", kind="test") == 0.5
    assert value(registry, "calibration_error", kind="validation") == 0.125
    assert value(registry, "forgetting", label="cat") == 0.25


def test_a_release_without_held_out_samples_has_no_accuracy(registry, metrics):
    metrics.checkpoint_committed(manifest(1, decision(True), release((0, 0), (0, 0))), 0.3)
    assert is_nan(value(registry, "accuracy", kind="validation"))


def test_what_the_last_candidate_lost_is_shown_until_the_next_decision(registry, metrics):
    def figures() -> list[float | None]:
        return [value(registry, name) for name in ("negative_flip_rate", "old_class_drop")]

    assert all(math.isnan(figure or 0) for figure in figures())
    lost = msgspec.structs.replace(decision(False), negative_flip_rate=0.25, old_class_drop=-0.5)
    metrics.checkpoint_committed(manifest(1, lost, None), 0.3)
    metrics.checkpoint_committed(manifest(2, None, None), 0.3)
    assert figures() == [0.25, -0.5]
    metrics.checkpoint_committed(manifest(3, decision(True), None), 0.3)
    assert all(math.isnan(figure or 0) for figure in figures())


def test_a_recovered_checkpoint_is_shown_but_not_counted(registry, metrics):
    metrics.recovered(manifest(7, decision(True), release((3, 4), (1, 2))))
    assert value(registry, "checkpoint_sequence") == 7
    assert value(registry, "last_checkpoint_timestamp_seconds") == CREATED.timestamp()
    assert value(registry, "accuracy", kind="test") == 0.5
    assert value(registry, "releases_total") == value(registry, "checkpoint_seconds_count") == 0


def test_failed_writes_are_counted(registry, metrics):
    metrics.store_failed()
    assert value(registry, "store_failures_total") == 1


def test_the_phase_is_what_it_is_when_asked(registry):
    health = Health(live_timeout_s=10)
    Metrics(registry, version="1.2.3").follow(health)
    for phase in Phase:
        health.enter(phase)
        shown = {other for other in Phase if value(registry, "phase", phase=other)}
        assert shown == {phase}


def test_the_last_answers_of_the_brokers_are_the_start_until_the_first(registry):
    before = time.time()
    health = Health(live_timeout_s=10)
    Metrics(registry, version="1.2.3").follow(health)
    started = {answer: value(registry, f"last_{answer}_timestamp_seconds") or 0 for answer in Answer}
    assert all(before <= at <= time.time() for at in started.values())
    health.heard("fetch")
    assert (value(registry, "last_fetch_timestamp_seconds") or 0) > started[Answer.FETCH]
    for other in (Answer.COMMIT, Answer.METADATA):
        assert value(registry, f"last_{other}_timestamp_seconds") == started[other]


def test_a_loop_that_hangs_is_not_live(registry):
    now = 0.0
    health = Health(live_timeout_s=10, clock=lambda: now)
    Metrics(registry, version="1.2.3").follow(health)
    health.enter(Phase.LEARNING)
    assert value(registry, "live") == 1
    now = 11.0
    assert value(registry, "live") == 0


def test_a_format_that_asks_to_wait_is_shown(registry):
    health = Health(live_timeout_s=10)
    Metrics(registry, version="1.2.3").follow(health)
    assert value(registry, "format_waits") == 0
    health.wait_for("the registry does not answer")
    assert value(registry, "format_waits") == 1
    health.wait_for(None)
    assert value(registry, "format_waits") == 0


def test_the_kafka_clients_complaints_are_counted(registry):
    Metrics(registry, version="1.2.3").follow(Health(live_timeout_s=10))
    log = logging.getLogger("kafka.net.connection")
    log.info("connected")
    log.warning("connection lost")
    log.error("request refused")
    assert value(registry, "kafka_warnings_total") == 2


def test_lost_offsets_are_counted_by_partition(registry):
    lost = [("images", 0, Span(4, 9)), ("images", 1, Span(0, 2)), ("images", 0, Span(20, 21))]
    Metrics(registry, version="1.2.3").observe(Report(spans={}, records=0, lost=lost))
    assert value(registry, "records_lost_total", topic="images", partition="0") == 6
    assert value(registry, "records_lost_total", topic="images", partition="1") == 2


def test_a_partition_that_was_added_is_shown_before_anything_of_it_is_learned(registry, metrics):
    metrics.begin({"images": {0: 7}})
    for partition in (0, 1):
        metrics.observe_lag("images", partition, 3, 0.5)
    for partition, position in (("0", 7), ("1", 0)):
        assert value(registry, "position", topic="images", partition=partition) == position
        assert value(registry, "records_lost_total", topic="images", partition=partition) == 0
