"""The user's own images: one folder a class, below `train/`, `val/` and `test/` or below the root.

As torchvision's `ImageFolder`, images may lie at any depth below their class. Hidden files and what
is no image by its ending are passed over.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from utils.errors import InputError
from utils.readers.listing import Listing, clean_name, make_listing, printable, without_ending

SPLITS = ("train", "val", "test")
# Pillow's, and torchvision's IMG_EXTENSIONS with GIF.
IMAGE_ENDINGS = (
    ".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif",
)  # fmt: skip


def splits(root: Path) -> tuple[str, ...]:
    """The splits that have a folder, or `train` where the root itself holds the classes.

    Raises:
        InputError: the root is no folder, has split folders and others, or no `train/`.
    """
    folders = _folders(root)
    found = tuple(split for split in SPLITS if split in folders)
    if not found:
        return ("train",)
    others = [name for name in folders if name not in SPLITS]
    if others:
        raise InputError(
            f"{root} has {found[0]}/ and {others[0]}/: put either splits or classes into it"
        )
    if "train" not in found:
        raise InputError(f"{root} has {found[0]}/ but no train/")
    return found


def read(root: Path, split: str) -> Listing:
    """The images of one split, sorted by class and path; the sample id is the path in the split.

    Raises:
        InputError: as `splits`; a class without an image, or of no image in train; two folders for
            one class; a name that is not UTF-8.
    """
    official = splits(root)
    folders = {name: root / name for name in SPLITS if (root / name).is_dir()} or {"train": root}
    names = _class_names({name: folders[name] for name in official})
    index = {name: number for number, name in enumerate(sorted(set(names["train"].values())))}
    ids, paths, labels = [], [], []
    for folder, name in sorted(names[split].items(), key=lambda item: (item[1], item[0])):
        for path in _images(folders[split] / folder):
            within = f"{folder}/{path}"
            ids.append(unicodedata.normalize("NFC", within))
            paths.append(within if folders[split] == root else f"{split}/{within}")
            labels.append(index[name])
    return make_listing(folders[split], list(index), _shortened(ids), paths, labels)


def _shortened(ids: list[str]) -> list[str]:
    """Without the endings, where that leaves them different."""
    short = [without_ending(sample_id) for sample_id in ids]
    counts = Counter(short)
    return [whole if counts[brief] > 1 else brief for whole, brief in zip(ids, short, strict=True)]


def _class_names(folders: dict[str, Path]) -> dict[str, dict[str, str]]:
    """For each split its class folders and their class names."""
    names: dict[str, dict[str, str]] = {}
    for split, folder in folders.items():
        owners: dict[str, str] = {}
        for entry in _folders(folder):
            name = clean_name(entry)
            if not name:
                raise InputError(f"{folder}/{entry} names no class")
            if name in owners:
                raise InputError(
                    f"{folder} has two folders for the class {name!r}: {owners[name]}, {entry}"
                )
            owners[name] = entry
        if not owners:
            raise InputError(f"{folder} has no class folder: put images into {folder}/<class>/")
        names[split] = {entry: name for name, entry in owners.items()}
    for split, owners in names.items():
        for entry, name in owners.items():
            if name not in names["train"].values():
                raise InputError(f"{folders[split] / entry}: the class {name!r} is not in train/")
    return names


def _folders(root: Path) -> list[str]:
    """The names of the folders in `root` that are not hidden, sorted."""
    with _scanned(root) as entries:
        return sorted(entry.name for entry in entries if _is_seen(entry) and entry.is_dir())


def _images(folder: Path) -> list[str]:
    """The images below a class folder, as sorted paths relative to it."""
    found = sorted(_walk(str(folder), "", frozenset()))
    if not found:
        raise InputError(f"{folder} has no image ({' '.join(IMAGE_ENDINGS)})")
    return found


def _walk(folder: str, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    """Follows links to folders, but not into a folder that the link lies in."""
    inside = above
    with _scanned(Path(folder)) as entries:
        for entry in entries:
            if not _is_seen(entry):
                continue
            if entry.name.lower().endswith(IMAGE_ENDINGS):
                yield prefix + entry.name
            elif entry.is_dir():
                if inside is above:
                    state = os.stat(folder)  # noqa: PTH116 - one of many thousands
                    inside = above | {(state.st_dev, state.st_ino)}
                target = entry.stat()
                if (target.st_dev, target.st_ino) not in inside:
                    yield from _walk(entry.path, f"{prefix}{entry.name}/", inside)


def _is_seen(entry: os.DirEntry) -> bool:
    """Whether an entry is not hidden.

    Raises:
        InputError: its name is not UTF-8.
    """
    try:
        entry.name.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{printable(entry.path)} has a name that is not UTF-8; rename it"
        ) from error
    return not entry.name.startswith(".")


def _scanned(folder: Path) -> "os._ScandirIterator":
    try:
        return os.scandir(folder)
    except NotADirectoryError as error:
        raise InputError(f"{printable(str(folder))} is a file, not a folder") from error
    except OSError as error:
        raise InputError(f"{printable(str(folder))} cannot be read ({error.strerror})") from error
