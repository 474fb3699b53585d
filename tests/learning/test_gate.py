import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from stream_learner.config import ReleaseSettings
from stream_learner.contract.manifest import Decision
from stream_learner.learning.gate import DRAWS, decide, p_value

WRONG = 1000
Counts = tuple[int, int, int, int]
"""Of one class: the samples that both models have right, only the last release, only the candidate, neither."""


def verdict(*classes: Counts, known: int = WRONG, **settings: Any) -> Decision:
    """The decision on a candidate and a last release that have these samples right."""
    targets = np.repeat(np.arange(len(classes)), [sum(counts) for counts in classes])
    kinds = np.concatenate([np.repeat(np.arange(4), counts) for counts in classes])
    candidate, last = (np.where(np.isin(kinds, right), targets, WRONG) for right in ((0, 2), (0, 1)))
    return decide(candidate, last, targets, known, ReleaseSettings(**settings))


def of_128(candidate: int, last: int) -> Counts:
    """Counts of one class of 128 samples, from each model's number of correct ones. The correct ones overlap."""
    both = min(candidate, last)
    return both, last - both, candidate - both, 128 - max(candidate, last)


@pytest.mark.parametrize(
    ("candidate", "last", "released"),
    [
        (96, 64, True),
        (64, 64, True),
        (48, 64, True),
        (32, 64, True),  # the drop itself is allowed
        (31, 64, False),
        (0, 64, False),
        (0, 32, True),
        (0, 0, True),
    ],
)
def test_a_candidate_may_lack_max_drop_and_no_more(candidate, last, released):
    decision = verdict(of_128(candidate, last), max_drop=0.25)
    assert (decision.released, decision.abstained, decision.p_value) == (released, False, None)
    assert (decision.candidate, decision.last, decision.samples) == (candidate / 128, last / 128, 128)
    reached = "reaches" if released else "is below"
    assert decision.reason == f"mean recall {candidate / 128:.4f} {reached} {last / 128:.4f} - 0.25"


def test_without_an_allowance_the_candidate_must_be_as_good():
    assert verdict(of_128(64, 64), max_drop=0).released
    assert not verdict(of_128(63, 64), max_drop=0).released


def test_rounding_is_no_drop():
    # Of ten samples each: the sum of these recalls depends on their order, and that of their differences is not 0.
    assert verdict((7, 0, 3, 0), (9, 0, 0, 1), (7, 3, 0, 0), max_drop=0, min_held_out=1).released
    old = (3, 2, 0, 5), (8, 0, 0, 2), (3, 0, 7, 0), (5, 5, 0, 0)
    assert verdict(*old, max_drop=0, max_old_class_drop=0, min_held_out=1).released


@pytest.mark.parametrize(
    ("last", "candidate", "settings", "worse"),
    [
        (64, 60, {"max_drop": 0.02}, True),
        (64, 63, {"max_drop": 0.02}, False),
        (64, 48, {"rule": "not_worse"}, True),
        (64, 62, {"rule": "not_worse"}, False),
        (64, 48, {"rule": "better"}, True),
        (64, 62, {"rule": "better"}, False),  # refused, for being no better
        (64, 62, {"max_old_class_drop": 0.01}, True),
        (64, 62, {"rule": "better", "max_old_class_drop": 0.01}, True),
    ],
)
def test_a_candidate_is_worse_by_what_the_settings_call_a_drop(last, candidate, settings, worse):
    decision = verdict(of_128(candidate, last), **settings)
    assert decision.worse == worse
    assert decision.released == (not worse and settings.get("rule") != "better")


def test_it_abstains_when_nothing_was_released_before():
    targets = np.zeros(128, np.int64)
    decision = decide(targets, None, targets, 0, ReleaseSettings(rule="better", max_old_class_drop=0))
    assert (decision.released, decision.abstained, decision.candidate, decision.last) == (True, True, 1.0, None)
    assert decision.reason == "nothing was released before"
    assert decision.only_last_right is decision.negative_flip_rate is decision.old_class_drop is None


@pytest.mark.parametrize("rule", ["max_drop", "not_worse", "better"])
@pytest.mark.parametrize(("samples", "abstained"), [(99, True), (100, False), (101, False)])
def test_it_abstains_with_too_few_samples(rule, samples, abstained):
    decision = verdict((0, samples, 0, 0), rule=rule, max_old_class_drop=0)
    assert (decision.released, decision.abstained, decision.samples) == (abstained, abstained, samples)
    assert (decision.only_last_right, decision.negative_flip_rate, decision.old_class_drop) == (samples, 1, 1)
    if abstained:
        assert decision.reason == "99 validation samples are too few to compare"
        assert decision.p_value is None


@pytest.mark.parametrize("min_held_out", [0, 100])
def test_it_abstains_without_any_samples(min_held_out):
    none = np.empty(0, np.int64)
    decision = decide(none, none, none, 3, ReleaseSettings(min_held_out=min_held_out))
    assert (decision.released, decision.abstained, decision.candidate, decision.last) == (True, True, None, None)


