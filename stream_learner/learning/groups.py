"""Groups of similar samples in a held-out set."""

import numpy as np

LARGEST = 10
LEAST_SAMPLES = 100


def few_groups_share(groups: np.ndarray) -> float | None:
    """Return the share (0..1) of the samples in the 10 largest groups if it is more than half, else None.

    `groups` is the group of each sample, int64 [N]. With fewer than 100 samples, the result is None too. Scores on
    samples of few groups say little about other groups.
    """
    if len(groups) < LEAST_SAMPLES:
        return None
    _, sizes = np.unique(groups, return_counts=True)
    share = float(np.sort(sizes)[-LARGEST:].sum() / len(groups))
    return share if share > 0.5 else None
