"""What every reader gives, and how readers read list files and class names.

A reader is a module with `read(root, split)`: it parses the official list files of one dataset and
opens no image. Whatever is wrong with them is an `InputError` that names file and line.

We read the lists ourselves where torchvision has a class for the dataset: its classes hand out
decoded PIL images and keep their paths private, import torch (2 s) before a wrong path is noticed,
and answer a malformed list with a traceback. The tests hold our readers against torchvision's.
No torch here.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import InputError

# UTF-8 of any length in one block of memory: 85 bytes a path of iNaturalist where `<U` takes 340,
# and no Python objects whose reference counts would copy a forked worker's memory.
TEXT = np.dtypes.StringDType()
# What no name may have: it would break lines in two, or end a path.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
FETCH = "fetch the whole dataset"


@dataclass(frozen=True)
class Listing:
    """The samples of one official split in the official order, S of them."""

    classes: tuple[str, ...]  # of the whole dataset, in index order
    ids: np.ndarray  # (S,) text, stable names of the samples
    paths: np.ndarray  # (S,) text, relative to the data root, with forward slashes
    labels: np.ndarray  # (S,) int64, from 0
    # For each class the names above it in the dataset's own hierarchy, nearest first; empty: none.
    parents: tuple[tuple[str, ...], ...] = ()


def make_listing(
    source: Path,
    classes: Sequence[str],
    ids: Sequence[str],
    paths: Sequence[str],
    labels: Sequence[int] | np.ndarray,
    parents: Sequence[Sequence[str]] = (),
) -> Listing:
    """A checked listing.

    Args:
        source: the file or folder to blame.
        classes: names in index order, already clean.
        ids: of the samples; must be unique.
        paths: relative to the data root; must stay below it.
        labels: from 0.
        parents: names above each class, or nothing.

    Raises:
        InputError: no sample, a repeated id or class name, a label without a class, a path that
            leads out of the data root.
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
            raise InputError(f"{source}: {path!r} is no path below the data root")
    return Listing(
        tuple(classes),
        np.array(ids, dtype=TEXT),
        np.array(paths, dtype=TEXT),
        numbers,
        tuple(tuple(names) for names in parents),
    )


def _check_no_repeats(source: Path, what: str, values: Sequence[str]) -> None:
    if len(set(values)) == len(values):
        return
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise InputError(f"{source} has the {what} {value!r} more than once")
        seen.add(value)


def clean_name(raw: str) -> str:
    """A class name for people: underscores are spaces, one space between words, NFC.

    What a dataset puts in front of its names to number them (`001.`, `n02085620-`) is for its
    reader to take away.
    """
    return re.sub(r"[\s_]+", " ", unicodedata.normalize("NFC", raw)).strip()


def unpacked(root: Path, name: str, archive: str = "") -> str:
    """Where below `root` the folder `name` lies: there, or in one that is called like its archive.

    Copies of datasets that go round often have each archive unpacked so: `images/images/`.
    """
    nested = f"{archive or name}/{name}"
    return nested if (root / nested).is_dir() else name


def read_bytes(path: Path, remedy: str = FETCH) -> bytes:
    """The bytes of a list file.

    Args:
        path: the file.
        remedy: what to do about one that is not there, the end of the error message.

    Raises:
        InputError: the file is missing, a folder or unreadable.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; {remedy}") from error
    except IsADirectoryError as error:
        raise InputError(f"{path} is a folder, not a file; {remedy}") from error
    except OSError as error:  # to fetch it again would not help
        raise InputError(f"{path} cannot be read ({error.strerror})") from error


def read_text(path: Path, remedy: str = FETCH) -> str:
    """The UTF-8 text of a list file, every line ending a newline; `remedy` as in `read_bytes`.

    Raises:
        InputError: as `read_bytes`, or the file is not UTF-8.
    """
    try:
        text = read_bytes(path, remedy).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start}); {remedy}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a list file without blanks around them, numbered from 1, but the empty ones.

    Raises:
        InputError: as `read_text`, there is no line, or one has control characters.
    """
    stripped = (line.strip() for line in read_text(path).split("\n"))
    lines = [(number, line) for number, line in enumerate(stripped, start=1) if line]
    if not lines:
        raise InputError(f"{path} is empty")
    for number, line in lines:
        if not line.isprintable() and CONTROL.search(line):
            raise InputError(f"{path} line {number}: {line!r:.100} has control characters")
    return lines


def read_pairs(path: Path) -> Iterator[tuple[int, str, str]]:
    """Number, key and value of each `key value` line of a list file; the value may hold blanks.

    Raises:
        InputError: as `read_lines`, or a line has no value; names it.
    """
    for number, line in read_lines(path):
        key, _, value = line.partition(" ")
        if not value.strip():
            raise InputError(f"{path} line {number}: {line!r:.100} is no pair of key and value")
        yield number, key, value.strip()


def read_table(path: Path) -> dict[str, str]:
    """The `key value` lines of a list file as a dict in the file's order.

    Raises:
        InputError: as `read_pairs`, or a key comes twice.
    """
    table: dict[str, str] = {}
    for _, key, value in read_pairs(path):
        if key in table:
            raise InputError(f"{path} has the key {key} more than once")
        table[key] = value
    return table


def to_int(path: Path, what: str, text: str) -> int:
    """A whole number of a list file.

    Raises:
        InputError: `text` is none; names the file and `what`.
    """
    if not re.fullmatch(r"[0-9]{1,18}", text):  # int() would take 1_0 and other scripts' digits
        raise InputError(f"{path}: {what} is {text!r}, not a whole number")
    return int(text)


def same_keys(
    path: Path, table: Mapping[str, object], of: Path, keys: Mapping[str, object]
) -> None:
    """Refuse list files that do not speak of the same samples.

    Raises:
        InputError: `table`, of `path`, lacks one of `keys`, of `of`, or has one more.
    """
    for key in keys:
        if key not in table:
            raise InputError(f"{path} lacks {key}, which {of} has")
    for key in table:
        if key not in keys:
            raise InputError(f"{path} has {key}, which {of} lacks")


def check_not_shared(path: Path, what: str, table: Mapping[str, str]) -> None:
    """Refuse a list file that gives one value to two keys.

    Raises:
        InputError: names `path`, both keys, and `what` they share.
    """
    if len(set(table.values())) == len(table):
        return
    owners: dict[str, str] = {}
    for key, value in table.items():
        if value in owners:
            raise InputError(f"{path} gives {owners[value]} and {key} the same {what} {value!r}")
        owners[value] = key


def without_ending(path: str) -> str:
    """A path without the ending of its file name; a name that is all ending stays."""
    folder, slash, name = path.rpartition("/")
    stem, dot, _ = name.rpartition(".")
    return folder + slash + (stem if dot and stem else name)
