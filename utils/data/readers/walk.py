"""Walk through a user's folders: find the images, and keep account of what is passed over.

Passed over are files that are not images by their ending, and folders that our own programs wrote.
Hidden files and what systems put beside one's own are not counted.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from utils.data.formats import IMAGE_ENDINGS
from utils.data.readers.list_files import CONTROL
from utils.data_utils import identity
from utils.errors import InputError, printable
from utils.ownership import is_ours

# Of the Finder's archives, of a NAS (thumbnails), of disks. Names that start with a dot are hidden.
SYSTEM_FOLDERS = frozenset(
    ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
)
SYSTEM_FILES = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"))
# `.IMG_1.HEIC.icloud` stands for a photograph that a Mac has not fetched yet: to be said.
NOT_FETCHED = ".icloud"
SHOWN, ENDINGS_SHOWN, LONGEST_ENDING = 3, 8, 10


@dataclass
class PassedOver:
    """What lies in a folder and is not read."""

    endings: Counter[str] = field(default_factory=Counter)  # of files that are not images
    loose: list[str] = field(default_factory=list)  # images in no class folder
    ours: list[str] = field(default_factory=list)  # folders that our programs wrote

    def add(self, other: "PassedOver") -> None:
        """Add what lies in a folder below."""
        self.endings += other.endings
        self.loose += other.loose
        self.ours += other.ours

    def described(self, folder: Path) -> str:
        """Return what was passed over in `folder` on one line; empty if nothing was."""
        parts = []
        if self.ours:
            names = [path.removeprefix(f"{folder}/") for path in self.ours]
            parts.append(f"{some_of(names)} (our own programs wrote it)")
        if self.loose:
            parts.append(f"images in no class folder: {len(self.loose)} ({some_of(self.loose)})")
        if self.endings:
            parts.append(f"files that are not images by their ending: {self.by_ending()}")
        return "; ".join(parts)

    def by_ending(self) -> str:
        """Return how many files have which ending, most first: `.mp4 12, .txt 1`."""
        ordered = sorted(self.endings.items(), key=lambda item: (-item[1], item[0]))
        shown = [f"{printable(ending)} {count}" for ending, count in ordered[:ENDINGS_SHOWN]]
        rest = sum(count for _, count in ordered[ENDINGS_SHOWN:])
        return ", ".join([*shown, *([f"others {rest}"] if rest else [])])


def some_of(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = len(names) - SHOWN
    shown = ", ".join(map(printable, names[:SHOWN]))
    return f"{shown} and {more} more" if more > 0 else shown


def images_below(folder: Path, passed: PassedOver) -> list[str]:
    """Return the images below a folder, as paths relative to it, sorted by their NFC form."""
    return sorted(
        (below + name for below, _, images in walk(folder, passed) for name in images),
        key=composed,
    )


def walk(root: Path, passed: PassedOver) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield prefix, sorted folders and images of `root` and of every folder below it.

    Hidden folders and our own are left out. Links to folders are followed, but a folder is entered
    once, however many links lead there.

    Args:
        root: folder to begin with, read whosever it is.
        passed: what is left out is added to it.

    Raises:
        InputError: a list of paths could not hold the name of a folder or image.
        OSError: a folder cannot be read.
    """
    # No link leads out of a class. `a/..` has itself among its parents.
    parents = (root.resolve() if ".." in root.parts else root.absolute()).parents
    entered = set(map(identity, parents))
    links = [""]  # last and sorted: which way leads to a folder must not depend on the file system
    while links:
        links.sort(key=composed, reverse=True)
        for here, folders, files in os.walk(root / links.pop(), onerror=_raise):
            itself = identity(here)
            shown = [name for name in folders if name[0] != "." and name not in SYSTEM_FOLDERS]
            folders.clear()  # in place, to tell `os.walk` where to go
            if itself in entered:
                continue
            entered.add(itself)
            for name in sorted(shown):
                if is_ours(Path(here, _checked_name(here, name))):
                    passed.ours.append(f"{here}/{name}/")
                else:
                    folders.append(name)
            prefix = f"{here[len(str(root)) :].lstrip('/')}/".lstrip("/")
            links += [prefix + name for name in folders if Path(here, name).is_symlink()]
            yield prefix, folders, _images_of(here, files, passed)


def composed(path: str) -> str:
    """Return the NFC form of a path.

    Some file systems hand out decomposed names; ids and order must not depend on that.
    """
    return unicodedata.normalize("NFC", path)


def _images_of(folder: str, files: Sequence[str], passed: PassedOver) -> list[str]:
    """Return the images among the `files` of a folder; count the others."""
    images = []
    for name in files:
        lower = name.lower()
        is_hidden = name[0] == "."
        if lower.endswith(IMAGE_ENDINGS) and not is_hidden:
            images.append(_checked_name(folder, name))
        elif lower.endswith(NOT_FETCHED) or not (is_hidden or lower in SYSTEM_FILES):
            passed.endings[_ending(lower)] += 1
    return images


def _ending(name: str) -> str:
    _, dot, ending = name.rpartition(".")
    is_word = 0 < len(ending) < LONGEST_ENDING and " " not in ending
    return dot + ending if dot and is_word else "no ending"


def _raise(error: OSError) -> None:
    raise error


def _checked_name(folder: str, name: str) -> str:
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
