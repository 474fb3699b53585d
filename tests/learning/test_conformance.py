"""Properties of every strategy with every model, and of every solved head."""

import math
from functools import cache
from itertools import product

import numpy as np
import pytest
import small_network
import torch
from digit_stream import (
    DIGITS_NHWC,
    MODELS,
    TARGETS,
    TEST,
    TRAIN,
    VALIDATION,
    as_bytes,
    as_meant,
    batch,
    decided,
    digits_of,
    driver_of,
    learn,
    learned,
    position,
    resumed,
    settings,
    stream,
    tensors_of,
)
from torch import Tensor

from stream_learner import networks as models
from stream_learner.contract.vocabulary import Reason
from stream_learner.learning.evaluation import predict
from stream_learner.learning.heads.statistics import NEVER
from stream_learner.learning.strategies import Losses, Step, Strategy
from stream_learner.monitoring.report import Report
from stream_learner.publishing.snapshot import Snapshot
from stream_learner.registry import HEADS, STRATEGIES
from stream_learner.run.driver import Driver

SOLVED = [{"model__head": head, "model__random_features": 80} for head in HEADS if head != "linear"]
NORMALISED = f"{small_network.__name__}:{small_network.Normalised.__name__}"
# Strategies meet networks in batch normalisation at most: every one with a network that has it and one that has not.
# NORMALISED also stands for `resnet18_slim`, which takes ten times as long.
MET = [*product(STRATEGIES, ("mlp", NORMALISED)), *product(("er",), sorted({*MODELS} - {"mlp", "resnet18_slim"}))]
PAIRS = [
    {"learning__strategy": s, "model__name": m} | ({"learning__average_decay": 0.9} if STRATEGIES[s].distils else {})
    for s, m in MET
]
VARIANTS = [
    {"learning__optimizer": "sgd", "learning__steps_per_batch": 3},
    {"learning__optimizer": "sgd", "learning__momentum": 0.0},
    {"learning__optimizer": "adam", "learning__average_decay": 0.0},
    {"learning__optimizer": "adam", "learning__weight_decay": 0.01, "model__name": NORMALISED},
    {"learning__optimizer": "muon", "learning__weight_decay": 0.01, "model__name": NORMALISED},
    {"learning__optimizer": "muon", "model__name": "rnn", "learning__steps_per_batch": 2},
    {"memory__max_items": 7, "held_out__max_items": 3},  # under pressure: classes give items up
    {"learning__channels_last": True, "learning__weight_decay": 0.01},
    {"learning__precision": "bf16"},
    {"prequential__share": 0.4},
    {"model__name": NORMALISED, "model__freeze": True},
    {"learning__average_decay": 0.9, "learning__augment": ("crop", "flip"), "model__name": NORMALISED},
]


def name(run: dict) -> str:
    return ",".join(str(value) for value in run.values())


for_every_pair = pytest.mark.parametrize("run", PAIRS, ids=name)
for_every_learner = pytest.mark.parametrize("run", PAIRS + SOLVED, ids=name)
for_every_run = pytest.mark.parametrize("run", PAIRS + SOLVED + VARIANTS, ids=name)


def differing(before: Snapshot, after: Snapshot) -> set[str]:
    """Return what differs between two snapshots: the first parts of tensors' names, and keys of the document."""

    def contents(tensors: dict[str, Tensor]) -> set[tuple]:
        return {(name, tuple(t.shape), t.numpy().tobytes()) for name, t in tensors.items()}

    tensors = {name.split("/")[0] for name, *_ in contents(tensors_of(before)) ^ contents(tensors_of(after))}
    return tensors | {key for key, value in after.document.items() if before.document[key] != value}


@cache
def unbroken(**run) -> Snapshot:
    """The end of a run over the whole stream that nothing disturbed."""
    return learned(settings(**run), stream()).snapshot()


@for_every_run
def test_a_run_stopped_and_resumed_after_every_batch_ends_like_one_that_was_not(run):
    given = settings(**run)
    driver = driver_of(given)
    for b in stream():
        driver.learn(b)
        snapshot = driver.snapshot()
        driver = resumed(given, snapshot)
        assert as_bytes(driver.snapshot()) == as_bytes(snapshot)
    assert as_bytes(driver.snapshot()) == as_bytes(unbroken(**run))
    assert driver.progress.positions == unbroken(**run).positions


@for_every_run
def test_snapshots_change_nothing(run):
    driver = driver_of(settings(**run))
    for b in stream():
        driver.learn(b)
        driver.snapshot()
    assert as_bytes(driver.snapshot()) == as_bytes(unbroken(**run))


