"""The user's own images: one folder a class, below `train/`, `val/` and `test/` or below the root.

As torchvision's `ImageFolder`, images may lie at any depth below their class. Hidden files, what
systems put beside one's own, and what is no image by its ending are passed over.
"""

import errno
import heapq
import os
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.data.readers.listing import CONTROL, Listing, clean_name, make_listing, without_ending
from utils.errors import InputError, printable

SPLITS = ("train", "val", "test")
# What others call their splits. Read as classes they would make a model of two classes.
MISNAMED = (*SPLITS, "training", "valid", "validation", "testing")
# Pillow's, and torchvision's IMG_EXTENSIONS with GIF.
IMAGE_ENDINGS = (
    ".jpg",
    ".jpeg",
    ".png",
    ".ppm",
    ".bmp",
    ".pgm",
    ".tif",
    ".tiff",
    ".webp",
    ".gif",
)
# Of the Finder's archives, of a NAS (thumbnails), of disks. Names that start with a dot are hidden.
SYSTEM_FOLDERS = frozenset(
    ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
)


def find(root: Path) -> Path:
    """`root`, or its only folder where that holds folders: archives are often unpacked so.

    Read as it stands, such a root would be a single class, made of all splits.

    Raises:
        InputError: a folder cannot be read, or has a name that is not UTF-8.
    """
    folders = _folders(root)
    if len(folders) != 1 or folders[0].lower() in MISNAMED or not _folders(root / folders[0]):
        return root
    return root / folders[0]


def splits(root: Path) -> tuple[str, ...]:
    """The splits that have a folder, or `train` where the root itself holds the classes.

    Raises:
        InputError: the root is no folder, has split folders and others, or no `train/`.
    """
    return tuple(_split_folders(root))


def read(root: Path, split: str) -> Listing:
    """The images of one split, sorted by class and path; the sample id is the path below the root.

    Raises:
        InputError: as `splits`; a class folder without an image, or that train lacks; two folders
            for one class; a folder that cannot be read; a name that is not UTF-8.
    """
    folders = _split_folders(root)
    names = _class_names(folders)
    classes = sorted(names["train"].values())
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
    """The paths without their endings; where two would be equal, their endings stay.

    Different paths give different ids: nor does `a.jpg.png` become `a.jpg` beside an `a.jpg`.
    """
    short = [without_ending(path) for path in paths]
    counts, taken = Counter(short), set(paths)
    return [
        brief if counts[brief] == 1 and brief not in taken else path
        for path, brief in zip(paths, short, strict=True)
    ]


def _split_folders(root: Path) -> dict[str, Path]:
    """The folder that holds the classes of each split; the root where it holds them itself."""
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
    """For each split the class name of each class folder."""
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
    trained = set(names["train"].values())
    for split, owners in names.items():
        for entry, name in owners.items():
            if name not in trained:
                raise InputError(f"{folders[split] / entry}: the class {name!r} is not in train/")
    return names


def _folders(root: Path) -> list[str]:
    """The names of the folders in `root` that are not hidden, sorted."""
    return sorted(_checked_name(entry) for entry in _entries(str(root)) if _is_folder(entry))


def _images(folder: Path) -> list[str]:
    """The images below a class folder, as paths relative to it, sorted by their NFC form.

    Links to folders are followed, but a folder is entered once, however many links lead there:
    links in a circle end and links across do not multiply.
    """
    found: list[str] = []
    folders = [("", str(folder))]  # paths below the class folder, and whole
    links: list[tuple[str, str, str]] = []  # the same after the path's NFC form, as a heap
    entered: set[tuple[int, int]] = set()
    while folders or links:
        # Links last and sorted: which way to a folder counts must not depend on the file system.
        prefix, here = folders.pop() if folders else heapq.heappop(links)[1:]
        identity = _identity(here)
        if identity in entered:
            continue
        entered.add(identity)
        for entry in _entries(here):
            # A folder may be called `x.jpg`. No stat for images, even where they are links.
            is_named = entry.name.lower().endswith(IMAGE_ENDINGS)
            if is_named and not entry.is_dir(follow_symlinks=False):
                found.append(prefix + _checked_name(entry))
            elif _is_folder(entry):
                below = f"{prefix}{_checked_name(entry)}/"
                if entry.is_symlink():
                    heapq.heappush(links, (_composed(below), below, entry.path))
                else:
                    folders.append((below, entry.path))
    if not found:
        raise InputError(f"{folder} has no image ({' '.join(IMAGE_ENDINGS)})")
    return sorted(found, key=_composed)


def _composed(path: str) -> str:
    # Some file systems hand out decomposed names; ids and order must not depend on that.
    return unicodedata.normalize("NFC", path)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """What a folder holds that is neither hidden nor a system's."""
    try:
        with os.scandir(folder) as entries:
            return [
                entry
                for entry in entries
                if not entry.name.startswith(".") and entry.name not in SYSTEM_FOLDERS
            ]
    except NotADirectoryError as error:
        raise InputError(f"{printable(folder)} is a file, not a folder") from error
    except OSError as error:
        raise _unreadable(folder, error) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself, as useless as a broken one
            return False
        raise _unreadable(entry.path, error) from error


def _identity(folder: str) -> tuple[int, int]:
    try:
        state = os.stat(folder)  # noqa: PTH116 - one of many thousands
    except OSError as error:
        raise _unreadable(folder, error) from error
    return state.st_dev, state.st_ino


def _unreadable(path: str, error: OSError) -> InputError:
    return InputError(f"{printable(path)} cannot be read ({error.strerror})")


def _checked_name(entry: os.DirEntry[str]) -> str:
    """The name of a folder or image, unless lists of paths could not hold it."""
    name = entry.name
    if name.isprintable() and "\\" not in name:  # nearly all, and quick
        return name
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{printable(entry.path)} has a name that is not UTF-8; rename it"
        ) from error
    if "\\" in name or CONTROL.search(name):
        raise InputError(
            f"{printable(entry.path)} has a backslash or control character in its name; rename it"
        )
    return name
