"""Define what every reader returns, and clean class names.

A reader is a module with `read(root, split)`: it parses the official list files of one dataset and
opens no image. Whatever is wrong with them is an `InputError` that names the file.

We read the lists ourselves where torchvision has a class for the dataset: its classes hand out
decoded PIL images and keep their paths private, import torch (2 s) before a wrong path is noticed,
and answer a malformed list with a traceback. The tests hold our readers against torchvision's.
No torch here.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.data.readers.file_names import find_files
from utils.data.readers.list_files import check_not_shared
from utils.errors import InputError

# UTF-8 of any length in one block of memory: 85 bytes a path of iNaturalist where `<U` takes 340,
# and no Python objects whose reference counts would copy a forked worker's memory.
TEXT = np.dtypes.StringDType()


@dataclass(frozen=True)
class Listing:
    """The samples of one official split in the official order, S of them."""

    classes: tuple[str, ...]  # of the whole dataset, in index order
    ids: np.ndarray  # (S,) text, stable names of the samples
    paths: np.ndarray  # (S,) text, relative to the data root, with forward slashes
    labels: np.ndarray  # (S,) int64, from 0
    # For each class the names above it in the dataset's own hierarchy, nearest first; empty: none.
    parents: tuple[tuple[str, ...], ...] = ()
    # Lines for people: what was passed over, how a list was understood.
    notes: tuple[str, ...] = ()


def make_listing(
    source: Path,
    classes: Sequence[str],
    ids: Sequence[str],
    paths: Sequence[str],
    labels: Sequence[int] | np.ndarray,
    parents: Sequence[Sequence[str]] = (),
    root: Path | None = None,
) -> Listing:
    """Check what a reader found, and return it as a listing.

    Args:
        source: file or folder to blame.
        classes: names in index order, already clean.
        ids: sample ids, which must be unique.
        paths: paths relative to the data root, below which they must stay.
        labels: class indices, from 0.
        parents: names above each class, or nothing.
        root: data root in which files may be called a little otherwise than in the list; None:
            paths are those of files, or of files that are still to be made.

    Raises:
        InputError: there is no sample, an id or a class name is repeated, a label has no class, a
            path leads out of the data root, or two paths mean one file.
    """
    if not len(ids):
        raise InputError(f"{source} lists no image")
    _check_no_repeats(source, "class name", classes)
    _check_no_repeats(source, "image", ids)
    numbers = np.asarray(labels, dtype=np.int64)
    wrong = np.flatnonzero((numbers < 0) | (numbers >= len(classes)))
    if len(wrong):
        first = int(wrong[0])
        raise InputError(
            f"{source}: the label of {ids[first]} is {numbers[first]} counted from 0, but there "
            f"are {len(classes)} classes"
        )
    for path in paths:
        if path.startswith("/") or "\\" in path or ".." in path.split("/"):
            raise InputError(f"{source}: {path!r} is not a path below the data root")
    notes: tuple[str, ...] = ()
    if root is not None:
        found = find_files(root, paths)
        notes, paths = found.notes(source, paths), found.paths
        if found.other:
            _check_no_repeats(source, "file", paths)
    return Listing(
        tuple(classes),
        np.asarray(ids, dtype=TEXT),
        np.asarray(paths, dtype=TEXT),
        numbers,
        tuple(tuple(names) for names in parents),
        notes,
    )


def _check_no_repeats(source: Path, what: str, values: Sequence[str]) -> None:
    if len(set(values)) == len(values):
        return
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise InputError(f"{source} has the {what} {value!r} more than once")
        seen.add(value)


# --- Names ----------------------------------------------------------------------------------------


def sorted_classes(names: Iterable[str]) -> list[str]:
    """Return class names in index order: as numbers if all are digits, else as text.

    Every reader of the user's own data orders classes so: a folder and a CSV of the same images
    give the same labels.
    """
    unique = set(names)
    if all(re.fullmatch(r"[0-9]+", name) for name in unique):
        # By value, without int(), which refuses more than 4300 digits.
        return sorted(unique, key=lambda name: (len(name.lstrip("0")), name.lstrip("0"), name))
    return sorted(unique)


def clean_name(raw: str) -> str:
    """Return a class name for people: underscores are spaces, one space between words, NFC.

    Each reader removes what its dataset puts in front of a name (`001.`, `n02085620-`).
    """
    return re.sub(r"[\s_]+", " ", unicodedata.normalize("NFC", raw)).strip()


def clean_names(path: Path, names: Mapping[object, str], what: str = "class") -> list[str]:
    """Return the class names for people, in their order.

    Args:
        path: file that has the names.
        names: raw names by class id, line or whatever finds them in the file.
        what: what the keys are.

    Raises:
        InputError: a name is empty or has what cannot be seen, or two classes have the same.
    """
    clean = {f"{what} {key}": clean_name(name) for key, name in names.items()}
    for key, name in clean.items():
        if not name:
            raise InputError(f"{path} gives {key} no name")
        if not name.isprintable():
            raise InputError(f"{path} gives {key} the name {name!r}, with what cannot be seen")
    check_not_shared(path, "class name", clean)
    return list(clean.values())


def unpacked(root: Path, name: str, archive: str = "") -> str:
    """Return where below `root` the folder `name` lies: there, or in one named like its archive.

    Copies of datasets that people pass on often have each archive unpacked so: `images/images/`.
    """
    nested = f"{archive or name}/{name}"
    return nested if (root / nested).is_dir() else name


def without_ending(path: str) -> str:
    """Return a path without the ending of its file name; a name that is all ending stays."""
    folder, slash, name = path.rpartition("/")
    stem, dot, _ = name.rpartition(".")
    return folder + slash + (stem if dot and stem else name)
