"""Each weight policy, compared with plain arithmetic, and several together."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from digit_stream import TARGETS
from pydantic import ValidationError
from weight_arrivals import HALF, NOW_MS, NOW_S, arrivals

from stream_learner.config import WeightsSettings
from stream_learner.learning.weighting import Policy, Times, Weights
from stream_learner.learning.weighting.policies import FADE
from stream_learner.learning.weighting.weights import CLOCK
from stream_learner.registry import WEIGHTS

HOUR_MS = 3_600_000


def policy(name: str, **chosen: Any) -> Policy:
    return WEIGHTS[name](WeightsSettings(**chosen))


def test_record_is_the_records_weight_up_to_the_most_allowed():
    factors = policy("record", max_weight=4.0).factors(arrivals([0, 1, 1, 0], record_weights=[0.0, 0.5, 4.0, 1e300]))
    assert factors.tolist() == [0, 0.5, 4, 4]


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999, 0.9999999])
def test_class_balance_is_the_inverse_effective_number_of_all_seen_so_far(beta):
    balance, seen = policy("class_balance", class_balance_beta=beta), Counter()
    for first in range(0, 300, 20):
        labels = [label * label // 9 for label in TARGETS[first : first + 20].tolist()]  # some are rare, 8 appears late
        seen.update(labels)
        effective = {label: sum(beta**i for i in range(n)) for label, n in seen.items()}
        scale = seen.total() / sum(n / effective[label] for label, n in seen.items())
        wanted = [scale / effective[label] for label in labels]
        assert balance.factors(arrivals(labels)).tolist() == pytest.approx(wanted)


def test_class_balance_has_the_mean_1_and_makes_classes_equal():
    balance, labels = policy("class_balance", class_balance_beta=1 - 1e-9), [0] * 100 + [1] * 5
    factors = balance.factors(arrivals(labels))
    assert factors.mean() == pytest.approx(1)
    assert factors[:100].sum() == pytest.approx(factors[100:].sum(), rel=1e-4)


def test_recency_halves_with_each_half_life_of_event_time():
    weights = Weights(WeightsSettings(policies=["recency"], half_life_s=3600))
    ages_h = [0, 1, 0, 2, 0.5, 0, 0, 0, 0, -3]  # the last is of the future
    times = [NOW_MS - int(age * HOUR_MS) for age in ages_h]
    expected = [2 ** -max(age, 0) for age in ages_h]
    assert weights.weigh(arrivals([0] * 10, timestamps_ms=times)).now.tolist() == pytest.approx(expected)
    weights.weigh(arrivals([0] * 101, timestamps_ms=[NOW_MS + HOUR_MS] * 101))
    faded = weights.replayed(np.ones(4), Times(np.zeros(4, np.int64), np.array(times[:4])))
    assert faded.tolist() == pytest.approx([2 ** -(age + 1) for age in ages_h[:4]])


YEAR_2099_MS = 4_070_908_800_000


@pytest.mark.parametrize("wrong", [YEAR_2099_MS, -1, 0, NOW_S, -6_800_000_000_000, 2**62])
def test_one_wrong_clock_changes_nothing_for_others(wrong):
    """The good records of a second have one timestamp, and a wrong one stands among them."""
    chosen = WeightsSettings(policies=["recency"], half_life_s=60)
    undisturbed, disturbed = Weights(chosen), Weights(chosen)
    for second in range(20):
        good = [NOW_MS + 1000 * second] * 30 + [NOW_MS + 1000 * second - 30_000] * 2
        found = undisturbed.weigh(arrivals([0] * 32, timestamps_ms=good))
        mixed = [*good[:7], wrong, *good[7:]] if second == 5 else good
        weighed = disturbed.weigh(arrivals([0] * len(mixed), timestamps_ms=mixed)).now.tolist()
        if second == 5:
            assert weighed.pop(7) == 1  # neither late nor ahead of its time
        assert weighed == found.now.tolist()
        old = Times(np.zeros(2, np.int64), np.array([NOW_MS, wrong if wrong == YEAR_2099_MS else NOW_MS]))
        assert disturbed.replayed(np.ones(2), old)[0] == undisturbed.replayed(np.ones(2), old)[0]
        assert min(found.now) < 0.8


def test_an_unknown_time_is_that_of_its_arrival():
    weights = Weights(WeightsSettings(policies=["recency"], half_life_s=60))
    first = weights.weigh(arrivals([0, 0], timestamps_ms=[-1, NOW_S]))
    assert first.timestamps_ms.tolist() == [0, 0]  # nobody knows
    weights.weigh(arrivals([0] * 5, timestamps_ms=[NOW_MS] * 5))
    later = weights.weigh(arrivals([0, 0], timestamps_ms=[-1, NOW_MS - 60_000]))
    assert later.timestamps_ms.tolist() == [NOW_MS, NOW_MS - 60_000]
    assert later.now.tolist() == [1, 0.5]


def test_recency_in_records_fades_in_the_memory_alone():
    recency = policy("recency", half_life_records=100)
    for admitted in (0, 50, 300):
        assert recency.factors(arrivals([0], admitted=[admitted], timestamps_ms=[-admitted])).tolist() == [1]
    faded = recency.replayed(Times(np.array([0, 100, 250, 300]), np.zeros(4, np.int64)))
    assert faded.tolist() == [2**-3, 2**-2, 2**-0.5, 1]


@pytest.mark.parametrize("chosen", [{}, {"half_life_records": 10, "half_life_s": 10}])
def test_recency_needs_one_half_life(chosen):
    with pytest.raises(ValidationError, match="recency needs either half_life_records or half_life_s"):
        WeightsSettings(policies=["recency"], **chosen)


def test_novelty_is_what_the_release_lacks():
    factors = policy("novelty").factors(arrivals([0, 1, 2], released=[0.0, 0.25, 1.0], probabilities=[0.9] * 3))
    assert factors.tolist() == [1, 0.75, 0]


def test_hardness_is_the_loss_over_its_fading_mean():
    hardness, seen = policy("hardness", max_weight=3.0), []
    rng = np.random.default_rng(0)
    for size in (1, 8, 32, 200, 32):
        probabilities = rng.uniform(0.01, 1, size).astype(np.float32)
        losses = [-math.log(p) for p in probabilities.tolist()]
        seen = [(loss, weight * FADE**size) for loss, weight in seen] + [(loss, 1.0) for loss in losses]
        mean = sum(loss * weight for loss, weight in seen) / sum(weight for _, weight in seen)
        wanted = [min(loss / mean, 3.0) for loss in losses]
        assert hardness.factors(arrivals([0] * size, probabilities=probabilities)).tolist() == pytest.approx(wanted)


def test_hardness_is_finite_whatever_the_model_says():
    assert policy("hardness").factors(arrivals([0, 0], probabilities=[1, 1])).tolist() == [1, 1]
    assert policy("hardness").factors(arrivals([0, 0], probabilities=[0, 1])).tolist() == [2, 0]


def test_factors_are_multiplied_and_clipped_and_those_of_the_moment_are_not_kept():
    weights = Weights(WeightsSettings(policies=["record", "recency", HALF], half_life_s=1, max_weight=2.0))
    times = [NOW_MS, NOW_MS + 1000, NOW_MS + 1000]
    weighed = weights.weigh(arrivals([0, 1, 2], record_weights=[1.0, 0.0, 8.0], timestamps_ms=times))
    assert weighed.now.tolist() == [0.25, 0, 1]
    assert weighed.stored.tolist() == [0.5, 0, 1]
    assert weighed.factors == {
        "record": [1, 0, 2],
        "recency": [0.5, 1, 1],
        HALF: [0.5, 0.5, 0.5],
        "combined": [0.25, 0, 1],
    }
    replayed = weights.replayed(np.array([0.5, 2.0], np.float32), Times(np.zeros(2, np.int64), np.array(times[:2])))
    assert replayed.tolist() == [0.25, 2]
    assert weighed.now.dtype == weighed.stored.dtype == replayed.dtype == np.float32


def test_without_policies_every_weight_is_1():
    weighed = Weights(WeightsSettings(policies=[])).weigh(arrivals([0, 1], record_weights=[0.0, 9.0]))
    assert weighed.now.tolist() == weighed.stored.tolist() == [1, 1]


def test_a_policy_named_twice_is_refused():
    with pytest.raises(ValidationError, match="policies must not repeat a name"):
        WeightsSettings(policies=["record", "novelty", "record"])


@pytest.mark.parametrize(
    "forged",
    [
        {CLOCK: [2**70]},
        {CLOCK: [-1]},
        {CLOCK: [NOW_S]},
        {CLOCK: [NOW_MS] * 102},
        {CLOCK: "now"},
        {"recency": {"admitted": "now"}},
        {"recency": {"admitted": -1}},
        {"recency": {"admitted": 2**70}},
    ],
    ids=str,
)
def test_a_clock_that_cannot_be_is_refused(forged):
    weights = Weights(WeightsSettings(policies=["recency"], half_life_s=1))
    weights.weigh(arrivals([0], timestamps_ms=[NOW_MS]))
    before = weights.state_dict()
    with pytest.raises(ValueError, match=next(iter(forged))):
        weights.load_state_dict(before | forged)
