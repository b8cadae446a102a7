"""Tiny CUB-200-2011 and NABirds in the official formats."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
from layouts import draw, layout, official_lists, plan, write_table

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
REAL_CUB, REAL_NABIRDS = official_lists("cub_200_2011"), official_lists("nabirds")


@layout(
    "CUB_200_2011",
    "test",
    ("Red crested Finch", "Blue winged Finch", "Green tailed Finch"),
    files=LISTS,
)
def write_cub(root: Path, photos: bool = True, **counts: Any) -> Path:
    images, labels, splits = {}, {}, {}
    planned = plan(**counts)
    kinds = [(index, split) for split, indices in planned.items() for index in indices]
    # Official order: class by class, training and test images mixed.
    for index, split in sorted(kinds, key=lambda kind: kind[0]):
        number = len(images) + 1
        key, name = list(CUB_CLASSES.items())[index]
        images[number] = f"{name}/{name.partition('.')[2]}_{number:04d}_{1000 - 7 * number}.jpg"
        labels[number], splits[number] = key, int(split == "train")
    _write(root, (images, labels, splits, CUB_CLASSES), photos)
    return root


@layout(
    "nabirds",
    "test",
    ("Stone Finch (Male)", "Stone Finch (Female/juvenile)", "Ring Gull"),
    files=(*LISTS, "hierarchy.txt"),
)
def write_nabirds(root: Path, photos: bool = True, **counts: Any) -> Path:
    images, labels, splits = {}, {}, {}
    planned = plan(**counts)
    kinds = [(index, split) for split, indices in planned.items() for index in indices]
    generator = np.random.default_rng(555)
    # Official order: by UUID, so that classes and splits are mixed.
    keys = sorted(UUID(bytes=generator.bytes(16), version=4) for _ in kinds)
    for key, kind in zip(keys, generator.permutation(len(kinds)), strict=True):
        index, split = kinds[kind]
        label = NABIRDS_CLASSES[index]
        ending = "jpg" if len(images) else "JPG"  # 35 of the official ones
        images[key] = f"{label:04d}/{key.hex}.{ending}"
        labels[key], splits[key] = label, int(split == "train")
    _write(root, (images, labels, splits, NABIRDS_NODES), photos)
    write_table(root / "hierarchy.txt", NABIRDS_PARENTS)
    return root


def _write(root: Path, tables: tuple[Mapping, ...], photos: bool) -> None:
    (root / "images").mkdir(parents=True, exist_ok=True)
    for name, table in zip(LISTS, tables, strict=True):
        write_table(root / name, table)
    images, labels, *_ = tables
    for seed, (key, path) in enumerate(images.items()):
        draw(root / "images" / path, labels[key], seed, photos)