@pytest.mark.parametrize("run", PAIRS + VARIANTS, ids=name)
def test_decisions_to_release_change_nothing_but_their_own_time(run):
    driver = driver_of(settings(release__patience=None, **run))  # going back changes everything
    for b in stream():
        driver.learn(b)
        driver.decide()
    assert differing(unbroken(**run), driver.snapshot()) == {"releases", "may_discard_from"}


@for_every_learner
def test_a_seed_gives_one_result(run):
    def result(seed: int) -> Snapshot:
        return learned(settings(run__seed=seed, **run), stream()[:4]).snapshot()

    assert as_bytes(result(1)) == as_bytes(result(1))
    assert {"trainer", "rng"} <= differing(result(1), result(2))  # the document says the seed itself


@for_every_pair
def test_classes_may_arrive_at_any_time(run):
    driver = driver_of(settings(**run))
    reports = learn(driver, stream())
    assert driver.learner.labels == [str(digit) for digit in range(10)]  # the order of their arrival
    assert [r.figures.learned for r in reports] == [8, 4, 1, 8, 8, 0, 6, 20, 1, 7]
    assert [r.figures.steps for r in reports] == [1, 1, 1, 1, 0, 0, 1, 1, 1, 1]
    tensors = tensors_of(driver.snapshot())
    assert len(tensors["trainer/model/head.weight"]) == len(tensors["trainer/model/head.bias"]) == 10
    assert all(torch.isfinite(t).all() for name, t in tensors.items() if name.startswith("trainer/"))


@for_every_learner
def test_every_record_is_counted_once(run):
    driver = driver_of(settings(**run))
    batches = stream()
    for b, report in zip(batches, learn(driver, batches), strict=True):
        assert report.spans == b.spans
        assert report.records == sum(report.figures.samples.values()) == len(b.samples)
        assert report.figures.learned == report.figures.samples.get(TRAIN, 0) == b.training
        assert sum(seen for _, seen in report.figures.prequential.values()) == b.training
        assert report.rejections == []
    snapshot = driver.snapshot()
    records = sum(b.records for b in batches)
    assert snapshot.interval.tally.read.records == snapshot.document["records"] == records
    assert snapshot.positions == {"images": {0: records}}
    assert driver.progress.empty


@for_every_learner
def test_a_batch_whose_weights_are_all_zero_counts_as_learned_and_changes_nothing(run):
    driver = learned(settings(**run), stream()[:4])
    before = driver.snapshot()
    report = driver.learn(batch(digits_of([0, 1], 5), first=position(driver), weights=[0.0]))
    assert (report.figures.learned, report.figures.steps, report.rejections) == (5, 0, [])
    assert differing(before, driver.snapshot()) == {"records", "prequential", "drift"}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_weight_two_is_the_sample_twice(strategy):
    """The network must not let samples influence one another, as batch normalisation does."""
    run = {"learning__strategy": strategy, "learning__average_decay": 0.9, "learning__optimizer": "sgd"}
    before = learned(settings(**run), stream()[:4]).snapshot()

    def after(indices: list[int], weights: list[float]) -> Tensor:
        driver = resumed(settings(**run), before)
        driver.learn(batch(indices, first=position(driver), weights=weights))
        return torch.cat([t.flatten() for name, t in tensors_of(driver.snapshot()).items() if "/model/" in name])

    one, two = digits_of([0, 1], 2, skip=50)
    twice = after([one, two, two], [1.0])
    assert torch.allclose(after([one, two], [1.0, 2.0]), twice, atol=1e-6)
    assert not torch.allclose(after([one, two], [1.0, 1.0]), twice, atol=1e-5)


@for_every_learner
def test_held_out_samples_alone_teach_nothing(run):
    driver = learned(settings(**run), stream()[:4])
    before = driver.snapshot()
    held_out = batch(digits_of([0, 1, 2], 6), first=position(driver), splits=[VALIDATION, TEST])
    assert driver.learn(held_out).figures.learned == 0
    assert differing(before, driver.snapshot()) == {"validation", "test", "records"}


@for_every_pair
def test_batches_of_one_are_learned_without_a_memory(run):
    driver = driver_of(settings(memory__max_items=0, **run))
    reports = learn(driver, [batch([index], first=index) for index in range(4)])
    assert [r.figures.steps for r in reports] == [1, 1, 1, 1]
    assert len(driver.learner.shards[0].memory) == 0


@for_every_learner
def test_learners_side_by_side_draw_from_generators_of_their_own(run):
    torch.manual_seed(7)
    expected = [float(torch.rand(())) for _ in stream()]
    torch.manual_seed(7)
    one, other, drawn = driver_of(settings(**run)), driver_of(settings(run__seed=1, **run)), []
    for b in stream():
        one.learn(b)
        other.learn(b)
        drawn.append(float(torch.rand(())))
    assert as_bytes(one.snapshot()) == as_bytes(unbroken(**run))
    assert drawn == expected


