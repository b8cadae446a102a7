"""Define the PIL input pipelines of others, against which `benchmark.py data` measures ours."""

from collections.abc import Callable
from typing import Any

from utils.data.formats import FORMATS

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def pil_transforms() -> dict[str, Callable]:
    """Return the training transforms of TransFG's code and of torchvision's reference, by preset.

    torchvision's are those of references/classification/presets.py.
    """
    import torch
    from torchvision import transforms as T

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
        "vit": T.Compose(
            [
                T.RandomResizedCrop(224),
                T.RandomHorizontalFlip(),
                T.PILToTensor(),
                T.ConvertImageDtype(torch.float),
                T.Normalize(*IMAGENET),
            ]
        ),
    }


class PilImages:
    """Serve images as both codes do: open, convert to RGB, transform."""

    def __init__(self, paths: list[str], transform: Callable) -> None:
        self.paths = paths
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Return image and label."""
        from PIL import Image

        with Image.open(self.paths[index], formats=FORMATS) as image:
            return self.transform(image.convert("RGB")), 0
