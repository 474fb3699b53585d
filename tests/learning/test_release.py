"""Releases of the learner: their content and their time."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from digit_stream import (
    MODELS,
    TEST,
    TRAIN,
    VALIDATION,
    batch,
    decided,
    digits_of,
    driver_of,
    learned,
    position,
    resumed,
    settings,
    stream,
)

from stream_learner import networks as models
from stream_learner.contract import tensors
from stream_learner.contract.spans import Span
from stream_learner.contract.vocabulary import Split
from stream_learner.learning.evaluation import predict
from stream_learner.learning.outcome import Candidate
from stream_learner.learning.strategies import Losses, Step
from stream_learner.learning.strategies.er import ExperienceReplay
from stream_learner.networks.tensors import as_arrays, as_tensors
from stream_learner.registry import STRATEGIES
from stream_learner.run.batch import Batch
from stream_learner.run.driver import Driver

CPU = torch.device("cpu")
FAST = {"learning__steps_per_batch": 5, "learning__learning_rate": 0.01}


def candidate_of(driver: Driver) -> Candidate:
    candidate = decided(driver).candidate
    assert candidate
    return candidate


def rebuilt(candidate: Candidate) -> torch.nn.Module:
    """The network as downstream builds it: from the manifest's words and the release's bytes."""
    network = models.build(candidate.model)
    network.load_state_dict(as_tensors(tensors.decode(tensors.encode(as_arrays(candidate.parameters)))))
    return network


def held_out(
    driver: Driver, count: int, classes: Sequence[int] = range(10), skip: int = 0, split: Split = VALIDATION
) -> None:
    driver.learn(batch(digits_of(classes, count, skip), first=position(driver), splits=[split]))


def teach(driver: Driver, batches: int, classes: Sequence[int] = range(10), labels: list | None = None) -> None:
    for i in range(batches):
        driver.learn(batch(digits_of(classes, 20, skip=40 + 2 * i), first=position(driver), labels=labels))


@pytest.mark.parametrize("model", MODELS)
def test_the_candidates_accuracy_is_that_of_its_evaluation_object(model):
    driver = learned(settings(model__name=model), stream())
    teach(driver, 5)
    held_out(driver, 60, split=TEST)
    candidate = candidate_of(driver)
    images, targets, predictions = (candidate.evaluation[k].numpy() for k in ("images", "labels", "predictions"))
    assert (images.dtype, targets.dtype, predictions.dtype) == (np.uint8, np.int64, np.int64)
    assert len(images) == len(targets) == len(predictions) == candidate.test.total > 60
    assert candidate.test.accuracy == (predictions == targets).mean()
    for one in candidate.test.per_class:
        own = targets == candidate.labels.index(one.label)
        assert (one.correct, one.total) == ((predictions[own] == targets[own]).sum(), own.sum())
    assert candidate.test.mean_recall == pytest.approx(
        np.mean([(predictions == targets)[targets == t].mean() for t in np.unique(targets)])
    )


@pytest.mark.parametrize("model", MODELS)
def test_whoever_builds_the_released_model_gets_its_predictions(model):
    driver = learned(settings(model__name=model), stream())
    teach(driver, 5)
    candidate = candidate_of(driver)
    preprocessing = candidate.preprocessing
    assert candidate.evaluation["images"].shape[1:] == (
        preprocessing.height,
        preprocessing.width,
        preprocessing.channels,
    )
    predictions = predict(rebuilt(candidate), candidate.evaluation["images"].numpy(), CPU)
    assert np.array_equal(predictions, candidate.evaluation["predictions"].numpy())
    assert candidate.model.arguments.classes == len(candidate.labels) == 10


def test_a_refused_candidate_leaves_the_last_release_to_compare_with():
    driver = driver_of(settings(release__max_drop=0.0, **FAST))
    teach(driver, 6)
    held_out(driver, 100)
    released = decided(driver)
    first = released.candidate
    assert released.decision
    assert released.decision.released
    assert first
    good = first.validation.mean_recall
    assert good
    assert good > 0.5

    teach(driver, 6, labels=["9", "8", "7"])  # nonsense
    snapshot = decided(driver)
    refused = snapshot.decision
    assert refused
    assert (refused.released, refused.abstained) == (False, False)
    assert refused.last == good
    assert refused.candidate is not None
    assert refused.candidate < good
    assert snapshot.candidate
    assert snapshot.candidate.validation.mean_recall == refused.candidate

    held_out(driver, 100, skip=100)  # the same release is scored again, on more samples
    again = driver.decide().decision
    assert (again.released, again.samples) == (False, 200)
    images = batch(digits_of(range(10), 100) + digits_of(range(10), 100, skip=100)).samples
    predictions = predict(rebuilt(first), np.stack([s.pixels_HWC for s in images]), CPU)
    hits = [first.labels[p] == s.label for p, s in zip(predictions, images, strict=True)]
    assert again.last == pytest.approx(np.mean(hits))  # as many of each class: mean recall is accuracy

    driver.snapshot()
    teach(driver, 30)
    assert driver.decide().decision.released
    better = candidate_of(driver).validation.mean_recall
    assert driver.decide().decision.last == better


def test_a_class_that_the_last_release_does_not_know_counts_as_missed_by_it():
    driver = driver_of(settings(**FAST))
    teach(driver, 6, classes=range(5))
    held_out(driver, 50, classes=range(5))
    alone = candidate_of(driver).validation.mean_recall
    assert alone
    held_out(driver, 50, classes=range(5, 10))
    assert driver.decide().decision.last == pytest.approx(alone / 2)


def test_held_out_sets_are_bounded_and_balanced():
    driver = driver_of(settings(held_out__max_items=20))
    held_out(driver, 100, classes=[0])
    held_out(driver, 30, classes=[1, 2])
    counts = {c.label: c.total for c in candidate_of(driver).validation.per_class}
    assert sorted(counts.values()) == [6, 7, 7]


def test_it_abstains_while_there_is_too_little_to_compare():
    driver = driver_of(settings(release__min_held_out=30, **FAST))
    teach(driver, 2)
    assert driver.decide().decision.abstained
    teach(driver, 6, labels=["9", "8", "7"])
    held_out(driver, 29)
    assert driver.decide().decision.abstained
    held_out(driver, 1, skip=50)
    assert not driver.decide().decision.abstained


def test_a_decision_is_due_after_every_so_many_records():
    driver = driver_of(settings(release__every_records=30))
    due = []
    for i in range(6):
        driver.learn(batch(digits_of([0, 1], 12), first=12 * i, splits=[TRAIN, TEST]))
        due.append(driver.learner.release_due)
        if driver.learner.release_due:
            driver.decide()
        driver = resumed(settings(release__every_records=30), driver.snapshot())
    assert due == [False, False, True, False, False, True]


def test_a_decision_leaves_with_one_snapshot():
    driver = learned(settings(), stream())
    assert decided(driver).decision
    after = driver.snapshot()
    assert after.decision is after.candidate is None


def test_a_candidate_is_a_copy():
    driver = learned(settings(), stream())
    candidate = candidate_of(driver)
    before = {name: tensor.clone() for name, tensor in candidate.parameters.items()}
    teach(driver, 2)
    assert all(torch.equal(before[name], tensor) for name, tensor in candidate.parameters.items())


def test_a_restart_compares_with_the_release_it_is_given_back():
    given = settings(**FAST)
    driver = driver_of(given)
    teach(driver, 4)
    held_out(driver, 40)
    snapshot = decided(driver)
    teach(driver, 1)
    unbroken = driver.decide().decision

    restarted = resumed(given, snapshot, snapshot)
    teach(restarted, 1)
    assert restarted.decide().decision == unbroken
    assert unbroken.last is not None


@pytest.mark.parametrize("run", [{}, {"model__head": "ridge"}])
def test_what_learned_nothing_is_not_released(run):
    given = settings(release__every_records=5, **run)

    def due_after(driver: Driver, count: int, **rest) -> bool:
        driver.learn(batch(digits_of([0, 1], count), first=position(driver), **rest))
        assert resumed(given, driver.snapshot()).learner.release_due is driver.learner.release_due
        return driver.learner.release_due

    driver = driver_of(given)
    assert not due_after(driver, 10, splits=[VALIDATION, TEST])
    assert not due_after(driver, 10, weights=[0.0])
    assert due_after(driver, 2, weights=[0.0, 1.0])  # at once: enough records were read
    driver.decide()
    assert not due_after(driver, 10, splits=[TEST])
    assert not due_after(driver, 10, weights=[0.0])
    assert due_after(driver, 10)


def test_batches_that_were_undone_are_not_released(monkeypatch):
    class NotFinite(ExperienceReplay):
        def losses(self, step: Step) -> Losses:
            losses, weights = super().losses(step)
            return Losses(losses * torch.nan, weights)

    monkeypatch.setitem(STRATEGIES, "not_finite", NotFinite)
    driver = learned(settings(release__every_records=5, learning__strategy="not_finite"), stream())
    assert driver.learner.labels
    assert not driver.learner.release_due


def test_before_a_first_label_there_is_nothing_to_release():
    driver = driver_of(settings(release__every_records=1))
    driver.learn(Batch(spans={"t": {0: Span(0, 5)}}, records=5))
    assert not driver.learner.release_due


@pytest.mark.parametrize("released_before", [False, True])
def test_a_candidate_with_weights_that_are_not_finite_is_refused(released_before):
    driver = learned(settings(), stream())
    if released_before:
        assert driver.decide().decision.released
    with torch.no_grad():
        driver.learner.network.head.weight[0, 0] = torch.inf
    decision = driver.decide().decision
    assert (decision.released, decision.worse) == (False, released_before)
    assert "not finite" in decision.reason
