"""The user's own images, listed in a CSV file: `path,label[,split]` with a header.

Paths are relative to the CSV's folder, with forward slashes.
"""

import csv
import io
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from utils.errors import InputError
from utils.readers.listing import (
    Listing,
    clean_name,
    make_listing,
    printable,
    read_text,
    without_ending,
)

SPLITS = ("train", "val", "test")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
NEEDED, OPTIONAL = ("path", "label"), ("split",)


class _Table(NamedTuple):
    """The rows of a CSV file, R of them."""

    paths: list[str]
    labels: list[str]
    splits: list[str]  # all `train` without a column


def find(data_root: Path) -> Path:
    """The CSV file that `data_root` is, or the only one that it holds.

    Raises:
        InputError: there is none, or more than one.
    """
    if not data_root.is_dir():
        return data_root
    found = sorted(
        path.name for path in data_root.iterdir()
        if path.suffix.lower() == ".csv" and not path.name.startswith(".")
    )  # fmt: skip
    if len(found) != 1:
        what = f"{len(found)} CSV files, {found[0]} first" if found else "no CSV file"
        raise InputError(f"{data_root} holds {what}: name one as --data_root")
    return data_root / found[0]


def splits(path: Path) -> tuple[str, ...]:
    """The splits that the rows name, or `train` without a column of splits.

    Raises:
        InputError: as `read`.
    """
    named = set(_read_table(path).splits)
    return tuple(split for split in SPLITS if split in named)


def read(path: Path, split: str) -> Listing:
    """The rows of one split in the file's order; the sample id is the path without its ending.

    Classes are the labels of all rows, sorted; as numbers, if they all are.

    Raises:
        InputError: the file is missing, no CSV, not UTF-8, has another column, or a row is wrong;
            names the line.
    """
    table = _read_table(path)
    classes = _classes(path, table)
    index = {name: number for number, name in enumerate(classes)}
    short = [without_ending(name) for name in table.paths]
    counts = Counter(short)
    rows = [
        (brief if counts[brief] == 1 else whole, whole, index[label])
        for brief, whole, label, where in zip(
            short, table.paths, table.labels, table.splits, strict=True
        )
        if where == split
    ]
    if not rows:
        raise InputError(f"{path} has no row of split {split}")
    ids, paths, labels = zip(*rows, strict=True)
    return make_listing(path, classes, ids, paths, labels)


def _classes(path: Path, table: _Table) -> list[str]:
    trained = {
        label for label, split in zip(table.labels, table.splits, strict=True) if split == "train"
    }
    for label, split in zip(table.labels, table.splits, strict=True):
        if label not in trained:
            raise InputError(f"{path}: the class {label!r} of split {split} has no train row")
    are_numbers = all(label.isdecimal() and label.isascii() for label in trained)
    return sorted(trained, key=(lambda label: (int(label), label)) if are_numbers else None)


def _read_table(path: Path) -> _Table:
    # strict: a quote that is never closed would swallow the rest of the file.
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    table, seen = _Table([], [], []), {}
    try:
        columns = _columns(path, next(reader, []))
        for row in reader:
            if not row:
                continue
            if len(row) != len(columns):
                raise InputError(
                    f"{path} line {reader.line_num} has {len(row)} fields, not {len(columns)}"
                )
            _add(table, dict(zip(columns, row, strict=True)), seen, path, reader.line_num)
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num} is no CSV ({error})") from error
    if not table.paths:
        raise InputError(f"{path} has no row")
    if "train" not in table.splits:
        raise InputError(f"{path} has no row of split train")
    return table


def _columns(path: Path, header: list[str]) -> list[str]:
    columns = [name.strip() for name in header]
    allowed = ", ".join(NEEDED) + f" and perhaps {', '.join(OPTIONAL)}"
    for name in columns:
        if name not in (*NEEDED, *OPTIONAL):
            raise InputError(f"{path} has the column {printable(name)!r}; it may have {allowed}")
        if columns.count(name) > 1:
            raise InputError(f"{path} has the column {name!r} twice")
    for name in NEEDED:
        if name not in columns:
            raise InputError(f"{path} has no column {name!r}; it needs {allowed}")
    return columns


def _add(table: _Table, row: dict[str, str], seen: dict[str, int], path: Path, line: int) -> None:
    """Append a checked row; `seen` has the lines of the paths before."""
    name, label = row["path"].strip(), clean_name(row["label"])
    split = row.get("split", "train").strip()
    if not name or not label:
        raise InputError(f"{path} line {line} has no {'label' if name else 'path'}")
    if CONTROL.search(name) or CONTROL.search(label):
        raise InputError(f"{path} line {line} has control characters: {printable(name)}")
    if name.startswith("/") or "\\" in name or ".." in name.split("/"):
        raise InputError(
            f"{path} line {line}: {name!r} is no path below the CSV's folder, with forward slashes"
        )
    if split not in SPLITS:
        raise InputError(f"{path} line {line}: split {split!r} is none of {', '.join(SPLITS)}")
    if name in seen:
        raise InputError(f"{path} line {line} has {name} again, after line {seen[name]}")
    seen[name] = line
    table.paths.append(name)
    table.labels.append(label)
    table.splits.append(split)