def test_classes_count_alike_however_many_samples_they_have():
    common, rare = (800, 100, 0, 100), (0, 0, 8, 2)
    for rule in ("max_drop", "not_worse", "better"):
        assert verdict(common, rare, rule=rule).released
    common, rare = (800, 0, 100, 100), (0, 8, 0, 2)
    for rule in ("max_drop", "not_worse", "better"):
        assert not verdict(common, rare, rule=rule).released


def test_a_class_that_nobody_holds_out_does_not_count():
    assert verdict(of_128(64, 64), (0, 0, 0, 0), of_128(0, 128)).candidate == 0.25


@pytest.mark.parametrize(
    ("only_last", "only_candidate", "not_worse", "better"),
    [
        (0, 0, True, False),
        (4, 0, True, False),  # p = 1/16
        (5, 0, False, False),  # p = 1/32
        (0, 4, True, False),
        (0, 5, True, True),
        (40, 30, True, False),
        (45, 25, False, False),
        (25, 45, True, True),
    ],
)
def test_the_tests_ask_for_significance(only_last, only_candidate, not_worse, better):
    counts = (100, only_last, only_candidate, 100)
    expected = {"not_worse": (not_worse, "less"), "better": (better, "greater")}
    for rule, (released, alternative) in expected.items():
        decision = verdict(counts, rule=rule)
        assert (decision.released, decision.abstained) == (released, False)
        assert (decision.only_last_right, decision.only_candidate_right) == (only_last, only_candidate)
        exact = binomtest(only_candidate, max(1, only_last + only_candidate), alternative=alternative).pvalue
        assert decision.p_value == pytest.approx(exact if only_last + only_candidate else 1, abs=0.015)
        assert f"p = {decision.p_value:.4f}" in decision.reason


@given(st.lists(st.tuples(*[st.integers(0, 12)] * 2), min_size=1, max_size=5))
def test_where_classes_hold_as_many_samples_it_is_mcnemars_exact_test(pairs):
    gained, lost = np.array(pairs).T
    differing = gained.sum() + lost.sum()
    exact = binomtest(gained.sum(), differing, alternative="less").pvalue if differing else 1.0
    error = 5 * math.sqrt(exact * (1 - exact) / DRAWS) + 1 / DRAWS
    assert p_value(gained, lost, np.full(len(pairs), 30)) == pytest.approx(exact, abs=error)


def test_the_test_finds_no_more_than_its_level_between_equals():
    """Classes of 2 to 200 samples, models that are right in the same places or by chance in others."""
    rng = np.random.default_rng(1)
    total = np.array([2, 3, 5, 50, 200])
    found = 0
    for _ in range(200):
        differing = rng.binomial(total, 0.3)
        gained = rng.binomial(differing, 0.5)
        found += p_value(gained, differing - gained, total) <= 0.05
    assert 0 < found <= 20  # 10 are expected


def test_the_same_predictions_give_the_same_verdict():
    counts = (50, 20, 13, 40), (5, 3, 1, 1)
    assert verdict(*counts, rule="not_worse") == verdict(*counts, rule="not_worse")


def test_labels_that_are_wrong_in_most_validation_samples_turn_the_verdict_around():
    """Only `split.held_out_from` helps against this."""
    true = np.repeat(np.arange(10), 50)
    poisoned = (true + 1) % 10
    told = np.where(np.arange(len(true)) % 5 < 3, poisoned, true)  # 60 %
    for rule in ("max_drop", "not_worse", "better"):
        assert decide(poisoned, true, told, 10, ReleaseSettings(rule=rule)).released
        assert not decide(poisoned, true, true, 10, ReleaseSettings(rule=rule)).released


def test_what_old_classes_lose_is_told_and_may_refuse():
    old, new = [(60, 30, 10, 28), (64, 0, 0, 64)], (0, 0, 128, 0)
    told = verdict(*old, new, known=2)
    assert told.released
    assert told.old_class_drop == pytest.approx(20 / 128 / 2)
    assert told.negative_flip_rate == pytest.approx(30 / 384)
    assert (told.both_right, told.only_last_right, told.only_candidate_right) == (124, 30, 138)
    assert verdict(*old, new, known=2, max_old_class_drop=0.08).released
    for rule in ("max_drop", "not_worse", "better"):
        decision = verdict(*old, new, known=2, rule=rule, max_old_class_drop=0.07)
        assert not decision.released
        assert (
            decision.reason == "mean recall over the classes that the last release knows fell by 0.0781, more than 0.07"
        )


def test_without_samples_of_old_classes_nothing_can_be_lost_there():
    decision = verdict(of_128(64, 0), known=0, max_old_class_drop=0)
    assert decision.released
    assert decision.old_class_drop is None
