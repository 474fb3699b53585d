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
    LARGE,
    LIGHT,
    MODELS,
    TARGETS,
    TEST,
    TRAIN,
    VALIDATION,
    as_bytes,
    as_meant,
    batch,
    digits_of,
    learn,
    learned,
    position,
    resumed,
    settings,
    stream,
)
from torch import Tensor

from stream_learner import networks as models
from stream_learner.contract.vocabulary import Reason
from stream_learner.learning.evaluation import predict
from stream_learner.learning.heads.statistics import NEVER
from stream_learner.learning.learner import Learner
from stream_learner.learning.snapshot import Snapshot
from stream_learner.learning.strategies import Losses, Step, Strategy
from stream_learner.monitoring.report import Report
from stream_learner.registry import HEADS, STRATEGIES

SOLVED = [{"model__head": head, "model__random_features": 80} for head in HEADS if head != "linear"]
NORMALISED = f"{small_network.__name__}:{small_network.Normalised.__name__}"
# Strategies meet networks in batch normalisation at most: every one with a network that has it and one that has not.
MET = [*product(STRATEGIES, ("mlp", NORMALISED)), *product(("er",), sorted({*MODELS} - {"mlp"}))]
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
    {"model__name": NORMALISED, "model__freeze": True},
    {"learning__average_decay": 0.9, "learning__augment": ("crop", "flip"), "model__name": NORMALISED},
]


def name(run: dict) -> str:
    return ",".join(str(value) for value in run.values())


for_every_pair = pytest.mark.parametrize("run", PAIRS, ids=name)
for_every_learner = pytest.mark.parametrize("run", PAIRS + SOLVED, ids=name)
for_every_run = pytest.mark.parametrize("run", PAIRS + SOLVED + VARIANTS, ids=name)


def differing(before: Snapshot, after: Snapshot) -> set[str]:
    """What is not the same byte for byte: the first part of tensors' names, and keys of the document."""

    def contents(tensors: dict[str, Tensor]) -> set[tuple]:
        return {(name, tuple(t.shape), t.numpy().tobytes()) for name, t in tensors.items()}

    tensors = {name.split("/")[0] for name, *_ in contents(before.tensors) ^ contents(after.tensors)}
    return tensors | {key for key, value in after.document.items() if before.document[key] != value}


@cache
def unbroken(**run) -> Snapshot:
    """The end of a run over the whole stream that nothing disturbed."""
    return learned(settings(**run), stream()).snapshot()


@for_every_run
def test_a_run_stopped_and_resumed_after_every_batch_ends_like_one_that_was_not(run):
    learner = Learner(settings(**run))
    for b in stream():
        learner.learn(b)
        snapshot = learner.snapshot()
        learner = resumed(settings(**run), snapshot)
        assert as_bytes(learner.snapshot()) == as_bytes(snapshot)
    assert as_bytes(learner.snapshot()) == as_bytes(unbroken(**run))
    assert learner.progress.positions == unbroken(**run).positions


@for_every_run
def test_snapshots_change_nothing(run):
    learner = Learner(settings(**run))
    for b in stream():
        learner.learn(b)
        learner.snapshot()
    assert as_bytes(learner.snapshot()) == as_bytes(unbroken(**run))


@pytest.mark.parametrize("run", PAIRS + VARIANTS, ids=name)
def test_decisions_to_release_change_nothing_but_their_own_time(run):
    learner = Learner(settings(release__patience=None, **run))  # going back changes everything
    for b in stream():
        learner.learn(b)
        learner.decide_release()
    assert differing(unbroken(**run), learner.snapshot()) == {"releases"}


@pytest.mark.parametrize("model", LARGE)
def test_a_large_network_resumes_grows_and_releases_like_the_others(model):
    side = LARGE[model]
    run = settings(**LIGHT, model__name=model, model__height=side, model__width=side, memory__replay_size=8)
    batches = stream(side)[:3]
    learner = learned(run, batches[:2])
    half = learner.snapshot()

    def end(learner: Learner) -> Snapshot:
        learn(learner, batches[2:])
        learner.decide_release()
        return learner.snapshot()

    unbroken = end(learner)
    assert differing(unbroken, end(resumed(run, half))) == set()
    assert all(torch.isfinite(t).all() for t in unbroken.tensors.values())
    candidate = unbroken.candidate
    assert candidate
    assert candidate.model.arguments.classes == len(candidate.labels) == 3
    network = models.build(candidate.model)
    network.load_state_dict(candidate.weights)
    predictions = predict(network, candidate.evaluation["images"].numpy(), torch.device("cpu"))
    assert np.array_equal(predictions, candidate.evaluation["predictions"].numpy())


@for_every_learner
def test_a_seed_gives_one_result(run):
    def result(seed: int) -> Snapshot:
        return learned(settings(run__seed=seed, **run), stream()[:4]).snapshot()

    assert as_bytes(result(1)) == as_bytes(result(1))
    assert {"trainer", "rng"} <= differing(result(1), result(2))  # the document says the seed itself


