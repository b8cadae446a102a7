"""Define what every reader returns, and read list files and class names.

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
from utils.data.readers.list_checks import check_not_shared
from utils.errors import InputError
from utils.files import read_regular

# UTF-8 of any length in one block of memory: 85 bytes a path of iNaturalist where `<U` takes 340,
# and no Python objects whose reference counts would copy a forked worker's memory.
TEXT = np.dtypes.StringDType()
# What no name may have: it would break lines in two, or end a path.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
FETCH = "fetch the whole dataset"
# How files begin that are no UTF-8, and what they are.
UTF16 = b"\xff\xfe"
FOREIGN = {
    UTF16: "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"PK\x03\x04": "an Excel workbook or another ZIP archive",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
}
# What the parsers of scipy and pickle raise for files that are empty, cut, damaged or foreign.
PARSER_ERRORS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    NameError,
    OSError,
    RuntimeError,
    SystemError,
    TypeError,
    ValueError,
)


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
        InputError: a name is empty, or two classes have the same.
    """
    clean = {f"{what} {key}": clean_name(name) for key, name in names.items()}
    for key, name in clean.items():
        if not name:
            raise InputError(f"{path} gives {key} no name")
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


# --- List files -----------------------------------------------------------------------------------


def read_bytes(path: Path, remedy: str = FETCH) -> bytes:
    """Return the bytes of a list file.

    Args:
        path: the file.
        remedy: what to do if it is missing or damaged, the end of the error message.

    Raises:
        InputError: the file is missing or a folder.
        OSError: it may not be read.
    """
    try:
        return read_regular(path)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; {remedy}") from error
    except IsADirectoryError as error:
        raise InputError(f"{path} is a folder, not a file; {remedy}") from error


def read_text(path: Path, remedy: str = FETCH) -> str:
    """Return the UTF-8 text of a list file, with `\\n` for every line ending.

    Raises:
        InputError: as `read_bytes`, or the file is not UTF-8.
    """
    data = read_bytes(path, remedy)
    for start, what in FOREIGN.items():
        if data.startswith(start) or (start == UTF16 and b"\0" in data[:2]):
            raise InputError(f"{path} is {what}, not UTF-8; {remedy}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = len((data[: error.start] + b".").splitlines())
        raise InputError(
            f"{path} is not UTF-8 (line {line}, byte {error.start}); {remedy}"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Return number, from 1, and stripped text of each line of a list file that is not empty.

    Raises:
        InputError: as `read_text`, or there is no line, or one has control characters.
    """
    stripped = (line.strip() for line in read_text(path).split("\n"))
    lines = [(number, line) for number, line in enumerate(stripped, start=1) if line]
    if not lines:
        raise InputError(f"{path} is empty")
    for number, line in lines:
        if not line.isprintable() and CONTROL.search(line):
            raise InputError(f"{path} line {number}: {line!r:.100} has control characters")
    return lines


def read_table(path: Path) -> dict[str, str]:
    """Return the `key value` lines of a list file in its order; a value may hold spaces.

    Raises:
        InputError: as `read_lines`, or a line has no value, or a key comes twice.
    """
    table: dict[str, str] = {}
    for number, line in read_lines(path):
        key, _, value = line.partition(" ")
        if not value:
            raise InputError(f"{path} line {number}: {line!r:.100} is not a key and a value")
        if key in table:
            raise InputError(f"{path} has the key {key} more than once")
        table[key] = value.strip()
    return table


def to_int(path: Path, what: str, text: str) -> int:
    """Return the whole number that stands in a list file.

    Raises:
        InputError: `text` is not a whole number; names the file and `what`.
    """
    if not re.fullmatch(r"[0-9]{1,18}", text):  # int() would take 1_0 and other scripts' digits
        raise InputError(f"{path}: {what} is {text!r}, not a whole number")
    return int(text)
