"""Tiny data of a user's own: folders of images, and a CSV file."""

from collections.abc import Collection
from pathlib import Path

from layouts_birds import draw_bird

CLASSES = ("Épine noire", "oak_leaf", "rose")


def plan(train: int, val: int, val_classes: Collection[int] | None) -> list[tuple[str, int]]:
    """(split, class index) of each image."""
    tested = range(len(CLASSES)) if val_classes is None else val_classes
    every = [("train", index) for index in range(len(CLASSES)) for _ in range(train)]
    return every + [("val", index) for index in tested for _ in range(val)]


def draw(path: Path, label: int, seed: int) -> None:
    """One small photo at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_bird(label, seed).save(path, "JPEG", quality=90)


def write_folder(
    root: Path,
    train_images: int = 4,
    val_images: int = 2,
    split_folders: bool = True,
    val_classes: Collection[int] | None = None,
    photos: bool = True,
) -> Path:
    """Class folders below `train/` and `val/`, or below the root: then all of them in one heap."""
    kinds = plan(train_images, val_images, val_classes)
    for seed, (split, index) in enumerate(kinds):
        folder = root / split if split_folders else root
        path = folder / CLASSES[index] / f"IMG_{seed:04d}.JPG"
        if photos:
            draw(path, index, seed)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return root


def write_csv(
    root: Path, train_images: int = 4, val_images: int = 2, with_split: bool = True
) -> Path:
    """A CSV file of images beside it; its path."""
    kinds = plan(train_images, val_images, None)
    lines = ["path,label,split" if with_split else "path,label"]
    for seed, (split, index) in enumerate(kinds):
        name = f"photos/{seed % 2}/IMG {seed:04d}.jpg"
        draw(root / name, index, seed)
        lines.append(f"{name},{CLASSES[index]}" + (f",{split}" if with_split else ""))
    path = root / "images.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
