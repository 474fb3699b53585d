"""A producer that sends ever more wrong labels gets no worse model released.

Worse is judged on a clean test set that the worker never sees. The strategy has no memory, so that it learns
whatever it is told last.
"""

import pytest
from poison import GUARDS, Outcome, learn, overrides_for, served, worst_release

from stream_learner import config
from stream_learner.local.datasets import open_dataset

SEED = 1
DIGITS = open_dataset(None)
# A test set of 359 images cannot tell less.
NOISE = 0.03


def outcomes(guard: str) -> list[Outcome]:
    rest = ["learning.strategy=finetune", "learning.device=cpu", "learning.threads=1", *GUARDS[guard]]
    return list(learn(config.load(None, overrides_for(DIGITS, SEED) + rest), DIGITS, SEED))


@pytest.fixture(scope="module")
def unguarded() -> list[Outcome]:
    return outcomes("no gate")


def test_without_the_gate_the_poison_is_released(unguarded):
    assert served(unguarded, flipped=0.0) > 0.85
    assert served(unguarded, flipped=0.6) < 0.75


@pytest.mark.parametrize("guard", ["max_drop", "better", "max_drop, trusted"])
def test_the_gate_keeps_it_from_being_released(guard, unguarded):
    guarded = outcomes(guard)
    before = served(guarded, flipped=0.0)
    # Of the run without a guard: going back to a release keeps those of this one from getting as bad.
    candidates = [outcome.accuracy for outcome in unguarded if outcome.flipped]
    worst = worst_release(guarded)
    assert before > 0.8
    assert min(candidates) < before - 0.1
    assert worst is None or worst >= before - NOISE
