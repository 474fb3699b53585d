"""`check_augmentation` refuses augmentations that break their contract, and says why."""

import numpy as np
import pytest
import torch
from torch import Tensor

from stream_learner.learning.augmentation import flip
from stream_learner.registry import AUGMENTATIONS
from stream_learner.testing import check_augmentation


def as_floats(images_NHWC: Tensor) -> Tensor:
    return flip(images_NHWC) / 255


def transposed(images_NHWC: Tensor) -> Tensor:
    return flip(images_NHWC).transpose(1, 2)


def in_place(images_NHWC: Tensor) -> Tensor:
    images_NHWC[torch.rand(len(images_NHWC)) < 0.5] = 0
    return images_NHWC


def from_numpy(images_NHWC: Tensor) -> Tensor:
    return images_NHWC.flip(2) if np.random.default_rng().random() < 0.5 else images_NHWC


def always(images_NHWC: Tensor) -> Tensor:
    return 255 - images_NHWC


def seeding(images_NHWC: Tensor) -> Tensor:
    found = flip(images_NHWC)
    torch.manual_seed(0)
    return found


def brightest(images_NHWC: Tensor) -> Tensor:
    return (flip(images_NHWC).float() * (255 / images_NHWC.max())).byte()


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (as_floats, r"it returned torch.float32 \[0, 32, 24, 3\] on cpu; keep the shape, the type and the device"),
        (transposed, r"it returned torch.uint8 \[0, 24, 32, 3\] on cpu; keep the shape, the type and the device"),
        (in_place, "it changes the images that it gets; return changed copies"),
        (from_numpy, "it gives other images for the same seed; draw only from torch's default generator"),
        (always, "it gives the same images for 10 seeds"),
        (seeding, "it seeds torch's default generator"),
        (brightest, r"a call with images uint8 \[0, 32, 24, 3\] raised"),
    ],
)
def test_it_is_refused(wrong, why):
    with pytest.raises(AssertionError, match=f"(?s)^{wrong.__name__}: .*{why}"):
        check_augmentation(wrong)


def test_the_check_does_not_depend_on_the_environment(monkeypatch):
    monkeypatch.setenv("STREAM_LEARNER_MODEL__NAME", "cnn")
    monkeypatch.setenv("STREAM_LEARNER_LEARNING__OPTIMIZER", "no such optimizer")
    check_augmentation(flip)


def test_the_check_leaves_no_trace():
    before, names = torch.get_rng_state(), {*AUGMENTATIONS}
    check_augmentation(flip)
    with pytest.raises(AssertionError):
        check_augmentation(always)
    assert torch.equal(torch.get_rng_state(), before)
    assert {*AUGMENTATIONS} == names
