import numpy as np
import pytest

from benchmarks import scores


def point(correct: list[int], total: list[int], seen: list[bool]) -> scores.Point:
    return scores.Point(np.array(correct), np.array(total), np.array(seen))


POINTS = [
    point([8, 0, 0], [10, 10, 20], [True, False, False]),
    point([2, 9, 0], [10, 10, 20], [True, True, False]),
    point([5, 7, 20], [10, 10, 20], [True, True, True]),
]


def test_an_evaluation_counts_per_class():
    predictions, targets = np.array([0, 1, 1, 2, 9]), np.array([0, 1, 0, 2, 2])
    evaluated = scores.evaluate(predictions, targets, np.array([True, True, True, False]))
    assert evaluated.correct.tolist() == [1, 1, 1, 0]
    assert evaluated.total.tolist() == [2, 1, 2, 0]


def test_final_is_the_accuracy_at_the_end_over_all_classes():
    assert scores.summary(POINTS, POINTS)["final"] == 32 / 40
    assert scores.accuracy(POINTS[1]) == 11 / 40


def test_a_single_point_tells_the_end_only():
    assert scores.summary(POINTS[-1:], []) == {"final": 0.8, "anytime": None, "worst": None, "last_100_steps": None}


def test_anytime_is_the_mean_accuracy_on_the_classes_seen():
    assert scores.anytime(POINTS) == pytest.approx((8 / 10 + 11 / 20 + 32 / 40) / 3)


def test_worst_is_the_mean_over_classes_of_the_least_accuracy_since_they_appeared():
    assert scores.worst(POINTS) == pytest.approx((0.2 + 0.7 + 1.0) / 3)


def test_worst_leaves_out_classes_never_seen_or_without_images():
    unseen = [point([5, 0, 0], [10, 10, 0], [True, False, True])]
    assert scores.worst(unseen) == 0.5


def test_a_spread_is_the_deviation_and_the_range_of_the_accuracy():
    points = [point([correct], [10], [True]) for correct in (4, 6, 8)]
    assert scores.spread(points) == pytest.approx({"mean": 0.6, "std": 0.2, "range": 0.4})
