"""Define the presets: what training and evaluation do to images, each under one name.

A preset has two steps. The first is fixed: it resizes a decoded image, and a cache keeps the
resized image. The second turns that into the model's input, by a random crop in training, from the
center in evaluation. Imports no torch: the flags ask for the names.

Sizes are in pixels; S is the side of the model's square input.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

# Version of the rules by which files become images and classes: decoding, range, transparency,
# profiles, the order of classes. Checkpoints and snapshots carry it.
DATA_RULES = 2
# What an older version did otherwise, in words.
OLDER_RULES = {
    1: "transparent pixels showed their hidden colours, colour profiles were ignored, grey images "
    "of more than 8 bits were darker, large JPEGs were decoded in full, and folders that are "
    "numbers were ordered as text",
}

CROP_AREA = (0.25, 1.0)  # share of the image in a random crop; smaller ones lose the flower
CROP_ASPECT = (3 / 4, 4 / 3)  # width of a random crop over its height


class Size(NamedTuple):
    """Height and width in pixels."""

    height: int
    width: int


SizeOf = Callable[[Size], Size]  # size of an original image to that of its resized image


class Augmentation(NamedTuple):
    """What a preset does besides resizing, cropping and flipping; each has a flag."""

    augment: str = "none"  # none, autoaugment, trivialaugment or randaugment
    random_erasing: float = 0.0  # probability
    mixup: float = 0.0  # alpha of the Beta distribution; 0: no mixup
    cutmix: float = 0.0


@dataclass(frozen=True)
class Preset:
    """One preset. `squash` ignores the aspect ratio; otherwise the shorter side is resized to.

    `centered`: training sees what evaluation sees.
    """

    name: str
    about: str
    squash: bool
    augmentation: Augmentation
    centered: bool = False

    def eval_side(self, img_size: int) -> int:
        """Return the shorter side before evaluation takes the center; squashed: each side."""
        if not self.squash:
            return round(img_size * 8 / 7)  # 256 for 224, as everywhere since AlexNet
        # TransFG's code: 600 for 448, but 400 for iNaturalist's 304, which is not in proportion.
        return 400 if img_size == 304 else round(img_size * 600 / 448)

    def train_side(self, img_size: int) -> int:
        """Return the largest shorter side of a resized image in training; squashed: each side."""
        # Twice evaluation's side, so that the smallest crops, a quarter of the area, have over S^2
        # pixels. Photographs from the web, 500 pixels a side, keep their size at 224.
        return self.eval_side(img_size) * (1 if self.squash or self.centered else 2)

    def train_size(self, img_size: int, size: Size) -> Size:
        """Return the size to which training resizes an image of `size`."""
        if self.squash or self.centered:
            return self.eval_size(img_size, size)
        side = self.train_side(img_size)
        return size if min(size) <= side else shorter_side_to(side, size)

    def eval_size(self, img_size: int, size: Size) -> Size:
        """Return the size to which evaluation resizes an image of `size`."""
        side = self.eval_side(img_size)
        return Size(side, side) if self.squash else shorter_side_to(side, size)


def shorter_side_to(side: int, size: Size) -> Size:
    """Scale `size` to a shorter side of `side`; round the longer one down, as `v2.Resize` does."""
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
        Preset(
            "center",
            "as evaluation sees it: no crop at random, no flip",
            squash=False,
            augmentation=Augmentation(),
            centered=True,
        ),
    )
}
DEFAULT_PRESET = "vit"
AUGMENTS = ("none", "autoaugment", "trivialaugment", "randaugment")


def crop_to_image(
    points: np.ndarray, sizes: np.ndarray, img_size: int, preset: Preset
) -> np.ndarray:
    """Map points of the evaluation's input back to the original image.

    Args:
        points: (N, H, 2) x and y in the square, as shares of its side in [0, 1].
        sizes: (N, 2) width and height of the original images, pixels.
        img_size: side of the square, pixels.
        preset: preset of the evaluation.

    Returns:
        (N, H, 2) float64 x and y in the original image, as shares of its sides in [0, 1].
    """
    resized = np.array(
        [preset.eval_size(img_size, Size(height, width))[::-1] for width, height in sizes.tolist()]
    )
    offset = np.round((resized - img_size) / 2)  # `v2.CenterCrop` rounds half to even
    return (points * img_size + offset[:, None]) / resized[:, None]


def has_constant_trunk(config: Mapping[str, Any]) -> bool:
    """Return whether a training image has the same features at every step."""
    drawn = "dropout", "drop_path", "patch_dropout", "random_erasing", "mixup", "cutmix"
    is_same_view = PRESETS[config["preset"]].centered and config["augment"] == "none"
    is_frozen = config["freeze"] == "backbone" and config["head"] == "token"
    return is_frozen and is_same_view and not any(config[flag] for flag in drawn)
