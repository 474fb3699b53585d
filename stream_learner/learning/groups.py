"""Groups of samples that resemble one another, in a held-out set."""

import numpy as np

LARGEST = 10
LEAST_SAMPLES = 100


def few_groups_share(groups: np.ndarray) -> float | None:
    """Return the share (0..1) of the samples in the 10 largest groups if that is more than half.

    `groups` has the group of each sample, int64 [N]. None below 100 samples. Figures on samples of so few groups say
    little about others.
    """
    if len(groups) < LEAST_SAMPLES:
        return None
    _, sizes = np.unique(groups, return_counts=True)
    share = float(np.sort(sizes)[-LARGEST:].sum() / len(groups))
    return share if share > 0.5 else None
