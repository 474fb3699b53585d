"""Arrivals and policies for tests of sample weights."""

from typing import Any

import numpy as np

from stream_learner.learning.weighting import Arrivals, Policy, Times

NOW_S = 1_700_000_000
NOW_MS = 1000 * NOW_S


def arrivals(labels: list[int], **others: Any) -> Arrivals:
    n = len(labels)
    given = {
        "record_weights": np.ones(n),
        "admitted": np.zeros(n, np.int64),
        "timestamps_ms": np.zeros(n, np.int64),
        "probabilities": np.full(n, 0.5, np.float32),
        "released": np.zeros(n, np.float32),
    } | {name: np.asarray(values) for name, values in others.items()}
    return Arrivals(
        given["record_weights"],
        np.array(labels, np.int64),
        Times(given["admitted"], given["timestamps_ms"]),
        lambda: given["probabilities"].astype(np.float32),
        lambda: given["released"].astype(np.float32),
    )


class Half(Policy):
    """A policy of a user's own."""

    stored = True

    def factors(self, arrivals: Arrivals) -> np.ndarray:
        return np.full(len(arrivals.labels), 0.5)


HALF = f"{__name__}:Half"
