"""Presets as torchvision transforms on uint8 images, and the labels of mixed batches.

Images are (3, H, W) uint8, channels last in memory: v2's resize is twice as fast on that layout,
and keeps it for images with a batch dimension. Shapes: B batch, S image side, C classes.
"""

from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from utils.presets import CROP_AREA, Augmentation, Preset, Size

# Erased pixels: the mean of ImageNet, in [0, 255].
ERASED = (124, 116, 104)


def crop(image: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    """A copy of a part of (1, 3, H, W), channels last in memory as `image` is."""
    rows = image.permute(0, 2, 3, 1).flatten(2)[0, top : top + height]  # (height, W * 3)
    part = rows[:, 3 * left : 3 * (left + width)].contiguous()
    return part.view(1, height, width, 3).permute(0, 3, 1, 2)


class RandomResizedCrop(v2.RandomResizedCrop):
    """torchvision's, but keeping channels last: twice as fast."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:  # noqa: ANN401 - v2's signature
        """Crop, then resize, (1, 3, H, W) to (1, 3, S, S)."""
        part = crop(inpt, params["top"], params["left"], params["height"], params["width"])
        return F.resize(part, list(self.size), interpolation=self.interpolation, antialias=True)


def _augment(name: str) -> list[v2.Transform]:
    kinds = {
        "none": (),
        "autoaugment": (v2.AutoAugment,),
        "trivialaugment": (v2.TrivialAugmentWide,),
        "randaugment": (v2.RandAugment,),
    }
    return [kind() for kind in kinds[name]]


def working_image(image: Tensor, size: Size) -> Tensor:
    """(3, H, W) brought to a working size; the same image if it has it."""
    if image.shape[1:] == size:
        return image
    return F.resize(image[None], list(size), antialias=True)[0]


class TrainView:
    """Working image to random model input."""

    def __init__(self, preset: Preset, img_size: int, augmentation: Augmentation) -> None:
        geometry = (
            v2.RandomCrop(img_size)
            if preset.squash
            else RandomResizedCrop(img_size, scale=CROP_AREA, antialias=True)
        )
        steps = [geometry, v2.RandomHorizontalFlip(), *_augment(augmentation.augment)]
        if augmentation.random_erasing:
            steps.append(v2.RandomErasing(augmentation.random_erasing, value=ERASED))
        self.transform = v2.Compose(steps)

    def __call__(self, image: Tensor) -> Tensor:
        """(3, H, W) to (3, S, S), uint8; draws from torch's CPU generator."""
        return self.transform(image[None])[0]


class EvalView:
    """Working image to the model input of an evaluation: the center."""

    def __init__(self, preset: Preset, img_size: int) -> None:
        self.center = v2.CenterCrop(img_size)

    def __call__(self, image: Tensor) -> Tensor:
        """(3, H, W) to (3, S, S), uint8."""
        return self.center(image[None])[0]


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
