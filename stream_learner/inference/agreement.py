"""Whether two computations of the same network agree."""

import numpy as np

TOLERANCE = 1e-4
"""Largest difference of two logits, as a share of the spread of all logits."""


# Logits below this belong to retired outputs, whose bias is -1e30 (docs/topics.md).
SILENT = -1e20


def disagreement(logits: np.ndarray, expected: np.ndarray, tolerance: float = TOLERANCE) -> str | None:
    """Return how logits differ from the expected ones, both float32 [N, classes], or None when they agree.

    They agree when they differ by at most `tolerance` of the spread of the expected logits and 0, without those of
    retired outputs, and the predictions are equal. Two predictions whose expected logits are that close count as equal.
    """
    if logits.shape != expected.shape:
        return f"the logits are {list(logits.shape)}, not {list(expected.shape)}"
    heard = expected > SILENT
    if not expected.size or not heard.any():
        return None
    if (logits[~heard] > SILENT).any():
        return "a retired output is not silent"
    bound = tolerance * float(np.ptp(np.append(expected[heard], 0)))
    worst = float(np.abs(logits[heard] - expected[heard]).max())
    if not worst <= bound:  # NaN is not within the bound either
        return f"a logit differs by {worst:.3g}, more than {bound:.3g}"
    rows = np.arange(len(expected))
    lost = expected.max(1) - expected[rows, logits.argmax(1)]
    if wrong := int((lost > bound).sum()):
        return f"{wrong} of {len(expected)} predictions differ"
    return None
