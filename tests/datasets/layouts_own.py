"""Tiny data of a user's own: folders of images, and a CSV file; with a val split for test."""

from pathlib import Path
from typing import Any

from layouts import draw, layout, plan, write_lines

CLASSES = ("Épine noire", "oak_leaf", "rose")


@layout("folder", "val", ("oak leaf", "rose", "Épine noire"))
def write_folder(
    root: Path, photos: bool = True, split_folders: bool = True, **counts: Any
) -> Path:
    """Class folders in `train/` and `val/`, or in the root: then all of them without any split."""
    seed = 0
    for split, labels in plan(**counts).items():
        folder = root / {"train": "train", "test": "val"}[split] if split_folders else root
        for label in labels:
            path = folder / CLASSES[label] / f"IMG_{seed:04d}.JPG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            draw(path, label, seed, photos)
            seed += 1
    return root


@layout("csv", "val", ("oak leaf", "rose", "Épine noire"))
def write_csv(root: Path, with_split: bool = True) -> Path:
    """A CSV file of 12 and 6 images beside it; its path."""
    lines, seed = ["path,label,split" if with_split else "path,label"], 0
    for split, labels in plan().items():
        for label in labels:
            name = f"photos/{seed % 2}/IMG {seed:04d}.jpg"
            draw(root / name, label, seed)
            of = {"train": ",train", "test": ",val"}[split] if with_split else ""
            lines.append(f"{name},{CLASSES[label]}{of}")
            seed += 1
    write_lines(root / "images.csv", lines)
    return root / "images.csv"
