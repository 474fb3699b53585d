"""Every entry of a registry keeps the contract that `stream_learner.testing` checks for users."""

import numpy as np
import pytest

from stream_learner import networks
from stream_learner.config import WeightsSettings
from stream_learner.formats import arrow
from stream_learner.formats.images import png
from stream_learner.formats.record import Fields, Record
from stream_learner.registry import AUGMENTATIONS, FORMATS, HEADS, MODELS, STRATEGIES, WEIGHTS
from stream_learner.testing import (
    check_augmentation,
    check_format,
    check_head,
    check_model,
    check_strategy,
    check_weight_policy,
)

TIMM_SIDES = {"timm:test_resnet": 33, "timm:test_vit": 32}
LARGE = ("resnet18", "resnet50")
"""Networks that take a minute. `make conformance` checks them."""
IMAGE = png(np.zeros((9, 9, 3), np.uint8))
RECORD = Record(
    "images", 0, 0, 0, b"key", IMAGE, [("label", b"cat"), ("weight", b"2"), ("split", b"test"), ("id", b"7")]
)
ROWS = [Fields(IMAGE, "cat", 2.0, "test", b"7", 5), Fields(IMAGE, "dog")]
PIXELS = [Fields(np.zeros((9, 9, 3), np.uint8), 3), Fields(np.ones((9, 9, 3), np.uint8), 4)]
GOOD = {
    "plain": [RECORD],
    "arrow": [RECORD._replace(value=arrow.encode(rows)) for rows in (ROWS, PIXELS)],
}
"""Records that a format can read."""


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation(name, channels):
    check_augmentation(AUGMENTATIONS[name], channels=channels)


@pytest.mark.parametrize("name", FORMATS)
def test_format(name):
    check_format(FORMATS[name], good=GOOD[name])


@pytest.mark.parametrize("name", [name for name in HEADS if name != "linear"])
def test_head(name):
    check_head(HEADS[name])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", [name for name in MODELS if name not in LARGE])
def test_network(name, channels):
    check_model(MODELS[name], height=9, width=12, channels=channels)


@pytest.mark.parametrize("name", TIMM_SIDES)
def test_network_of_timm(name):
    check_model(networks.factory(name), height=TIMM_SIDES[name], width=TIMM_SIDES[name], channels=1)


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategy(name):
    check_strategy(STRATEGIES[name])


@pytest.mark.parametrize("name", WEIGHTS)
def test_weight_policy(name):
    check_weight_policy(WEIGHTS[name])


def test_recency_by_records():
    check_weight_policy(WEIGHTS["recency"], WeightsSettings(half_life_records=40))
