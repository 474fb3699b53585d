"""Random changes of images. Each function takes and returns uint8 [N, H, W, C], and draws from torch's generator."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Augmentation = Callable[[Tensor], Tensor]


def crop(images_NHWC: Tensor) -> Tensor:
    """Shift each image by up to an eighth of its size (He et al. 2016, section 4.2). New borders are black."""
    n, height, width, channels = images_NHWC.shape
    up, left = height // 8, width // 8
    padded = F.pad(images_NHWC, (0, 0, left, left, up, up)).contiguous()
    tops = torch.randint(2 * up + 1, (n,), device=padded.device)
    lefts = torch.randint(2 * left + 1, (n,), device=padded.device)
    # A view of all places of the window, [N, tops, lefts, H, W * C]. Whole rows are copied from it, not single pixels.
    image, row, pixel, _ = padded.stride()
    windows = padded.as_strided((n, 2 * up + 1, 2 * left + 1, height, width * channels), (image, row, pixel, row, 1))
    return windows[torch.arange(n, device=padded.device), tops, lefts].view(images_NHWC.shape)


def flip(images_NHWC: Tensor) -> Tensor:
    """Mirror each image left to right with probability 1/2."""
    mirrored = torch.rand(len(images_NHWC), 1, 1, 1, device=images_NHWC.device) < 0.5
    return torch.where(mirrored, images_NHWC.flip(2), images_NHWC)


def color_jitter(images_NHWC: Tensor) -> Tensor:
    """Change contrast, saturation and brightness of each image by up to 40 % each (Howard 2013).

    arXiv:1312.5402.
    """
    contrast, saturation, brightness = 0.6 + 0.8 * torch.rand(3, len(images_NHWC), 1, 1, 1, device=images_NHWC.device)
    pixels = images_NHWC.float()
    pixels = torch.lerp(pixels.mean((1, 2, 3), keepdim=True), pixels, contrast)
    pixels = torch.lerp(pixels.mean(3, keepdim=True), pixels, saturation)
    return (pixels * brightness).clamp(0, 255).byte()


def cutout(images_NHWC: Tensor) -> Tensor:
    """Blacken a rectangle with half of each image's height and width at a random centre, with probability 1/2.

    DeVries and Taylor 2017 (arXiv:1708.04552).
    """
    n, height, width, _ = images_NHWC.shape
    device = images_NHWC.device
    top = torch.randint(height, (n, 1, 1), device=device) - height // 4
    left = torch.randint(width, (n, 1, 1), device=device) - width // 4
    rows, columns = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)
    inside = (rows >= top) & (rows < top + height // 2) & (columns >= left) & (columns < left + width // 2)
    chosen = torch.rand(n, 1, 1, device=device) < 0.5
    return images_NHWC.masked_fill((inside & chosen)[..., None], 0)
