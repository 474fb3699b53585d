"""Random variants of images: a registry from name to function. Each takes and gives uint8 [N, H, W, C], and draws from
torch's generator."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Augmentation = Callable[[Tensor], Tensor]


def crop(images_NHWC: Tensor) -> Tensor:
    """Moves each image by up to an eighth of its size; what comes in from outside is black (He et al. 2016, section
    4.2)."""
    n, height, width, _ = images_NHWC.shape
    up, left = height // 8, width // 8
    padded = F.pad(images_NHWC, (0, 0, left, left, up, up))
    rows = torch.randint(2 * up + 1, (n, 1), device=images_NHWC.device) + torch.arange(height, device=padded.device)
    columns = torch.randint(2 * left + 1, (n, 1), device=images_NHWC.device) + torch.arange(width, device=padded.device)
    which = torch.arange(n, device=padded.device)
    return padded[which[:, None, None], rows[:, :, None], columns[:, None, :]]


def flip(images_NHWC: Tensor) -> Tensor:
    """Mirrors each image left to right with probability 1/2."""
    mirrored = torch.rand(len(images_NHWC), 1, 1, 1, device=images_NHWC.device) < 0.5
    return torch.where(mirrored, images_NHWC.flip(2), images_NHWC)


AUGMENTATIONS: dict[str, Augmentation] = {"crop": crop, "flip": flip}
