"""Releases of the learner: their content and their time."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from digit_stream import MODELS, TEST, TRAIN, VALIDATION, batch, digits_of, learned, position, resumed, settings, stream

from stream_learner import networks as models
from stream_learner.checkpoints import state
from stream_learner.contract.spans import Span
from stream_learner.contract.vocabulary import Split
from stream_learner.learning.batch import Batch
from stream_learner.learning.evaluation import predict
from stream_learner.learning.learner import Learner
from stream_learner.learning.snapshot import Candidate
from stream_learner.learning.strategies import Losses, Step
from stream_learner.learning.strategies.er import ExperienceReplay
from stream_learner.registry import STRATEGIES

CPU = torch.device("cpu")
FAST = {"learning__steps_per_batch": 5, "learning__learning_rate": 0.01}


def candidate_of(learner: Learner) -> Candidate:
    candidate = learner.snapshot().candidate
    assert candidate
    return candidate


def rebuilt(candidate: Candidate) -> torch.nn.Module:
    """The network as downstream builds it: from the manifest's words and the release's bytes."""
    network = models.build(candidate.model)
    network.load_state_dict(state.decode_tensors(state.encode(candidate.weights)))
    return network


def held_out(
    learner: Learner, count: int, classes: Sequence[int] = range(10), skip: int = 0, split: Split = VALIDATION
) -> None:
    learner.learn(batch(digits_of(classes, count, skip), first=position(learner), splits=[split]))


def teach(learner: Learner, batches: int, classes: Sequence[int] = range(10), labels: list | None = None) -> None:
    for i in range(batches):
        learner.learn(batch(digits_of(classes, 20, skip=40 + 2 * i), first=position(learner), labels=labels))


@pytest.mark.parametrize("model", MODELS)
def test_the_candidates_accuracy_is_that_of_its_evaluation_object(model):
    learner = learned(settings(model__name=model), stream())
    teach(learner, 5)
    held_out(learner, 60, split=TEST)
    learner.decide_release()
    candidate = candidate_of(learner)
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
    learner = learned(settings(model__name=model), stream())
    teach(learner, 5)
    learner.decide_release()
    candidate = candidate_of(learner)
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
    learner = Learner(settings(release__max_drop=0.0, **FAST))
    teach(learner, 6)
    held_out(learner, 100)
    assert learner.decide_release().released
    first = candidate_of(learner)
    good = first.validation.mean_recall
    assert good
    assert good > 0.5

    teach(learner, 6, labels=["9", "8", "7"])  # nonsense
    refused = learner.decide_release()
    snapshot = learner.snapshot()
    assert (refused.released, refused.abstained) == (False, False)
    assert refused.last == good
    assert refused.candidate is not None
    assert refused.candidate < good
    assert snapshot.decision == refused
    assert snapshot.candidate
    assert snapshot.candidate.validation.mean_recall == refused.candidate

    held_out(learner, 100, skip=100)  # other samples: the same release, scored anew
    again = learner.decide_release()
    assert (again.released, again.samples) == (False, 200)
    images = batch(digits_of(range(10), 100) + digits_of(range(10), 100, skip=100)).samples
    predictions = predict(rebuilt(first), np.stack([s.pixels_HWC for s in images]), CPU)
    hits = [first.labels[p] == s.label for p, s in zip(predictions, images, strict=True)]
    assert again.last == pytest.approx(np.mean(hits))  # as many of each class: mean recall is accuracy

    learner.snapshot()
    teach(learner, 30)
    assert learner.decide_release().released
    better = candidate_of(learner).validation.mean_recall
    assert learner.decide_release().last == better


def test_a_class_that_the_last_release_does_not_know_counts_as_missed_by_it():
    learner = Learner(settings(**FAST))
    teach(learner, 6, classes=range(5))
    held_out(learner, 50, classes=range(5))
    learner.decide_release()
    alone = candidate_of(learner).validation.mean_recall
    assert alone
    held_out(learner, 50, classes=range(5, 10))
    assert learner.decide_release().last == pytest.approx(alone / 2)


def test_held_out_sets_are_bounded_and_balanced():
    learner = Learner(settings(held_out__max_items=20))
    held_out(learner, 100, classes=[0])
    held_out(learner, 30, classes=[1, 2])
    learner.decide_release()
    counts = {c.label: c.total for c in candidate_of(learner).validation.per_class}
    assert sorted(counts.values()) == [6, 7, 7]


def test_it_abstains_while_there_is_too_little_to_compare():
    learner = Learner(settings(release__min_held_out=30, **FAST))
    teach(learner, 2)
    assert learner.decide_release().abstained
    teach(learner, 6, labels=["9", "8", "7"])
    held_out(learner, 29)
    assert learner.decide_release().abstained
    held_out(learner, 1, skip=50)
    assert not learner.decide_release().abstained


def test_a_decision_is_due_after_every_so_many_records():
    learner = Learner(settings(release__every_records=30))
    due = []
    for i in range(6):
        learner.learn(batch(digits_of([0, 1], 12), first=12 * i, splits=[TRAIN, TEST]))
        due.append(learner.release_due)
        if learner.release_due:
            learner.decide_release()
        learner = resumed(settings(release__every_records=30), learner.snapshot())
    assert due == [False, False, True, False, False, True]


def test_an_outcome_leaves_with_one_snapshot():
    learner = learned(settings(), stream())
    decision = learner.decide_release()
    assert learner.snapshot().decision == decision
    after = learner.snapshot()
    assert after.decision is after.candidate is None


def test_a_candidate_is_a_copy():
    learner = learned(settings(), stream())
    learner.decide_release()
    candidate = candidate_of(learner)
    before = {name: tensor.clone() for name, tensor in candidate.weights.items()}
    teach(learner, 2)
    assert all(torch.equal(before[name], tensor) for name, tensor in candidate.weights.items())


def test_a_restart_compares_with_the_release_it_is_given_back():
    given = settings(**FAST)
    learner = Learner(given)
    teach(learner, 4)
    held_out(learner, 40)
    learner.decide_release()
    snapshot = learner.snapshot()
    teach(learner, 1)
    unbroken = learner.decide_release()

    restarted = resumed(given, snapshot)
    restarted.restore_released(snapshot.tensors, snapshot.document)
    teach(restarted, 1)
    assert restarted.decide_release() == unbroken
    assert unbroken.last is not None


@pytest.mark.parametrize("run", [{}, {"model__head": "ridge"}])
def test_what_learned_nothing_is_not_released(run):
    given = settings(release__every_records=5, **run)

    def due_after(learner: Learner, count: int, **rest) -> bool:
        learner.learn(batch(digits_of([0, 1], count), first=position(learner), **rest))
        assert resumed(given, learner.snapshot()).release_due is learner.release_due
        return learner.release_due

    learner = Learner(given)
    assert not due_after(learner, 10, splits=[VALIDATION, TEST])
    assert not due_after(learner, 10, weights=[0.0])
    assert due_after(learner, 2, weights=[0.0, 1.0])  # at once: enough records were read
    learner.decide_release()
    assert not due_after(learner, 10, splits=[TEST])
    assert not due_after(learner, 10, weights=[0.0])
    assert due_after(learner, 10)


def test_batches_that_were_undone_are_not_released(monkeypatch):
    class NotFinite(ExperienceReplay):
        def losses(self, step: Step) -> Losses:
            losses, weights = super().losses(step)
            return Losses(losses * torch.nan, weights)

    monkeypatch.setitem(STRATEGIES, "not_finite", NotFinite)
    learner = learned(settings(release__every_records=5, learning__strategy="not_finite"), stream())
    assert learner.labels
    assert not learner.release_due


def test_before_a_first_label_there_is_nothing_to_release():
    learner = Learner(settings(release__every_records=1))
    learner.learn(Batch(spans={"t": {0: Span(0, 5)}}, records=5))
    assert not learner.release_due


@pytest.mark.parametrize("released_before", [False, True])
def test_a_candidate_with_weights_that_are_not_finite_is_refused(released_before):
    learner = learned(settings(), stream())
    if released_before:
        assert learner.decide_release().released
    with torch.no_grad():
        learner.network.head.weight[0, 0] = torch.inf
    decision = learner.decide_release()
    assert (decision.released, decision.worse) == (False, released_before)
    assert "not finite" in decision.reason
