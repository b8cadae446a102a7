"""Read the user's own images: one folder a class, in `train/`, `val/` and `test/` or in the root.

As torchvision's `ImageFolder`, images may lie at any depth below their class. Hidden files, what
systems put beside one's own, and what is not an image by its ending are passed over.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from utils.data.formats import IMAGE_ENDINGS
from utils.data.readers.list_files import CONTROL
from utils.data.readers.listing import (
    Listing,
    clean_name,
    make_listing,
    sorted_classes,
    without_ending,
)
from utils.errors import InputError, printable

SPLITS = ("train", "val", "test")
# What others call their splits. Read as classes they would make a model of two classes.
MISNAMED = (*SPLITS, "training", "valid", "validation", "testing")
# Of the Finder's archives, of a NAS (thumbnails), of disks. Names that start with a dot are hidden.
SYSTEM_FOLDERS = frozenset(
    ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
)


def find(root: Path) -> Path:
    """Return `root`, or its only folder if that holds folders: archives are often unpacked so.

    Read as it stands, such a root would be a single class, made of all splits.
    """
    folders = _folders(root)
    if len(folders) != 1 or folders[0].lower() in MISNAMED or not _folders(root / folders[0]):
        return root
    return root / folders[0]


def splits(root: Path) -> tuple[str, ...]:
    """Return the splits that have a folder, or `train` if the root itself holds the classes.

    Raises:
        InputError: the root is not a folder, has split folders and others, or no `train/`.
    """
    return tuple(_split_folders(root))


def read(root: Path, split: str) -> Listing:
    """Read a split, sorted by class and path; the sample id is the path below the root.

    Raises:
        InputError: as `splits`; a class folder has no image, or train lacks it; two folders are of
            one class; a name is not UTF-8.
    """
    folders = _split_folders(root)
    names = _class_names(folders)
    classes = sorted_classes(names["train"].values())
    index = {name: number for number, name in enumerate(classes)}
    prefix = "" if folders[split] == root else f"{split}/"
    paths, labels = [], []
    for folder, name in sorted(names[split].items(), key=lambda item: item[1]):
        found = _images(folders[split] / folder)
        paths += [f"{prefix}{folder}/{path}" for path in found]
        labels += [index[name]] * len(found)
    # With the name of the split: `train/rose/1.jpg` and `val/rose/1.jpg` are two samples.
    ids = short_ids([_composed(path) for path in paths])
    return make_listing(folders[split], classes, ids, paths, labels)


def short_ids(paths: Sequence[str]) -> list[str]:
    """Return the paths without their endings, but with them if two would be equal.

    Different paths give different ids: nor does `a.jpg.png` become `a.jpg` beside an `a.jpg`.
    """
    short = [without_ending(path) for path in paths]
    counts, taken = Counter(short), set(paths)
    return [
        brief if counts[brief] == 1 and brief not in taken else path
        for path, brief in zip(paths, short, strict=True)
    ]


def _split_folders(root: Path) -> dict[str, Path]:
    """Return the folder that holds the classes of each split; the root if it holds them itself."""
    folders = _folders(root)
    found = [split for split in SPLITS if split in folders]
    for name in folders:
        if name not in SPLITS and name.lower() in MISNAMED:
            raise InputError(
                f"{root} has {name}/: splits are called train, val and test; rename it"
            )
    if not found:
        return {"train": root}
    others = [name for name in folders if name not in SPLITS]
    if others:
        raise InputError(
            f"{root} has {found[0]}/ and {others[0]}/: put either splits or classes into it"
        )
    if "train" not in found:
        raise InputError(f"{root} has {found[0]}/ but no train/")
    return {split: root / split for split in found}


def _class_names(folders: Mapping[str, Path]) -> dict[str, dict[str, str]]:
    """Return for each split the class name of each class folder."""
    names: dict[str, dict[str, str]] = {}
    for split, folder in folders.items():
        owners: dict[str, str] = {}
        for entry in _folders(folder):
            name = clean_name(entry)
            if not name:
                raise InputError(f"{folder}/{entry} does not name a class; rename it")
            if name in owners:
                raise InputError(
                    f"{folder} has two folders for the class {name!r}: {owners[name]}, {entry}"
                )
            owners[name] = entry
        if not owners:
            raise InputError(f"{folder} has no class folder: put images into {folder}/<class>/")
        names[split] = {entry: name for name, entry in owners.items()}
    trained = set(names["train"].values())
    for split, owners in names.items():
        for entry, name in owners.items():
            if name not in trained:
                raise InputError(f"{folders[split] / entry}: the class {name!r} is not in train/")
    return names


def _folders(root: Path) -> list[str]:
    """Return the names of the folders in `root` that are not hidden, sorted."""
    _, folders, _ = next(_walk(root))
    return folders


def _images(folder: Path) -> list[str]:
    """Return the images below a class folder, as paths relative to it, sorted by their NFC form."""
    found = [
        below + _checked_name(folder / below, name)
        for below, _, files in _walk(folder)
        for name in files
        if name.lower().endswith(IMAGE_ENDINGS) and name[0] != "."
    ]
    if not found:
        raise InputError(f"{folder} has no image ({' '.join(IMAGE_ENDINGS)})")
    return sorted(found, key=_composed)


def _walk(root: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield prefix, sorted folders and files of `root` and of every folder below it.

    Hidden folders are left out. Links to folders are followed, but a folder is entered once,
    however many links lead there.

    Raises:
        InputError: a list of paths could not hold a folder's name.
        OSError: a folder cannot be read.
    """
    entered: set[tuple[int, int]] = set()
    links = [""]  # last and sorted: which way leads to a folder must not depend on the file system
    while links:
        links.sort(key=_composed, reverse=True)
        for here, folders, files in os.walk(root / links.pop(), onerror=_raise):
            state = os.stat(here)  # noqa: PTH116 - one of many thousands
            shown = [name for name in folders if name[0] != "." and name not in SYSTEM_FOLDERS]
            folders.clear()  # in place, to tell `os.walk` where to go
            if (state.st_dev, state.st_ino) in entered:
                continue
            entered.add((state.st_dev, state.st_ino))
            folders += sorted(_checked_name(Path(here), name) for name in shown)
            prefix = f"{here[len(str(root)) :].lstrip('/')}/".lstrip("/")
            links += [prefix + name for name in folders if Path(here, name).is_symlink()]
            yield prefix, folders, files


def _raise(error: OSError) -> None:
    raise error


def _composed(path: str) -> str:
    # Some file systems hand out decomposed names; ids and order must not depend on that.
    return unicodedata.normalize("NFC", path)


def _checked_name(folder: Path, name: str) -> str:
    """Return the name of a folder or image, or raise an error if lists could not hold it."""
    if name.isprintable() and "\\" not in name:  # nearly all, and quick
        return name
    path = printable(f"{folder}/{name}")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{path} has a name that is not UTF-8; rename it") from error
    if "\\" in name or CONTROL.search(name):
        raise InputError(f"{path} has a backslash or control character in its name; rename it")
    return name
