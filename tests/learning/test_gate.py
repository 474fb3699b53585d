import pytest

from stream_learner.config import ReleaseSettings
from stream_learner.learning.gate import decide
from stream_learner.records.manifest import Decision
from stream_learner.records.window import Accuracy, accuracy


def scored(*recalls: float, samples: int = 128) -> Accuracy:
    """Validation samples shared out evenly between classes of these recalls (multiples of 1/64)."""
    each = samples // len(recalls)
    return accuracy([(f"class {i}", round(r * each), each) for i, r in enumerate(recalls)])


def verdict(candidate: Accuracy, last: Accuracy | None, max_drop: float = 0.25, min_held_out: int = 100) -> Decision:
    return decide(candidate, last, ReleaseSettings(max_drop=max_drop, min_held_out=min_held_out))


@pytest.mark.parametrize(
    ("candidate", "last", "released"),
    [
        (0.75, 0.5, True),
        (0.5, 0.5, True),
        (0.375, 0.5, True),
        (0.25, 0.5, True),  # the drop itself is allowed
        (0.25 - 1 / 64, 0.5, False),
        (0.0, 0.5, False),
        (0.0, 0.25, True),
        (0.0, 0.0, True),
    ],
)
def test_a_candidate_may_lack_max_drop_and_no_more(candidate, last, released):
    decision = verdict(scored(candidate), scored(last))
    assert (decision.released, decision.abstained) == (released, False)
    assert (decision.candidate, decision.last, decision.samples) == (candidate, last, 128)
    assert decision.reason == (f"mean recall {candidate:.4f} {'reaches' if released else 'is below'} {last:.4f} - 0.25")


def test_without_an_allowance_the_candidate_must_be_as_good():
    assert verdict(scored(0.5), scored(0.5), max_drop=0).released
    assert not verdict(scored(0.5 - 1 / 64), scored(0.5), max_drop=0).released


def test_it_abstains_when_nothing_was_released_before():
    decision = verdict(scored(0.0), None)
    assert (decision.released, decision.abstained, decision.last) == (True, True, None)
    assert decision.reason == "nothing was released before"


@pytest.mark.parametrize(("samples", "abstained"), [(99, True), (100, False), (101, False)])
def test_it_abstains_with_too_few_samples(samples, abstained):
    decision = verdict(scored(0.0, samples=samples), scored(1.0, samples=samples))
    assert (decision.released, decision.abstained, decision.samples) == (abstained, abstained, samples)
    if abstained:
        assert decision.reason == "99 validation samples are too few to compare"


def test_it_abstains_without_any_samples():
    decision = verdict(accuracy([]), accuracy([]))
    assert (decision.released, decision.abstained, decision.candidate, decision.last) == (True, True, None, None)
    assert verdict(accuracy([]), accuracy([]), min_held_out=0).released


def test_classes_count_alike_however_many_samples_they_have():
    many_of_one = accuracy([("common", 900, 1000), ("rare", 0, 10)])
    balanced = accuracy([("common", 600, 1000), ("rare", 6, 10)])
    assert not verdict(many_of_one, balanced, max_drop=0.1).released
    assert verdict(balanced, many_of_one, max_drop=0.1).released


def test_a_class_that_the_last_release_does_not_know_counts_as_missed_by_it():
    candidate, last = scored(0.5, 0.5), scored(1.0, 0.0)
    assert verdict(candidate, last, max_drop=0).released