@for_every_pair
def test_classes_may_arrive_at_any_time(run):
    learner = Learner(settings(**run))
    reports = learn(learner, stream())
    assert learner.labels == [str(digit) for digit in range(10)]  # the order of their arrival
    assert [r.learned for r in reports] == [8, 4, 1, 8, 8, 0, 6, 20, 1, 7]
    assert [r.steps for r in reports] == [1, 1, 1, 1, 0, 0, 1, 1, 1, 1]
    tensors = learner.snapshot().tensors
    assert len(tensors["trainer/model/head.weight"]) == len(tensors["trainer/model/head.bias"]) == 10
    assert all(torch.isfinite(t).all() for name, t in tensors.items() if name.startswith("trainer/"))


@for_every_learner
def test_every_record_is_counted_once(run):
    learner = Learner(settings(**run))
    batches = stream()
    for b, report in zip(batches, learn(learner, batches), strict=True):
        assert report.spans == b.spans
        assert report.records == sum(report.samples.values()) == len(b.samples)
        assert report.learned == report.samples.get(TRAIN, 0) == b.training
        assert sum(seen for _, seen in report.prequential.values()) == b.training
        assert report.rejections == []
    snapshot = learner.snapshot()
    records = sum(b.records for b in batches)
    assert snapshot.closed.tally.records == snapshot.document["records"] == records
    assert snapshot.positions == {"images": {0: records}}
    assert learner.progress.empty


@for_every_learner
def test_a_batch_whose_weights_are_all_zero_counts_as_learned_and_changes_nothing(run):
    learner = learned(settings(**run), stream()[:4])
    before = learner.snapshot()
    report = learner.learn(batch(digits_of([0, 1], 5), first=position(learner), weights=[0.0]))
    assert (report.learned, report.steps, report.rejections) == (5, 0, [])
    assert differing(before, learner.snapshot()) == {"records", "prequential", "drift"}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_weight_two_is_the_sample_twice(strategy):
    """With a network whose samples do not see one another; batch normalisation lets them."""
    run = {"learning__strategy": strategy, "learning__average_decay": 0.9, "learning__optimizer": "sgd"}
    before = learned(settings(**run), stream()[:4]).snapshot()

    def after(indices: list[int], weights: list[float]) -> Tensor:
        learner = resumed(settings(**run), before)
        learner.learn(batch(indices, first=position(learner), weights=weights))
        return torch.cat([t.flatten() for name, t in learner.snapshot().tensors.items() if "/model/" in name])

    one, two = digits_of([0, 1], 2, skip=50)
    twice = after([one, two, two], [1.0])
    assert torch.allclose(after([one, two], [1.0, 2.0]), twice, atol=1e-6)
    assert not torch.allclose(after([one, two], [1.0, 1.0]), twice, atol=1e-5)


@for_every_learner
def test_held_out_samples_alone_teach_nothing(run):
    learner = learned(settings(**run), stream()[:4])
    before = learner.snapshot()
    held_out = batch(digits_of([0, 1, 2], 6), first=position(learner), splits=[VALIDATION, TEST])
    assert learner.learn(held_out).learned == 0
    assert differing(before, learner.snapshot()) == {"validation", "test", "records"}


@for_every_pair
def test_batches_of_one_are_learned_without_a_memory(run):
    learner = Learner(settings(memory__max_items=0, **run))
    reports = learn(learner, [batch([index], first=index) for index in range(4)])
    assert [r.steps for r in reports] == [1, 1, 1, 1]
    assert len(learner.memory) == 0


@for_every_learner
def test_a_batch_is_predicted_before_it_is_learned(run):
    learner = learned(settings(learning__precision="fp32", learning__steps_per_batch=5, **run), stream()[:4])
    learner.decide_release()
    candidate = learner.snapshot().candidate
    assert candidate
    network = models.build(candidate.model, own=candidate.model.name)
    network.load_state_dict(candidate.weights)
    indices = digits_of([0, 1, 2], 30, skip=100)
    predicted = [candidate.labels[i] for i in predict(network, DIGITS_NHWC[indices], torch.device("cpu"))]
    wanted = {}
    for label in ("0", "1", "2"):
        own = [p for p, index in zip(predicted, indices, strict=True) if str(TARGETS[index]) == label]
        wanted[label] = own.count(label), len(own)
    assert learner.learn(batch(indices, first=position(learner))).prequential == wanted


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
    learner = learned(given, stream()[:4])
    before = learner.snapshot()
    bad = batch(digits_of([0, 1, 2], 9), first=position(learner), weights=[weight], splits=[TRAIN, TRAIN, TEST])
    report = learner.learn(bad)
    assert (report.learned, report.steps, report.samples) == (0, 0, {TEST: 3})
    assert {(r.reason, r.stage) for r in report.rejections} == {(Reason.NON_FINITE_STEP, "learn")}
    assert [r.record for r in report.rejections] == [s.record for s in bad.samples if s.split is TRAIN]
    after = learner.snapshot()
    assert differing(before, after) <= {"rng", "records", "test", "non_finite_in_a_row", "prequential", "drift"}
    assert as_bytes(resumed(given, after).snapshot()) == as_bytes(after)
    learner.learn(batch(digits_of([0, 1, 2], 9), first=position(learner)))
    assert "trainer" in differing(after, learner.snapshot())


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
    learner = Learner(settings(**given))
    report = learner.learn(batch(digits_of([0, 1], 4), first=position(learner)))
    assert (report.steps, report.learned, report.rejections) == (1, sum(report.samples.values()), [])


