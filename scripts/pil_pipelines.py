"""The input pipelines of others, on PIL images: what `benchmark.py data` compares ours with."""

from collections.abc import Callable
from typing import Any

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def pil_transforms() -> dict[str, Callable]:
    """The training transforms of TransFG's code, and of torchvision's classification reference.

    `vit, same crops` is the reference with the crop area of our preset, 25 to 100 %, where its own
    is 8 to 100 %: it resizes larger boxes, as ours does.
    """
    import torch
    from torchvision import transforms as T

    def reference(scale: tuple[float, float]) -> Callable:
        return T.Compose(
            [
                T.RandomResizedCrop(224, scale=scale),
                T.RandomHorizontalFlip(),
                T.PILToTensor(),
                T.ConvertImageDtype(torch.float),
                T.Normalize(*IMAGENET),
            ]
        )

    return {
        "transfg": T.Compose(
            [
                T.Resize((600, 600), T.InterpolationMode.BILINEAR),
                T.RandomCrop((448, 448)),
                T.RandomHorizontalFlip(),
                T.ToTensor(),
                T.Normalize(*IMAGENET),
            ]
        ),
        "vit": reference((0.08, 1.0)),
        "vit, same crops": reference((0.25, 1.0)),
    }


class PilImages:
    """A `Dataset` as both of them have it: open, convert to RGB, transform."""

    def __init__(self, paths: list[str], transform: Callable) -> None:
        self.paths = paths
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Image and label."""
        from PIL import Image

        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB")), 0
