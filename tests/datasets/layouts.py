"""What the writers of tiny datasets in their official formats share.

A writer `write_NAME(root, photos=True, **counts)` makes the folder `root` of a dataset with three
classes and returns it. `counts` go to `plan`; a dataset without a test split has its val split
instead. Without photos the folder of images is empty, which is all a reader needs.
"""

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from helpers import REPO
from PIL import Image


class Layout(NamedTuple):
    """How a dataset is written, and what its runs must say."""

    write: Callable[..., Path]
    eval_split: str  # by default
    classes: tuple[str, ...]  # official names in index order
    files: tuple[str, ...]  # what its reader reads for the train split
    lists: Mapping[str, str]  # text files by split, a line for each image, that must share none


LAYOUTS: dict[str, Layout] = {}  # by the name of the dataset


def layout(
    dataset: str,
    eval_split: str,
    classes: tuple[str, ...],
    files: tuple[str, ...] = (),
    lists: Mapping[str, str] = MappingProxyType({}),
) -> Callable:
    """Return a decorator that enters the writer of a dataset in LAYOUTS."""

    def enter(write: Callable[..., Path]) -> Callable[..., Path]:
        LAYOUTS[dataset] = Layout(write, eval_split, classes, files, lists)
        return write

    return enter


def plan(
    train_images: int = 4, test_images: int = 2, test_classes: Collection[int] | None = None
) -> dict[str, list[int]]:
    """The class index of each image of both splits, class by class.

    Args:
        train_images: images of each class.
        test_images: images of each class that is in the test split.
        test_classes: class indices of the test split; None: every class.
    """
    return {
        "train": [index for index in range(3) for _ in range(train_images)],
        "test": [
            index
            for index in (range(3) if test_classes is None else test_classes)
            for _ in range(test_images)
        ],
    }


def mixed(labels: list[int], seed: int) -> list[int]:
    """The labels in a random order that is always the same."""
    return [labels[at] for at in np.random.default_rng(seed).permutation(len(labels))]


def picture(label: int, seed: int) -> Image.Image:
    """A blob in the colour of its class before a noisy sky; about 40x48, another for each seed."""
    generator = np.random.default_rng([label, seed])
    height, width = 40 + seed % 3, 48 - seed % 5
    y, x = np.mgrid[0:height, 0:width]
    center_y, center_x = generator.uniform(0.4, 0.6, size=2) * (height, width)
    body = ((y - center_y) / 12) ** 2 + ((x - center_x) / 16) ** 2 < 1
    color = np.random.default_rng(label).integers(0, 256, size=3)
    pixels = np.where(body[..., None], color, (150, 180, 220))
    pixels = pixels + generator.normal(0, 12, size=(height, width, 1))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def draw(path: Path, label: int, seed: int, photos: bool = True) -> None:
    """One small photo at `path`, if `photos`."""
    if photos:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(label, seed).save(path, "JPEG", quality=90)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """A list file, in a folder that is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_table(path: Path, table: Mapping) -> None:
    """A list file of `key value` lines."""
    write_lines(path, (f"{key} {value}" for key, value in table.items()))


def edit_lines(path: Path, edit: Callable[[list[str]], list[str]]) -> None:
    """Write the lines of a list file as `edit` returns them."""
    write_lines(path, edit(path.read_text(encoding="utf-8").splitlines()))


def nest(root: Path, name: str, archive: str = "") -> None:
    """Move the folder `name` of a dataset into one that is called like its archive."""
    (root / name).rename(root / "aside")
    (root / (archive or name)).mkdir()
    (root / "aside").rename(root / (archive or name) / name)


def official_lists(folder: str) -> Path | None:
    """The official list files without the images; None if they are not at hand."""
    parents = [os.environ.get("DATA_ROOT"), REPO.parent / "shared" / "data"]
    for parent in filter(None, parents):
        root = Path(parent) / "official_meta" / folder
        if root.is_dir():
            return root
    return None
