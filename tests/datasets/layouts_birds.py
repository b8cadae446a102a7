"""Tiny bird data sets in the official formats, ways to damage their lists, the real lists."""

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from uuid import UUID

import numpy as np
from helpers import REPO
from PIL import Image

# Class id to name, and child to parent, as the official files have them. The used classes of
# NABirds are leaves with gaps between their ids; a leaf may be called like the node above it.
CUB_CLASSES = {
    1: "001.Red_crested_Finch",
    2: "002.Blue_winged_Finch",
    3: "003.Green_tailed_Finch",
}
NABIRDS_NODES = {
    0: "Birds",
    1: "Finches, Sparrows, and Allies",
    2: "Gulls",
    4: "Ring Gull",
    7: "Stone Finch  (Male)",
    9: "Never Seen Finch",
    10: "Stone Finch (Female/juvenile)",
    12: "Ring Gull",
}
NABIRDS_PARENTS = {1: 0, 2: 0, 4: 2, 7: 1, 9: 1, 10: 1, 12: 4}
NABIRDS_CLASSES = (7, 10, 12)

LISTS = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")


def write_cub(
    root: Path,
    train_images: int = 4,
    test_images: int = 2,
    test_classes: Collection[int] | None = None,
    photos: bool = True,
) -> Path:
    """CUB-200-2011 with the three CUB_CLASSES; `root` becomes the dataset folder.

    Args:
        root: made where it is missing.
        train_images: of each class.
        test_images: of each class that is in the test split.
        test_classes: class indices, from 0, of the test split; None: every class.
        photos: False leaves the folder of images empty, which is all a reader needs.
    """
    images, labels, splits = {}, {}, {}
    kinds = _plan(len(CUB_CLASSES), train_images, test_images, test_classes)
    # Official order: class by class, training and test images mixed.
    for index, is_train in sorted(kinds, key=lambda kind: kind[0]):
        number = len(images) + 1
        key, name = list(CUB_CLASSES.items())[index]
        images[number] = f"{name}/{name.partition('.')[2]}_{number:04d}_{1000 - 7 * number}.jpg"
        labels[number], splits[number] = key, int(is_train)
    _write(root, images, labels, splits, CUB_CLASSES, photos)
    return root


def write_nabirds(
    root: Path,
    train_images: int = 4,
    test_images: int = 2,
    test_classes: Collection[int] | None = None,
    photos: bool = True,
) -> Path:
    """NABirds with images of the three NABIRDS_CLASSES; `root` becomes the dataset folder.

    Args:
        root: made where it is missing.
        train_images: of each class.
        test_images: of each class that is in the test split.
        test_classes: class indices, from 0, of the test split; None: every class.
        photos: False leaves the folder of images empty, which is all a reader needs.
    """
    images, labels, splits = {}, {}, {}
    kinds = _plan(len(NABIRDS_CLASSES), train_images, test_images, test_classes)
    generator = np.random.default_rng(555)
    # Official order: by UUID, so that classes and splits are mixed.
    keys = sorted(UUID(bytes=generator.bytes(16), version=4) for _ in kinds)
    for key, kind in zip(keys, generator.permutation(len(kinds)), strict=True):
        index, is_train = kinds[kind]
        label = NABIRDS_CLASSES[index]
        ending = "jpg" if len(images) else "JPG"  # 35 of the official ones
        images[key] = f"{label:04d}/{key.hex}.{ending}"
        labels[key], splits[key] = label, int(is_train)
    _write(root, images, labels, splits, NABIRDS_NODES, photos)
    write_table(root / "hierarchy.txt", NABIRDS_PARENTS)
    return root


def write_table(path: Path, table: Mapping | Iterable[tuple], newline: str = "\n") -> None:
    """A list file of `key value` lines."""
    pairs = table.items() if isinstance(table, Mapping) else table
    text = "".join(f"{key} {value}{newline}" for key, value in pairs)
    path.write_text(text, encoding="utf-8", newline="")


def _plan(
    num_classes: int, train_images: int, test_images: int, test_classes: Collection[int] | None
) -> list[tuple[int, bool]]:
    """(class index, whether it trains) of each image to write."""
    tested = range(num_classes) if test_classes is None else test_classes
    train = [(index, True) for index in range(num_classes) for _ in range(train_images)]
    return train + [(index, False) for index in tested for _ in range(test_images)]