@for_every_pair
def test_three_such_steps_in_a_row_are_a_divergence(run, monkeypatch):
    monkeypatch.setitem(STRATEGIES, "poisoned", poisoned(STRATEGIES[run["learning__strategy"]]))
    learner = Learner(settings(**run | {"learning__strategy": "poisoned"}))
    seen = []
    for weight in (7, 7, 1, 8, 7, 0, 7, 1):  # a batch that makes no step breaks no row
        learner.learn(batch(digits_of([0, 1], 4), first=position(learner), weights=[weight]))
        seen.append(learner.diverged)
    assert seen == [False, False, False, False, False, False, True, False]


@for_every_learner
def test_labels_beyond_the_most_allowed_are_rejected(run):
    learner = Learner(settings(model__max_classes=2, **run))
    b = batch(digits_of([5, 0, 3], 9), splits=[TRAIN, TRAIN, TRAIN, TEST, TEST, TEST])
    report = learner.learn(b)
    assert learner.labels == ["5", "0"]
    assert [r.record for r in report.rejections] == [s.record for s in b.samples if s.label == "3"]
    assert {r.reason for r in report.rejections} == {Reason.TOO_MANY_CLASSES}
    assert report.samples == {TRAIN: 4, TEST: 2}
    assert report.learned == 4
    assert report.used == [sample.label != "3" for sample in b.samples]


RETIRING = {"labels__aliases": {"1": "0", "3": "three"}, "labels__allowed": ["0", "three", *"456789"]}


@for_every_learner
def test_classes_retire_at_a_restart_and_a_run_resumed_after_every_batch_learns_the_same(run):
    before, later = settings(**run), settings(**run, **RETIRING)
    half = learned(before, stream()[:7]).snapshot()

    def rest(resume: bool) -> tuple[Learner, list[Report]]:
        learner, reports = resumed(later, half), []
        for b in as_meant(stream()[7:], later):
            if resume:
                learner = resumed(later, learner.snapshot())
            reports.append(learner.learn(b))
        return learner, reports

    learner, reports = rest(resume=False)
    end = learner.snapshot()
    assert as_bytes(rest(resume=True)[0].snapshot()) == as_bytes(end)
    assert learner.retired == {"1": "0", "2": None, "3": "three"}
    assert learner.labels[:6] == [*"01234", "three"]  # indices stay, and are not used again
    assert {label for report in reports for label in report.prequential} <= {"0", "three", *"456789"}
    for items in (learner.memory, *learner._held_out.values()):
        assert not {1, 2, 3} & {*items.labels.tolist()}
    for name in ("model", "average"):
        if f"trainer/{name}/head.bias" in end.tensors:
            assert not end.tensors[f"trainer/{name}/head.weight"][[1, 2, 3]].any()
            assert (end.tensors[f"trainer/{name}/head.bias"][[1, 2, 3]] == NEVER).all()
    assert all(torch.isfinite(t).all() for name, t in end.tensors.items() if name.startswith("trainer/"))
    assert not np.isin(predict(learner.network, DIGITS_NHWC[:200], torch.device("cpu")), [1, 2, 3]).any()


@for_every_pair
def test_new_rows_of_the_head_start_with_adams_first_step(run):
    """Also when the class was first seen where no step was made: held out, or with weight 0."""
    learner = learned(settings(**run), stream()[:4])
    learner.learn(batch(digits_of([3], 2), first=position(learner), splits=[TEST]))
    learner.learn(batch(digits_of([4], 2), first=position(learner), weights=[0]))
    learner = resumed(settings(**run), learner.snapshot())
    learner.learn(batch(digits_of([0, 3, 4], 9, skip=9), first=position(learner)))
    tensors = learner.snapshot().tensors
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
    learner = learned(settings(), [batch(digits_of([0, 1], 4), labels=["7", 7])])
    assert learner.labels == ["7", 7]
    assert resumed(settings(), learner.snapshot()).labels == ["7", 7]


def test_weights_are_clipped_and_stay_finite_where_they_are_kept():
    learner = learned(settings(), [batch(digits_of([0, 1], 6), weights=[1e300, 0.5], splits=[TRAIN, TRAIN, TEST])])
    tensors = learner.snapshot().tensors
    assert sorted(set(tensors["memory/weights"].tolist())) == [0.5, 10]
    assert tensors["test/weights"].max() <= 10
    assert np.isfinite(learner.snapshot().document["trainer"]["loss_normaliser"])
