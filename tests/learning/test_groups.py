import numpy as np
import pytest

from stream_learner.learning.groups import few_groups_share


@pytest.mark.parametrize(
    ("sizes", "share"),
    [
        ([100], 1.0),
        ([99], None),  # too few to tell
        ([1] * 100, None),
        ([6] * 10 + [1] * 40, 0.6),
        ([5] * 10 + [1] * 50, None),  # half is not most of it
        ([1] * 44 + [50, 6], 0.64),
    ],
)
def test_few_groups_are_ten_that_hold_more_than_half(sizes, share):
    groups = np.repeat(np.arange(len(sizes)), sizes)
    assert few_groups_share(np.random.default_rng(0).permutation(groups)) == share
