"""Compare two computations of the same network."""

import numpy as np

TOLERANCE = 1e-4
"""Largest allowed difference between two logits, as a share of the range of the expected logits."""


# Logits below this belong to retired outputs, whose bias is -1e30 (docs/topics.md).
SILENT = -1e20


def disagreement(logits: np.ndarray, expected: np.ndarray, tolerance: float = TOLERANCE) -> str | None:
    """Describe how logits differ from the expected logits, both float32 [N, classes]. Return None when they agree.

    The logits agree when no difference exceeds a bound and all predictions are equal. The bound is `tolerance` times
    the range of the expected logits and 0, without the logits of retired outputs. Two predictions also count as equal
    when their expected logits differ by at most the bound.
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
