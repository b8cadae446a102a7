"""Turn images into the model's input by a preset, and mix batches, on uint8 images.

Images are (3, H, W) uint8, channels last in memory: v2's resize is twice as fast on that layout,
and keeps it for images with a batch dimension. Shapes: B batch, S side of the model's square input
in pixels, C classes.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from utils.data.presets import CROP_AREA, CROP_ASPECT, Augmentation, Preset, Size

CROP_TRIES = 10  # as many as torchvision
ERASED = (124, 116, 104)  # color of erased pixels: the mean of ImageNet, in [0, 255]


def as_batch(image: Tensor) -> Tensor:
    """View (3, H, W) as (1, 3, H, W) with the strides of channels last, if the memory is that.

    `image[None]` gives the new dimension a stride from which torch's resize cannot tell the layout.
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
    """Draw the box of a random resized crop (Szegedy et al. 2015, section 6), as torchvision does.

    Args:
        size: size of the image.
        draws: uniform numbers in [0, 1), four for each try. If no try gives a box that fits, it is
            the largest one in the center with an aspect ratio within `CROP_ASPECT`.
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
    """Resize a random box of an image to a square.

    Not torchvision's class: it draws through five tensors of one element and resizes the width
    first, which is torch's slow pass; after the height it runs over fewer rows. A pixel differs by
    1 of 255 at most. With torchvision's, a training sample of `vit` takes 17 % longer and is less
    than twice as fast as PIL's (measured in specs/003-datasets-and-input/research.md).
    """

    def __init__(self, img_size: int) -> None:
        self.img_size = img_size

    def __call__(self, image: Tensor) -> Tensor:
        """Turn (1, 3, H, W) into (1, 3, S, S), uint8; draw from torch's CPU generator."""
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
    """Turn a resized image into a random input of the model."""

    def __init__(self, preset: Preset, img_size: int, augmentation: Augmentation) -> None:
        if preset.centered:
            self.steps = [v2.CenterCrop(img_size)]
        else:
            crop = v2.RandomCrop(img_size) if preset.squash else RandomResizedCrop(img_size)
            self.steps = [crop, v2.RandomHorizontalFlip()]
        self.steps += _augment(augmentation.augment)
        if augmentation.random_erasing:
            self.steps.append(v2.RandomErasing(augmentation.random_erasing, value=ERASED))

    def __call__(self, image: Tensor) -> Tensor:
        """Turn (3, H, W) into (3, S, S), uint8; draw from torch's CPU generator."""
        image = as_batch(image)
        for step in self.steps:
            image = step(image)
        return image[0]


class PatchDropout:
    """Choose the patches of an image that training sees (Liu et al. 2022, arXiv 2208.07220)."""

    def __init__(self, share: float, num_patches: int) -> None:
        self.num_patches = num_patches
        self.num_kept = max(1, round((1 - share) * num_patches))

    def __call__(self) -> Tensor:
        """Return the indices of the patches that stay, sorted; draw from torch's CPU generator."""
        return torch.randperm(self.num_patches)[: self.num_kept].sort().values


class EvalView:
    """Cut the center out of a resized image, the input of an evaluation."""

    def __init__(self, preset: Preset, img_size: int) -> None:
        self.center = v2.CenterCrop(img_size)

    def __call__(self, image: Tensor) -> Tensor:
        """Turn (3, H, W) into (3, S, S), uint8."""
        return self.center(as_batch(image))[0]


class Mixing:
    """Mix a batch by Mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019), chosen at random."""

    def __init__(self, augmentation: Augmentation, num_classes: int) -> None:
        kinds = {v2.MixUp: augmentation.mixup, v2.CutMix: augmentation.cutmix}
        self.kinds = [
            kind(alpha=alpha, num_classes=num_classes) for kind, alpha in kinds.items() if alpha
        ]

    def __bool__(self) -> bool:
        return bool(self.kinds)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix (B, 3, S, S) uint8 images; draw from torch's CPU generator.

        Returns:
            The mixed images, and (B, C) float32 shares of the classes; rows sum to 1.
        """
        kind = self.kinds[int(torch.randint(len(self.kinds), ()))]
        if isinstance(kind, v2.CutMix):
            return kind(images, labels)
        mixed, targets = kind(images.float(), labels)
        return mixed.round_().to(torch.uint8), targets
