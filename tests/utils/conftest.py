"""Small real data for the tests of utils/: photos and splits of photos."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.data.splits import Split


@pytest.fixture(scope="session")
def save_photo() -> Callable[..., Path]:
    """Saves a small photo of noise: `save_photo(path, seed=0, size=(24, 20), **save_args)`."""

    def save(path: Path, seed: int = 0, size: tuple[int, int] = (24, 20), **args) -> Path:
        width, height = size
        coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        args.setdefault("format", "JPEG")
        Image.fromarray(coarse).resize((width, height)).save(path, **args)
        return path

    return save


@pytest.fixture(scope="session")
def make_split(save_photo: Callable[..., Path]) -> Callable[..., Split]:
    """A split of photos below a folder: `make_split(root, labels, num_classes=3)`."""

    def make(
        root: Path,
        labels: list[int],
        num_classes: int | None = None,
        name: str = "val",
        dataset: str = "toy",
        photos: bool = True,
        size: tuple[int, int] = (24, 20),
    ) -> Split:
        ids = [f"photo_{i:03d}" for i in range(len(labels))]
        paths = [f"jpg/{sample_id}.jpg" for sample_id in ids]
        if photos:
            for i, path in enumerate(paths):
                save_photo(root / path, seed=i, size=(size[0] + i % 5, size[1] + i % 7))
        count = num_classes or max(labels, default=0) + 1
        classes = tuple(f"class {i}" for i in range(count))
        return Split(
            dataset,
            name,
            root,
            classes,
            np.array(ids, dtype=str),
            np.array(paths, dtype=str),
            np.array(labels, dtype=np.int64),
        )

    return make
