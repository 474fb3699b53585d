"""Every prequential figure, compared with a plain computation."""

from collections import Counter

import numpy as np
import pytest
import torch
from digit_stream import (
    DIGITS_NHWC,
    TEST,
    VALIDATION,
    as_bytes,
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
from sklearn.metrics import cohen_kappa_score

from stream_learner import networks as models
from stream_learner.contract.vocabulary import Label
from stream_learner.contract.window import ClassAccuracy, ClassForgetting, Confusion, Forgetting, Recent, accuracy
from stream_learner.learning.evaluation import calibration_error
from stream_learner.learning.outcome import Candidate
from stream_learner.learning.prequential import FadingMean, Prequential

LABELS = ["ant", "bee", "cat", 3, "3"]
Seen = list[tuple[int, int, float]]  # target, prediction, confidence


def plain_calibration_error(correct, confidences) -> float:
    """Guo et al. 2017, equations 2, 3 and 5, word for word."""
    error = 0.0
    for m in range(1, 16):
        inside = [i for i, p in enumerate(confidences) if (m - 1) / 15 < p <= m / 15]
        if inside:
            acc = sum(bool(correct[i]) for i in inside) / len(inside)
            conf = sum(float(confidences[i]) for i in inside) / len(inside)
            error += len(inside) / len(correct) * abs(acc - conf)
    return error


def batches_of_predictions(seed: int) -> list[Seen]:
    """Draw batches of 1 to 300 predictions, two thirds of them right. Classes arrive one after the other."""
    rng, batches, total = np.random.default_rng(seed), [], 0
    while total < 4_000:
        n = int(rng.integers(1, 300))
        classes = min(len(LABELS), 1 + total // 400)
        targets = rng.integers(0, classes, n)
        predictions = np.where(rng.random(n) < 2 / 3, targets, rng.integers(0, classes, n))
        batches.append(list(zip(targets.tolist(), predictions.tolist(), rng.random(n, np.float32), strict=True)))
        total += n
    return batches


def add(prequential: Prequential, seen: Seen) -> None:
    targets, predictions, confidences = zip(*seen, strict=True)
    prequential.add(np.array(targets), np.array(predictions), np.array(confidences, np.float32))


def recent(prequential: Prequential) -> Recent:
    figures = prequential.recent(LABELS)
    assert figures
    return figures


@pytest.mark.parametrize("seed", range(3))
def test_the_figures_are_those_of_the_last_thousand_samples(seed):
    prequential, everything = Prequential(), []
    for seen in batches_of_predictions(seed):
        add(prequential, seen)
        everything += seen
        window = everything[-1000:]
        targets, predictions, confidences = zip(*window, strict=True)
        correct = [t == p for t, p in zip(targets, predictions, strict=True)]

        figures = recent(prequential)
        hits = Counter(t for t, p, _ in window if t == p)
        assert figures.accuracy == accuracy((LABELS[c], hits[c], n) for c, n in sorted(Counter(targets).items()))
        if len({*targets, *predictions}) > 1:
            assert figures.kappa == pytest.approx(cohen_kappa_score(targets, predictions))
        else:
            assert figures.kappa is None
        assert figures.calibration_error == pytest.approx(plain_calibration_error(correct, confidences), abs=1e-6)
        wrong = Counter((LABELS[t], LABELS[p]) for t, p, _ in window if t != p)
        assert {(c.label, c.prediction): c.count for c in figures.confusions}.items() <= wrong.items()
        assert [c.count for c in figures.confusions] == [n for _, n in wrong.most_common(10)]


def test_figures_resumed_after_every_batch_go_on_as_if_they_had_not_been():
    unbroken, prequential = Prequential(), Prequential()
    for seen in batches_of_predictions(0):
        state = prequential.state_dict()
        prequential = Prequential()
        prequential.load_state_dict(state, len(LABELS))
        add(prequential, seen)
        add(unbroken, seen)
        assert recent(prequential) == recent(unbroken)


def test_before_the_first_sample_nothing_is_known():
    assert Prequential().recent(LABELS) is None
    assert driver_of(settings()).snapshot().recent is None


def test_figures_are_computed_once_for_each_change_of_the_window():
    prequential = Prequential()
    prequential.add(np.array([0, 1]), np.array([0, 0]), np.array([0.5, 0.5], np.float32))
    first, saved = recent(prequential), prequential.state_dict()
    assert recent(prequential) is first
    prequential.retire(1, 0)
    assert recent(prequential).accuracy.correct == 2
    prequential.load_state_dict(saved, classes=2)
    assert recent(prequential) == first


def test_confusions_are_the_most_frequent_mistakes_and_equal_ones_in_order():
    prequential = Prequential()
    add(prequential, [(t, p, 0.5) for t, p in [(4, 3), (0, 1), (0, 1), (2, 2), (1, 0)]])
    assert recent(prequential).confusions == [
        Confusion("ant", "bee", 2),
        Confusion("bee", "ant", 1),
        Confusion("3", 3, 1),
    ]


def test_a_bin_holds_its_upper_edge_and_a_confidence_of_0_is_in_the_first():
    confidences = np.array([0, 1 / 15, 0.07, 1.0, 0.95], np.float32)
    correct = np.array([False, True, True, True, False])
    expected = (abs(1 - 1 / 15) + abs(1 - 0.07) + abs(1 - 1.95)) / 5
    assert calibration_error(correct, confidences) == pytest.approx(expected)
    assert calibration_error(correct[:0], confidences[:0]) is None


def test_the_faded_accuracy_weighs_a_batch_by_its_age():
    prequential, weighted, weight = Prequential(), 0.0, 0.0
    for seen in batches_of_predictions(1):
        add(prequential, seen)
        keep = 0.999 ** len(seen)
        hits = sum(t == p for t, p, _ in seen)
        weighted = weighted * keep + hits * (1 - keep) / len(seen)
        weight = weight * keep + 1 - keep
        assert recent(prequential).faded_accuracy == pytest.approx(weighted / weight)


def test_a_fading_mean_forgets_what_lies_beyond_its_window():
    mean = FadingMean(window=100)
    mean.add(0, 10)
    assert mean.mean == 0
    mean.add(10, 10)
    assert mean.mean == pytest.approx(0.5, abs=0.03)  # as many right as wrong, the right ones newer
    for _ in range(100):
        mean.add(10, 10)
    assert mean.mean == pytest.approx(1, abs=1e-4)


def test_a_fading_mean_does_not_depend_on_the_size_of_batches():
    one, many = FadingMean(window=100), FadingMean(window=100)
    one.add(25, 50)
    for _ in range(50):
        many.add(0.5, 1)
    one.add(50, 50)
    for _ in range(50):
        many.add(1, 1)
    assert one.mean == pytest.approx(many.mean)


# -- in the learner


def probabilities(candidate: Candidate, indices: list[int]) -> np.ndarray:
    """float32 [N, classes] of the candidate on digits."""
    network = models.build(candidate.model)
    network.load_state_dict(candidate.parameters)
    network.eval()
    with torch.inference_mode():
        return torch.softmax(network(torch.from_numpy(DIGITS_NHWC[indices])).float(), 1).numpy()


def test_the_window_holds_what_the_model_thought_before_it_learned():
    driver = learned(settings(), stream())
    candidate = decided(driver).candidate
    assert candidate
    indices = digits_of(range(10), 30, skip=100)
    driver.learn(batch(indices, first=position(driver)))
    tensors = tensors_of(driver.snapshot())
    wanted = probabilities(candidate, indices)
    assert np.array_equal(tensors["prequential/predictions"][-30:].numpy(), wanted.argmax(1))
    assert np.allclose(tensors["prequential/confidences"][-30:].numpy(), wanted.max(1), atol=1e-5)


def test_the_state_has_the_number_of_batches_only_if_it_decides():
    """So the state of the default share has the bytes of earlier versions."""
    for share, kept in ((1.0, False), (0.5, True)):
        prequential = Prequential(share)
        prequential.begin()
        assert ("batches" in prequential.state_dict()) is kept


@pytest.mark.parametrize(
    ("run", "forward_passes"),
    [
        ({}, 4),
        # These need the prediction of every batch that they learn; `hardness` also that of the batch of weight 0.
        ({"learning__strategy": "derpp"}, 8),
        ({"model__head": "ridge"}, 8),
        ({"weights__policies": ["record", "hardness"]}, 9),
        # A step has its own forward pass, and the prediction takes its features.
        ({"learning__strategy": "finetune", "learning__average_decay": 0.0}, 8),
    ],
)
def test_a_share_of_the_batches_is_predicted_and_the_others_are_learned_alike(run, forward_passes):
    driver, passes = driver_of(settings(prequential__share=0.4, **run)), []
    driver.learner.network.body.register_forward_hook(lambda *_: passes.append(1))
    reports = learn(driver, stream())
    counted = [sum(total for _, total in report.figures.prequential.values()) for report in reports]
    assert counted == [8, 0, 1, 0, 0, 0, 6, 0, 1, 0]
    assert len(passes) == forward_passes
    found, wanted = (
        {name: t.numpy().tobytes() for name, t in tensors_of(each.snapshot()).items() if "prequential/" not in name}
        for each in (driver, learned(settings(**run), stream()))
    )
    assert found == wanted


def test_until_the_window_is_full_it_has_every_sample_that_the_reports_count():
    driver = driver_of(settings())
    counts: dict = {}
    for report in learn(driver, stream()):
        for label, (correct, total) in report.figures.prequential.items():
            before = counts.get(label, (0, 0))
            counts[label] = before[0] + correct, before[1] + total
    figures = driver.snapshot().recent
    assert figures
    assert figures.accuracy.per_class == [ClassAccuracy(label, *counts[label]) for label in driver.learner.labels]


def test_the_calibration_error_of_a_candidate_is_that_on_the_validation_samples():
    driver = learned(settings(learning__steps_per_batch=5), stream()[:1])
    indices = digits_of([0, 1, 2], 40, skip=50)
    driver.learn(batch(indices, first=position(driver), splits=[VALIDATION]))
    candidate = decided(driver).candidate
    assert candidate
    wanted = probabilities(candidate, indices)
    targets = [sample.label for sample in batch(indices).samples]
    correct = [candidate.labels[c] == target for c, target in zip(wanted.argmax(1), targets, strict=True)]
    assert candidate.calibration_error == pytest.approx(plain_calibration_error(correct, wanted.max(1)), abs=1e-5)


def test_without_validation_samples_a_candidate_has_no_calibration_error():
    driver = learned(settings(), stream()[:1])
    candidate = decided(driver).candidate
    assert candidate
    assert candidate.calibration_error is None


def test_forgetting_is_the_best_recall_at_an_earlier_release_less_that_of_now():
    """Four phases: two classes are learned, two others in their place, those with nonsense labels (refused), then with
    their own. Without replay the first ones are forgotten. The run is resumed after each phase."""
    given = settings(
        learning__strategy="finetune", learning__learning_rate=0.01, learning__steps_per_batch=5, release__max_drop=0.3
    )
    driver = driver_of(given)
    tests = {"first": digits_of([0, 1], 40, skip=100), "then": digits_of([2, 3], 40, skip=100)}
    phases = [([0, 1], None, "first"), ([2, 3], None, "then"), ([2, 3], ["9"], None), ([2, 3], None, None)]
    best: dict[Label, float] = {}
    seen, released, last = [], [], None
    for classes, labels, held_out in phases:
        for i in range(4):
            driver.learn(batch(digits_of(classes, 20, skip=2 * i), first=position(driver), labels=labels))
        if held_out:
            for split in (VALIDATION, TEST):
                driver.learn(batch(tests[held_out], first=position(driver), splits=[split]))
        snapshot = decided(driver)
        candidate, decision = snapshot.candidate, snapshot.decision
        assert candidate
        assert decision
        released.append(decision.released)
        recalls = {c.label: c.correct / c.total for c in candidate.test.per_class}
        expected = [
            ClassForgetting(label=label, best=best[label], forgetting=best[label] - recall)
            for label, recall in recalls.items()
            if label in best
        ]
        mean = np.mean([c.forgetting for c in expected]) if expected else None
        assert candidate.forgetting.per_class == expected
        assert candidate.forgetting == Forgetting(mean=candidate.forgetting.mean, per_class=expected)
        assert candidate.forgetting.mean == (pytest.approx(mean) if expected else None)
        seen.append([c.label for c in expected])
        if released[-1]:
            best |= {label: max(best.get(label, 0), recall) for label, recall in recalls.items()}
        last = snapshot if released[-1] or last is None else last
        driver = resumed(given, snapshot, last)
        assert as_bytes(driver.snapshot()) == as_bytes(snapshot)
    assert seen == [[], ["0", "1"], ["0", "1", "2", "3"], ["0", "1", "2", "3"]]
    assert False in released
    assert best["0"] > 0.5
