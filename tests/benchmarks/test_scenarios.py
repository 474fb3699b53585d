"""The orders in which the benchmarks feed a data set."""

import numpy as np
import pytest

from benchmarks.scenarios import FLIPPED_SHARE, LOW_WEIGHT, NOISY_SHARE, SCENARIOS, corrupted

TARGETS = np.repeat(np.arange(10), 400)


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenarios(name: str):
    train = np.arange(0, len(TARGETS), 2)
    stream = SCENARIOS[name](TARGETS, train, 5).whole_batches(32)
    assert len(stream) % 32 == 0
    assert len(stream.indices) == len(stream.labels) == len(stream.weights) == stream.ends[-1]
    assert stream.ends == sorted(stream.ends)
    assert len(set(stream.indices.tolist())) == len(stream)
    assert np.isin(stream.indices, train).all()
    assert stream.changes == (name == "drifting")
    if name != "noisy":
        assert (TARGETS[stream.indices] == stream.labels).all()
        assert (stream.weights == 1).all()


def test_noisy_records_are_the_light_ones():
    stream = SCENARIOS["noisy"](TARGETS, np.arange(len(TARGETS)), 0)
    light = stream.weights == np.float32(LOW_WEIGHT)
    wrong = stream.labels != TARGETS[stream.indices]
    assert light.mean() == pytest.approx(NOISY_SHARE, abs=0.03)
    assert wrong[light].mean() == pytest.approx(FLIPPED_SHARE, abs=0.03)
    assert not wrong[~light].any()


def test_corruption_takes_contrast_and_adds_noise():
    pixels = np.zeros((1, 32, 32, 3), np.uint8)
    pixels[:, 16:] = 200
    found = corrupted(pixels, 0)
    dark, light = found[:, :16].astype(float), found[:, 16:].astype(float)
    assert light.mean() - dark.mean() == pytest.approx(100, abs=3)
    assert light.std() == pytest.approx(255 * 0.1, abs=2)
    assert (found == corrupted(pixels, 0)).all()
    assert (found != corrupted(pixels, 1)).any()
