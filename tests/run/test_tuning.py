"""The choice of settings by their measured speeds, and the settings file that follows from it."""

import tomllib

import pytest

from stream_learner.run.tuning import Choice, Comparison, fragment, thread_counts

NOW = Choice(2, "fp32", False)
BF16, LAST, BOTH = NOW._replace(precision="bf16"), NOW._replace(channels_last=True), Choice(2, "bf16", True)
STEADY = [100.0, 101.0, 99.0, 100.0, 100.0]


def times(factor: float, rates: list[float] = STEADY) -> list[float]:
    return [factor * rate for rate in rates]


def test_the_fastest_wins():
    assert Comparison(NOW, {NOW: STEADY, BF16: times(1.2), BOTH: times(1.5)}).winner == BOTH


def test_a_gain_within_the_spread_changes_nothing():
    noisy = [90.0, 140.0, 95.0, 120.0, 110.0]
    assert Comparison(NOW, {NOW: STEADY, BOTH: noisy}).winner == NOW


def test_a_large_gain_may_spread_widely():
    assert Comparison(NOW, {NOW: STEADY, BOTH: [725.0, 521.0, 1164.0, 600.0, 900.0]}).winner == BOTH


def test_noise_that_all_share_in_a_round_is_no_spread():
    busy = [100.0, 50.0, 90.0, 40.0, 100.0]
    assert Comparison(NOW, {NOW: busy, BOTH: times(1.1, busy)}).winner == BOTH


def test_a_change_that_adds_nothing_is_left_out():
    with_noise = [151.0, 149.0, 153.0, 148.0, 150.0]
    assert Comparison(NOW, {NOW: STEADY, BOTH: with_noise, BF16: times(1.5), LAST: times(0.9)}).winner == BF16


@pytest.mark.parametrize(("cores", "counts"), [(1, {1}), (2, {1, 2}), (6, {1, 2, 4, 6}), (8, {1, 2, 4, 8})])
def test_thread_counts(cores: int, counts: set[int]):
    assert thread_counts(cores) == counts


def test_the_fragment_holds_what_changes():
    layouts = Comparison(NOW, {NOW: STEADY, BOTH: times(1.5)})
    one = BOTH._replace(threads=1)
    found = fragment([layouts, Comparison(BOTH, {BOTH: STEADY, one: times(1.1)})])
    assert tomllib.loads(found) == {"learning": {"precision": "bf16", "channels_last": True, "threads": 1}}
    assert "threads = 1  # 1.10 (1.10-1.10) times" in found
    assert tomllib.loads(fragment([Comparison(NOW, {NOW: STEADY})])) == {"learning": {}}
