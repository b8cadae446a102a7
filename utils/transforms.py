"""Presets as torchvision transforms on uint8 images, and the labels of mixed batches.

Images are (3, H, W) uint8, channels last in memory: v2's resize is twice as fast on that layout,
and keeps it for images with a batch dimension. Shapes: B batch, S image side, C classes.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from utils.presets import CROP_AREA, CROP_ASPECT, Augmentation, Preset, Size

CROP_TRIES = 10  # as torchvision
# Erased pixels: the mean of ImageNet, in [0, 255].
ERASED = (124, 116, 104)


def as_batch(image: Tensor) -> Tensor:
    """(3, H, W) as (1, 3, H, W) whose strides say channels last, where the memory is.

    `image[None]` gives the new dimension a stride by which torch's resize does not see the layout.
    """
    return image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)


def resize(image: Tensor, size: Size) -> Tensor:
    """Resize (3, H, W) with antialiasing, as Pillow does; an image of that size stays as it is."""
    if image.shape[1:] == size:
        return image
    return F.resize(as_batch(image), list(size), antialias=True)[0]


class Box(NamedTuple):
    """A part of an image, pixels."""

    top: int
    left: int
    height: int
    width: int


def random_box(size: Size, draws: Sequence[float]) -> Box:
    """The box of a random resized crop (Szegedy et al. 2015, section 6), as torchvision draws it.

    Args:
        size: of the image.
        draws: uniform in [0, 1), four for each try; what the last of them leaves without a box
            gets the largest one in the center that keeps to `CROP_ASPECT`.
    """
    height, width = size
    area, (lowest, highest) = height * width, CROP_ASPECT
    for share, aspect, row, column in zip(*[iter(draws)] * 4, strict=True):
        target = area * (CROP_AREA[0] + share * (CROP_AREA[1] - CROP_AREA[0]))
        ratio = lowest * (highest / lowest) ** aspect  # uniform in its logarithm
        box_width, box_height = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(row * (height - box_height + 1))
            return Box(top, int(column * (width - box_width + 1)), box_height, box_width)
    box_width = min(width, round(height * highest))
    box_height = min(height, round(width / lowest))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


class RandomResizedCrop:
    """A random box of an image, resized.

    Not torchvision's: that draws through five tensors of one element and resizes the width first.
    torch's pass over the width is the slow one, and after the height it runs over fewer rows. A
    pixel differs by 1 of 255 at most. A whole training sample of `vit` is 1.1 times as fast, and
    without it would not be twice as fast as PIL's (specs/003-datasets-and-input/research.md).
    """

    def __init__(self, img_size: int) -> None:
        self.img_size = img_size

    def __call__(self, image: Tensor) -> Tensor:
        """(1, 3, H, W) to (1, 3, S, S), uint8; draws from torch's CPU generator."""
        size = Size(*image.shape[-2:])
        top, left, height, width = random_box(size, torch.rand(4 * CROP_TRIES).tolist())
        box = image[0, :, top : top + height, left : left + width]
        high = interpolate(as_batch(box), (self.img_size, width), mode="bilinear", antialias=True)
        side = (self.img_size, self.img_size)
        return interpolate(as_batch(high[0]), side, mode="bilinear", antialias=True)


def _augment(name: str) -> list[v2.Transform]:
    kinds = {
        "none": (),
        "autoaugment": (v2.AutoAugment,),
        "trivialaugment": (v2.TrivialAugmentWide,),
        "randaugment": (v2.RandAugment,),
    }
    return [kind() for kind in kinds[name]]


class TrainView:
    """Working image to random model input."""

    def __init__(self, preset: Preset, img_size: int, augmentation: Augmentation) -> None:
        crop = v2.RandomCrop(img_size) if preset.squash else RandomResizedCrop(img_size)
        self.steps = [crop, v2.RandomHorizontalFlip(), *_augment(augmentation.augment)]
        if augmentation.random_erasing:
            self.steps.append(v2.RandomErasing(augmentation.random_erasing, value=ERASED))

    def __call__(self, image: Tensor) -> Tensor:
        """(3, H, W) to (3, S, S), uint8; draws from torch's CPU generator."""
        image = as_batch(image)
        for step in self.steps:
            image = step(image)
        return image[0]


class EvalView:
    """Working image to the model input of an evaluation: the center."""

    def __init__(self, preset: Preset, img_size: int) -> None:
        self.center = v2.CenterCrop(img_size)

    def __call__(self, image: Tensor) -> Tensor:
        """(3, H, W) to (3, S, S), uint8."""
        return self.center(as_batch(image))[0]


class Mixing:
    """Mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019) of a batch, one of them at random."""

    def __init__(self, augmentation: Augmentation, num_classes: int) -> None:
        kinds = {v2.MixUp: augmentation.mixup, v2.CutMix: augmentation.cutmix}
        self.kinds = [
            kind(alpha=alpha, num_classes=num_classes) for kind, alpha in kinds.items() if alpha
        ]

    def __bool__(self) -> bool:
        return bool(self.kinds)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix (B, 3, S, S) uint8; the targets are (B, C) float32, rows sum to 1.

        Draws from torch's CPU generator.
        """
        kind = self.kinds[int(torch.randint(len(self.kinds), ()))]
        if isinstance(kind, v2.CutMix):
            return kind(images, labels)
        mixed, targets = kind(images.float(), labels)
        return mixed.round_().to(torch.uint8), targets
