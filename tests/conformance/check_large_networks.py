"""The contract of `stream_learner.testing`, for networks that take longer than `make test` may.

`make test` does not collect this file. `make conformance` runs it.
"""

import pytest

from stream_learner.registry import MODELS
from stream_learner.testing import check_model

SIDE = 33
"""Pixels of the smallest images that these networks can learn."""


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_network(name: str) -> None:
    check_model(MODELS[name], height=SIDE, width=SIDE, channels=1)
