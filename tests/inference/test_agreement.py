"""Whether two computations of the same network agree."""

import numpy as np
import pytest

from stream_learner.inference.agreement import disagreement

EXPECTED = np.array([[0.0, 10.0, 9.9999], [5.0, 1.0, 2.0]], np.float32)


def changed(row: int, column: int, value: float) -> np.ndarray:
    logits = EXPECTED.copy()
    logits[row, column] = value
    return logits


@pytest.mark.parametrize("logits", [EXPECTED, changed(0, 2, 10.0005), changed(1, 0, 4.9995)])
def test_small_differences_and_ties(logits: np.ndarray) -> None:
    assert disagreement(logits, EXPECTED) is None


@pytest.mark.parametrize("logits", [changed(1, 0, 4.99), changed(1, 1, np.nan), changed(0, 0, np.inf), EXPECTED[:1]])
def test_differences(logits: np.ndarray) -> None:
    assert disagreement(logits, EXPECTED)


def test_no_images() -> None:
    assert disagreement(EXPECTED[:0], EXPECTED[:0]) is None


def test_logits_that_are_all_equal() -> None:
    equal = np.ones((2, 3), np.float32)
    assert disagreement(equal, equal) is None
    assert disagreement(equal * 1.01, equal)


def test_a_retired_output_hides_no_difference() -> None:
    expected = np.append(EXPECTED, np.full((2, 1), -1e30, np.float32), axis=1)
    assert disagreement(expected, expected) is None
    for row, column, value in ((1, 1, 1.1), (1, 3, 0.0)):
        logits = expected.copy()
        logits[row, column] = value
        assert disagreement(logits, expected)