def _write(
    root: Path, images: Mapping, labels: Mapping, splits: Mapping, classes: Mapping, photos: bool
) -> None:
    (root / "images").mkdir(parents=True, exist_ok=True)
    for name, table in zip(LISTS, (images, labels, splits, classes), strict=True):
        write_table(root / name, table)
    for seed, (key, path) in enumerate(images.items() if photos else ()):
        photo = root / "images" / path
        photo.parent.mkdir(exist_ok=True)
        draw_bird(labels[key], seed).save(photo, "JPEG", quality=90)


def draw_bird(label: int, seed: int) -> Image.Image:
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


def edit_lines(path: Path, edit: Callable[[list[str]], list[str]]) -> None:
    """Write the lines of a list file as `edit` returns them."""
    lines = edit(path.read_text(encoding="utf-8").splitlines())
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _first(change: Callable[[str, str], str]) -> Callable[[list[str]], list[str]]:
    """An edit that puts `change(key, value)` in place of the first line."""

    def edit(lines: list[str]) -> list[str]:
        key, _, value = lines[0].partition(" ")
        return [change(key, value), *lines[1:]]

    return edit


def _second_value_first(lines: list[str]) -> list[str]:
    return [f"{lines[0].split(' ')[0]} {lines[1].partition(' ')[2]}", *lines[1:]]


# What may be wrong with the four lists that both data sets have: file, edit, message.
DAMAGES = [
    *((name, lambda lines: [], rf"{name} is empty$") for name in LISTS),
    *((name, _first(lambda key, _: key), rf"{name} line 1: .* is no pair") for name in LISTS),
    *(
        (name, lambda lines: [*lines, lines[0]], rf"{name} has the key .* more than once")
        for name in LISTS
    ),
    *(
        (name, lambda lines: lines[1:], rf"{name} lacks .*, which .*images.txt has")
        for name in LISTS[1:3]
    ),
    *(
        (name, lambda lines: [*lines, "extra 1"], rf"{name} has extra, which .*images.txt lacks")
        for name in LISTS[1:3]
    ),
    *(
        (name, _first(lambda _, value: f"other {value}"), rf"{name} (has|lacks) ")
        for name in LISTS[1:3]
    ),
    ("images.txt", lambda lines: lines[1:], r"labels.txt has .*, which .*images.txt lacks"),
    ("images.txt", _second_value_first, r"images.txt gives .* and .* the same path '.*\.jpg'"),
    *(
        (
            "images.txt",
            lambda lines, bad=bad: [
                f"{line.split(' ')[0]} {bad}/{number}.jpg" for number, line in enumerate(lines)
            ],
            rf"images.txt: '.*{bad}/.*' is no path below the data root",
        )
        for bad in ("..", "../..", "7/../../8", "/tmp", r"..\\x")
    ),
    *(
        (
            "image_class_labels.txt",
            _first(lambda key, _, bad=bad: f"{key} {bad}"),
            rf"labels.txt gives image .* the class '{bad}', which .*classes.txt lacks",
        )
        for bad in ("99", "-1", "1.0", "x", "1 1", "\uff13")
    ),
    *(
        (
            "train_test_split.txt",
            _first(lambda key, _, bad=bad: f"{key} {bad}"),
            rf"split.txt gives image .* '{bad}', not 0 or 1",
        )
        for bad in ("2", "-1", "x", "0.0", "1 0", "01")
    ),
    ("classes.txt", lambda lines: lines[:-1], r"labels.txt gives .*, which .*classes.txt lacks"),
    *(
        (
            "classes.txt",
            lambda lines, bad=bad: [*lines, f"{bad} Extra Bird"],
            rf"classes.txt: a class id is '{bad}', not a whole number",
        )
        for bad in ("-1", "x", "1_0")
    ),
    (
        "classes.txt",
        lambda lines: [*lines[:-1], f"{lines[-1].split(' ')[0]} _"],
        r"classes.txt gives class \d+ no name",
    ),
]


def _official_lists(folder: str) -> Path | None:
    parents = [os.environ.get("DATA_ROOT"), REPO.parent / "shared" / "data"]
    for parent in filter(None, parents):
        root = Path(parent) / "official_meta" / folder
        if root.is_dir():
            return root
    return None


# The official list files without the images; None where they are not at hand.
REAL_CUB = _official_lists("cub_200_2011")
REAL_NABIRDS = _official_lists("nabirds")
