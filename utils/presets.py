"""What is done to images, by name: one definition of each preset, for training and evaluation.

A preset has two steps. The first is fixed: it brings a decoded image to the preset's working size,
and its result is what a cache keeps. The second takes the working image to the model's input, by a
random crop in training, from the center in evaluation. No torch here: the flags ask for the names.

Sizes are in pixels; S is the side of the model's square input.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# Area of a random crop; smaller ones lose the flower.
CROP_AREA = (0.25, 1.0)
CROP_ASPECT = (3 / 4, 4 / 3)  # of the crop's width over its height


class Size(NamedTuple):
    """Height and width, pixels."""

    height: int
    width: int


class Augmentation(NamedTuple):
    """What a preset does besides geometry; each can be set by its flag."""

    augment: str = "none"  # none, autoaugment, trivialaugment or randaugment
    random_erasing: float = 0.0  # probability
    mixup: float = 0.0  # alpha of the Beta distribution; 0: none
    cutmix: float = 0.0


@dataclass(frozen=True)
class Preset:
    """One preset: `squash` ignores the aspect ratio, otherwise the shorter side counts."""

    name: str
    about: str
    squash: bool
    augmentation: Augmentation

    def eval_side(self, img_size: int) -> int:
        """Side of the image that evaluation takes the center from."""
        if not self.squash:
            return round(img_size * 8 / 7)  # 256 for 224, as everywhere since AlexNet
        # TransFG's code: 600 for 448, but 400 for iNaturalist's 304, which is not in proportion.
        return 400 if img_size == 304 else round(img_size * 600 / 448)

    def train_side(self, img_size: int) -> int:
        """What the shorter side of a working image has at most in training; squashed: each side."""
        # Twice evaluation's side: so the smallest crops, a quarter of the area, have over S^2
        # pixels. Photographs on the web, 500 pixels a side, are left as they are for 224.
        return self.eval_side(img_size) * (1 if self.squash else 2)

    def train_size(self, img_size: int, size: Size) -> Size:
        """Working size in training, of an image of `size`."""
        side = self.train_side(img_size)
        if self.squash:
            return Size(side, side)
        return size if min(size) <= side else shorter_side_to(side, size)

    def eval_size(self, img_size: int, size: Size) -> Size:
        """Size to which evaluation brings an image of `size` before it takes the center."""
        side = self.eval_side(img_size)
        return Size(side, side) if self.squash else shorter_side_to(side, size)


def shorter_side_to(side: int, size: Size) -> Size:
    """`size` with `side` as its shorter side; the longer one is rounded down, as in `v2.Resize`."""
    height, width = size
    if height <= width:
        return Size(side, side * width // height)
    return Size(side * height // width, side)


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "transfg",
            "squash to 600x600, random crop of 448, flip (He et al. 2022, the paper's code)",
            squash=True,
            augmentation=Augmentation(),
        ),
        Preset(
            "vit",
            "random resized crop, flip",
            squash=False,
            augmentation=Augmentation(),
        ),
        Preset(
            "strong",
            "vit, then TrivialAugment, random erasing, mixup or cutmix",
            squash=False,
            augmentation=Augmentation("trivialaugment", 0.25, 0.2, 1.0),
        ),
    )
}
DEFAULT_PRESET = "vit"
AUGMENTS = ("none", "autoaugment", "trivialaugment", "randaugment")


def crop_to_image(
    points: np.ndarray, sizes: np.ndarray, img_size: int, preset: Preset
) -> np.ndarray:
    """Undo the evaluation's view for points: from its square to the original image.

    Args:
        points: (N, H, 2) x and y in [0, 1] of the square.
        sizes: (N, 2) width and height of the original images, pixels.
        img_size: side of the square, pixels.
        preset: that made the view.

    Returns:
        (N, H, 2) float64 x and y in [0, 1] of the original image.
    """
    resized = np.array(
        [preset.eval_size(img_size, Size(height, width))[::-1] for width, height in sizes.tolist()]
    )
    offset = np.round((resized - img_size) / 2)  # `v2.CenterCrop` rounds half to even
    return (points * img_size + offset[:, None]) / resized[:, None]