@for_every_learner
def test_a_batch_is_predicted_before_it_is_learned(run):
    driver = learned(settings(learning__precision="fp32", learning__steps_per_batch=5, **run), stream()[:4])
    candidate = decided(driver).candidate
    assert candidate
    network = models.build(candidate.model, own=candidate.model.name)
    network.load_state_dict(candidate.parameters)
    indices = digits_of([0, 1, 2], 30, skip=100)
    predicted = [candidate.labels[i] for i in predict(network, DIGITS_NHWC[indices], torch.device("cpu"))]
    wanted = {}
    for label in ("0", "1", "2"):
        own = [p for p, index in zip(predicted, indices, strict=True) if str(TARGETS[index]) == label]
        wanted[label] = own.count(label), len(own)
    assert driver.learn(batch(indices, first=position(driver))).figures.prequential == wanted


def poisoned(strategy: type[Strategy]) -> type[Strategy]:
    """The strategy, with a loss (weight 7) or a gradient alone (weight 8) that is not finite."""

    class Poisoned(strategy):
        def losses(self, step: Step) -> Losses:
            losses, weights = super().losses(step)
            if (step.stream.weights == 7).any():
                losses = losses * torch.nan
            if (step.stream.weights == 8).any():
                losses = losses + torch.sqrt(0 * losses)  # 0, and its derivative is infinite
            return Losses(losses, weights)

    return Poisoned


@for_every_pair
@pytest.mark.parametrize("weight", [7.0, 8.0])
def test_a_step_that_is_not_finite_is_undone_and_its_records_rejected(run, weight, monkeypatch):
    monkeypatch.setitem(STRATEGIES, "poisoned", poisoned(STRATEGIES[run["learning__strategy"]]))
    given = settings(**run | {"learning__strategy": "poisoned"})
    driver = learned(given, stream()[:4])
    before = driver.snapshot()
    bad = batch(digits_of([0, 1, 2], 9), first=position(driver), weights=[weight], splits=[TRAIN, TRAIN, TEST])
    report = driver.learn(bad)
    assert (report.figures.learned, report.figures.steps, report.figures.samples) == (0, 0, {TEST: 3})
    assert {(r.reason, r.stage) for r in report.rejections} == {(Reason.NON_FINITE_STEP, "learn")}
    assert [r.record for r in report.rejections] == [
        r for r, s in zip(bad.sources, bad.samples, strict=True) if s.split is TRAIN
    ]
    after = driver.snapshot()
    assert differing(before, after) <= {"rng", "records", "test", "non_finite_in_a_row", "prequential", "drift"}
    assert as_bytes(resumed(given, after).snapshot()) == as_bytes(after)
    driver.learn(batch(digits_of([0, 1, 2], 9), first=position(driver)))
    assert "trainer" in differing(after, driver.snapshot())


@for_every_pair
def test_a_later_step_that_is_not_finite_leaves_the_batch_learned_as_far_as_it_went(run, monkeypatch):
    class SecondStepFails(STRATEGIES[run["learning__strategy"]]):
        calls = 0

        def losses(self, step: Step) -> Losses:
            self.calls += 1
            losses, weights = super().losses(step)
            return Losses(losses * (math.nan if self.calls == 2 else 1), weights)

    monkeypatch.setitem(STRATEGIES, "second_step_fails", SecondStepFails)
    given = run | {"learning__strategy": "second_step_fails", "learning__steps_per_batch": 3}
    driver = driver_of(settings(**given))
    report = driver.learn(batch(digits_of([0, 1], 4), first=position(driver)))
    assert (report.figures.steps, report.figures.learned, report.rejections) == (1, len(report.used), [])


@for_every_pair
def test_three_such_steps_in_a_row_are_a_divergence(run, monkeypatch):
    monkeypatch.setitem(STRATEGIES, "poisoned", poisoned(STRATEGIES[run["learning__strategy"]]))
    driver = driver_of(settings(**run | {"learning__strategy": "poisoned"}))
    seen = []
    for weight in (7, 7, 1, 8, 7, 0, 7, 1):  # a batch that makes no step breaks no row
        driver.learn(batch(digits_of([0, 1], 4), first=position(driver), weights=[weight]))
        seen.append(driver.learner.diverged)
    assert seen == [False, False, False, False, False, False, True, False]


