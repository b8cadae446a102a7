"""Read the user's own images, listed in a CSV file: `path,label[,split]` with a header.

Paths are relative to the CSV's folder, with forward slashes.
"""

import csv
import functools
import io
import re
from itertools import compress
from pathlib import Path
from typing import NamedTuple

from utils.data.readers.listing import (
    CONTROL,
    Listing,
    clean_name,
    make_listing,
    read_text,
    sorted_classes,
)
from utils.data.readers.own import SPLITS, short_ids
from utils.errors import InputError, printable

NEEDED, OPTIONAL = ("path", "label"), ("split",)
REMEDY = "save it as CSV in UTF-8"


class _Table(NamedTuple):
    """The checked rows of a CSV file, R of them."""

    images: list[str]  # (R) paths
    labels: list[str]  # (R) class names
    splits: list[str]  # (R) all `train` without a column


def find(data_root: Path) -> Path:
    """Return the CSV file that `data_root` is, or the only one that it holds.

    Raises:
        InputError: there is none, or more than one.
    """
    if not data_root.is_dir():
        return data_root
    found = [
        path.name
        for path in sorted(data_root.iterdir())
        if path.name.lower().endswith(".csv") and path.name[0] != "." and not path.is_dir()
    ]
    if len(found) != 1:
        listed = printable(", ".join([*found[:3], *(["..."] if len(found) > 3 else [])]))
        what = f"{len(found)} CSV files ({listed})" if found else "no CSV file"
        raise InputError(f"{data_root} holds {what}: name one as --data_root")
    return data_root / found[0]


def splits(path: Path) -> tuple[str, ...]:
    """Return the splits that the rows name, or `train` without a column of splits.

    Raises:
        InputError: the file is missing, not a CSV in UTF-8, has another column, or a row is wrong;
            names the line.
    """
    named = set(_read_table(path).splits)
    return tuple(split for split in SPLITS if split in named)


def read(path: Path, split: str) -> Listing:
    """Read the rows of a split in the file's order; the sample id is the path without its ending.

    Classes are the labels of all rows, sorted; as numbers, if they all are.

    Raises:
        InputError: as `splits`, or a class has no train row.
    """
    table = _read_table(path)
    classes = _classes(path, table)
    index = {name: number for number, name in enumerate(classes)}
    chosen = [where == split for where in table.splits]
    return make_listing(
        path,
        classes,
        # Ids of the whole file: those of two splits differ as well.
        list(compress(short_ids(table.images), chosen)),
        list(compress(table.images, chosen)),
        [index[label] for label in compress(table.labels, chosen)],
    )


def _classes(path: Path, table: _Table) -> list[str]:
    used = set(zip(table.labels, table.splits, strict=True))
    trained = {label for label, split in used if split == "train"}
    for label, split in sorted(used):
        if label not in trained:
            raise InputError(f"{path}: the class {label!r} of split {split} has no train row")
    return sorted_classes(trained)


def _read_table(path: Path) -> _Table:
    # strict: a quote that is never closed would swallow the rest of the file.
    reader = csv.reader(io.StringIO(read_text(path, REMEDY), newline=""), strict=True)
    table, lines, class_name = _Table([], [], []), {}, functools.cache(clean_name)
    try:
        columns = _columns(path, next(reader, []))
        at_image, at_label = (columns.index(name) for name in NEEDED)
        at_split = columns.index("split") if "split" in columns else None
        for row in filter(None, reader):
            where = f"{path} line {reader.line_num}"
            if len(row) != len(columns):
                raise InputError(f"{where} has {len(row)} fields, not {len(columns)}")
            image, label = _plain_path(where, row[at_image].strip()), class_name(row[at_label])
            split = "train" if at_split is None else row[at_split].strip()
            if not image or not label:
                raise InputError(f"{where} has no {'label' if image else 'path'}")
            if not label.isprintable() and CONTROL.search(label):
                raise InputError(f"{where}: {label!r} has control characters")
            if split not in SPLITS:
                raise InputError(f"{where}: split {split!r} is not one of {', '.join(SPLITS)}")
            if image in lines:
                raise InputError(f"{where} has {image} again, after line {lines[image]}")
            lines[image] = reader.line_num
            table.images.append(image)
            table.labels.append(label)
            table.splits.append(split)
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num} is not CSV ({error})") from error
    if "train" not in table.splits:
        raise InputError(f"{path} has no row of split train")
    return table


def _plain_path(where: str, image: str) -> str:
    """Return an image's path without empty parts and `.`: one file, one path, one split."""
    if not image.isprintable() and CONTROL.search(image):
        raise InputError(f"{where}: {image!r} has control characters")
    parts = image.split("/")
    is_elsewhere = ":" in image and re.match(r"[A-Za-z]:/|[a-z]+://", image)
    if is_elsewhere or image.startswith("/") or "\\" in image or ".." in parts:
        raise InputError(
            f"{where}: {image!r} is not a path below the CSV's folder, with forward slashes"
        )
    if "" in parts or "." in parts:
        return "/".join(part for part in parts if part not in ("", "."))
    return image


def _columns(path: Path, header: list[str]) -> list[str]:
    columns = [name.strip() for name in header]
    allowed = f"{', '.join(NEEDED)} and perhaps {', '.join(OPTIONAL)}, with commas between them"
    for name in columns:
        if name not in (*NEEDED, *OPTIONAL):
            raise InputError(f"{path} has the column {printable(name)!r}; it may have {allowed}")
        if columns.count(name) > 1:
            raise InputError(f"{path} has the column {name!r} twice")
    for name in NEEDED:
        if name not in columns:
            raise InputError(f"{path} has no column {name!r}; it needs {allowed}")
    return columns
