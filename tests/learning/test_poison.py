"""A producer that sends more and more wrong labels cannot cause the release of a worse model.

Models are compared on a clean test set of 359 images that the worker never sees. Its accuracy is precise to a few
points, so the mean over seeds is compared. The strategy has no memory, so that the last labels have the most effect.
The long form, with all guards and any seed, is `python benchmarks/poison.py`.
"""

import numpy as np
import pytest
from poison import GUARDS, Outcome, learn, overrides_for, served, worst_release

from stream_learner import config
from stream_learner.local.datasets import open_dataset

SEEDS = (2, 3)
DIGITS = open_dataset(None)
NOISE = 0.04


def outcomes(guard: str, seed: int) -> list[Outcome]:
    rest = ["learning.strategy=finetune", "learning.device=cpu", "learning.threads=1", *GUARDS[guard]]
    return list(learn(config.load(None, overrides_for(DIGITS, seed) + rest), DIGITS, seed))


def fall(outcomes: list[Outcome]) -> float:
    """From what was served before the first flip to the worst that was released since, if that is worse."""
    worst = worst_release(outcomes)
    return 0.0 if worst is None else max(0.0, served(outcomes, flipped=0.0) - worst)


def test_without_the_gate_the_poison_is_released() -> None:
    unguarded = [outcomes("no gate", seed) for seed in SEEDS]
    assert np.mean([served(run, flipped=0.0) for run in unguarded]) > 0.8
    assert all(outcome.released for run in unguarded for outcome in run)
    assert np.mean([fall(run) for run in unguarded]) > 0.15


@pytest.mark.parametrize("guard", ["max_drop", "max_drop, trusted"])
def test_the_gate_keeps_it_from_being_released(guard):
    runs = [outcomes(guard, seed) for seed in SEEDS]
    assert np.mean([served(run, flipped=0.0) for run in runs]) > 0.8
    assert all(any(outcome.released for outcome in run[1:]) for run in runs)
    assert any(outcome.released for run in runs for outcome in run if outcome.flipped)  # what is good may pass
    assert np.mean([fall(run) for run in runs]) < NOISE
    assert np.mean([served(run, flipped=0.6) for run in runs]) > 0.8