@for_every_learner
def test_labels_beyond_the_most_allowed_are_rejected(run):
    driver = driver_of(settings(model__max_classes=2, **run))
    b = batch(digits_of([5, 0, 3], 9), splits=[TRAIN, TRAIN, TRAIN, TEST, TEST, TEST])
    report = driver.learn(b)
    assert driver.learner.labels == ["5", "0"]
    assert [r.record for r in report.rejections] == [
        r for r, s in zip(b.sources, b.samples, strict=True) if s.label == "3"
    ]
    assert {r.reason for r in report.rejections} == {Reason.TOO_MANY_CLASSES}
    assert report.figures.samples == {TRAIN: 4, TEST: 2}
    assert report.figures.learned == 4
    assert report.used == [sample.label != "3" for sample in b.samples]


RETIRING = {"labels__aliases": {"1": "0", "3": "three"}, "labels__allowed": ["0", "three", *"456789"]}


@for_every_learner
def test_classes_retire_at_a_restart_and_a_run_resumed_after_every_batch_learns_the_same(run):
    before, later = settings(**run), settings(**run, **RETIRING)
    half = learned(before, stream()[:7]).snapshot()

    def rest(resume: bool) -> tuple[Driver, list[Report]]:
        driver, reports = resumed(later, half), []
        for b in as_meant(stream()[7:], later):
            if resume:
                driver = resumed(later, driver.snapshot())
            reports.append(driver.learn(b))
        return driver, reports

    driver, reports = rest(resume=False)
    end = driver.snapshot()
    assert as_bytes(rest(resume=True)[0].snapshot()) == as_bytes(end)
    assert driver.learner.retired == {"1": "0", "2": None, "3": "three"}
    assert driver.learner.labels[:6] == [*"01234", "three"]  # indices stay, and are not used again
    assert {label for report in reports for label in report.figures.prequential} <= {"0", "three", *"456789"}
    for items in (driver.learner.shards[0].memory, *driver.learner.shards[0].held_out.values()):
        assert not {1, 2, 3} & {*items.labels.tolist()}
    for name in ("model", "average"):
        if f"trainer/{name}/head.bias" in tensors_of(end):
            assert not tensors_of(end)[f"trainer/{name}/head.weight"][[1, 2, 3]].any()
            assert (tensors_of(end)[f"trainer/{name}/head.bias"][[1, 2, 3]] == NEVER).all()
    assert all(torch.isfinite(t).all() for name, t in tensors_of(end).items() if name.startswith("trainer/"))
    assert not np.isin(predict(driver.learner.network, DIGITS_NHWC[:200], torch.device("cpu")), [1, 2, 3]).any()


@for_every_pair
def test_new_rows_of_the_head_start_with_adams_first_step(run):
    """Also when the class was first seen where no step was made: held out, or with weight 0."""
    driver = learned(settings(**run), stream()[:4])
    driver.learn(batch(digits_of([3], 2), first=position(driver), splits=[TEST]))
    driver.learn(batch(digits_of([4], 2), first=position(driver), weights=[0]))
    driver = resumed(settings(**run), driver.snapshot())
    driver.learn(batch(digits_of([0, 3, 4], 9, skip=9), first=position(driver)))
    tensors = tensors_of(driver.snapshot())
    (index,) = {
        key.split("/")[2]
        for key, t in tensors.items()
        if key.endswith("/exp_avg") and t.shape == tensors["trainer/model/head.weight"].shape
    }
    step = float(tensors[f"trainer/optimizer/{index}/step"])
    assert step == 5
    m_hat = tensors[f"trainer/optimizer/{index}/exp_avg"] / (1 - 0.9**step)
    v_hat = tensors[f"trainer/optimizer/{index}/exp_avg_sq"] / (1 - 0.999**step)
    assert torch.allclose(m_hat[3:] ** 2, v_hat[3:], rtol=1e-3)
    assert not torch.allclose(m_hat[:3] ** 2, v_hat[:3], rtol=1e-1)


def test_labels_of_two_types_are_two_classes():
    driver = learned(settings(), [batch(digits_of([0, 1], 4), labels=["7", 7])])
    assert driver.learner.labels == ["7", 7]
    assert resumed(settings(), driver.snapshot()).learner.labels == ["7", 7]


def test_weights_are_clipped_and_stay_finite_where_they_are_kept():
    driver = learned(settings(), [batch(digits_of([0, 1], 6), weights=[1e300, 0.5], splits=[TRAIN, TRAIN, TEST])])
    tensors = tensors_of(driver.snapshot())
    assert sorted(set(tensors["memory/weights"].tolist())) == [0.5, 10]
    assert tensors["test/weights"].max() <= 10
    assert np.isfinite(driver.snapshot().document["trainer"]["loss_normaliser"])
