import torch

from stream_learner.learning.augmentation import color_jitter, crop, cutout, flip

IMAGES = torch.randint(1, 256, (64, 12, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
"""None of their pixels is black."""


def test_crop_moves_an_image_and_fills_with_black():
    torch.manual_seed(0)
    for image, cropped in zip(IMAGES, crop(IMAGES), strict=True):
        padded = torch.nn.functional.pad(image, (0, 0, 1, 1, 1, 1))
        windows = [padded[y : y + 12, x : x + 8] for y in range(3) for x in range(3)]
        assert any(torch.equal(cropped, window) for window in windows)


def test_flip_mirrors_half_of_the_images():
    torch.manual_seed(0)
    found = flip(IMAGES)
    mirrored = [torch.equal(a, b.flip(1)) for a, b in zip(found, IMAGES, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(found, IMAGES, strict=True)]
    assert sum(mirrored) + sum(same) == len(IMAGES)
    assert 20 < sum(mirrored) < 44


def test_color_jitter_changes_how_light_and_how_colorful_an_image_is():
    grey = torch.full((1000, 2, 2, 3), 100, dtype=torch.uint8)
    torch.manual_seed(0)
    found = color_jitter(grey)
    assert (found == found[:, :1, :1, :1]).all()  # one grey is another, without contrast or color
    assert 60 <= found.min() < 65
    assert 135 < found.max() <= 140
    red_and_black = torch.tensor([[200, 0, 0], [0, 0, 0]], dtype=torch.uint8).expand(1000, 1, 2, 3)
    torch.manual_seed(0)
    saturation = color_jitter(red_and_black)[:, 0, 0].float()
    saturation = (saturation[:, 0] - saturation[:, 1]) / saturation.sum(1)
    assert saturation.std() > 0.05


def test_cutout_blackens_a_rectangle_of_half_of_the_images():
    torch.manual_seed(0)
    found = cutout(IMAGES)
    black = (found == 0).all(3)
    assert torch.equal(found[~black], IMAGES[~black])
    cut = black.flatten(1).any(1)
    assert 20 < cut.sum() < 44
    for mask in black[cut]:
        height, width = int(mask.any(1).sum()), int(mask.any(0).sum())
        assert mask.sum() == height * width
        assert 3 <= height <= 6  # at least half of it, where it begins or ends outside
        assert 2 <= width <= 4
