"""The check of augmentations."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from stream_learner.registry import AUGMENTATIONS
from stream_learner.testing.checking import Checking, registered, same
from stream_learner.testing.small_run import check_in_a_learner, small_settings

SEEDS = 10


def check_augmentation(
    augmentation: Callable[[Tensor], Tensor], *, height: int = 32, width: int = 24, channels: Literal[1, 3] = 3
) -> None:
    """Check an augmentation, given by its function, on images of one size.

    The augmentation maps uint8 images [N, H, W, C] to new images of the same shape and type, also for N = 0. It changes
    images at random, draws only from torch's default generator, and does not seed this generator. It leaves its
    argument unchanged. The check also saves and resumes a Learner that uses the augmentation. Raises AssertionError.
    """
    check = Checking(augmentation)
    with torch.random.fork_rng(devices=[]):
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(1, 256, (32, height, width, channels), dtype=torch.uint8, generator=generator)

        def varied(images_NHWC: Tensor, seed: int) -> Tensor:
            torch.manual_seed(seed)
            before = images_NHWC.clone()
            what = f"images uint8 {list(images_NHWC.shape)}"
            found = check.call(f"a call with {what}", lambda: augmentation(images_NHWC))
            check.that(isinstance(found, Tensor), f"for {what} it returned {type(found).__name__}, not a tensor")
            fits = (found.shape, found.dtype, found.device) == (before.shape, before.dtype, before.device)
            returned = f"it returned {found.dtype} {list(found.shape)} on {found.device}"
            check.that(fits, f"for {what} {returned}; keep the shape, the type and the device")
            check.that(same(images_NHWC, before), "it changes the images that it gets; return changed copies")
            return found.clone()

        for count in (0, 1):
            varied(images[:count], seed=0)
        by_seed, states = [], []
        for seed in range(SEEDS):
            by_seed.append(varied(images, seed))
            states.append(torch.get_rng_state())
        again = [varied(images, seed) for seed in range(SEEDS)]
        check.that(
            all(map(same, by_seed, again)),
            "it gives other images for the same seed; draw only from torch's default generator, and use no clock",
        )
        check.that(
            not all(same(by_seed[0], other) for other in by_seed[1:]),
            f"it gives the same images for {SEEDS} seeds of torch's default generator; draw from this generator",
        )
        check.that(
            not same(states[0], states[1]),
            "it seeds torch's default generator, so that all draws after it repeat; do not call torch.manual_seed()",
        )
        with registered(AUGMENTATIONS, augmentation) as name:
            model = {"height": height, "width": width, "channels": channels}
            check_in_a_learner(check, small_settings(model=model | {"name": "mlp"}, learning={"augment": [name]}))
