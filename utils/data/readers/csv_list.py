"""The user's own images, listed in a CSV file: `path,label[,split]` with a header.

Paths are relative to the CSV's folder, with forward slashes.
"""

import csv
import io
import os
import re
from itertools import compress
from pathlib import Path

from utils.data.readers.folder import SPLITS, short_ids
from utils.data.readers.listing import CONTROL, Listing, clean_name, make_listing, read_text
from utils.errors import InputError, printable

NEEDED, OPTIONAL = ("path", "label"), ("split",)
REMEDY = "save it as CSV in UTF-8"


class _Table:
    """The checked rows of a CSV file, R of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[str, int] = {}  # (R) the line number of each image path, in their order
        self.labels: list[str] = []  # (R) class names
        self.splits: list[str] = []  # (R) all `train` without a column
        self._names: dict[str, str] = {}  # class names as they stand there, and clean

    def add(self, line: int, image: str, label: str, split: str) -> None:
        """Append the fields of a row."""
        image, split = image.strip(), split.strip()
        if _is_suspect(image):
            image = self._plain(line, image)
        name = self._names.get(label)
        if name is None:
            name = self._names[label] = clean_name(label)
        if not image or not name:
            raise InputError(f"{self.path} line {line} has no {'label' if image else 'path'}")
        if not name.isprintable() and CONTROL.search(name):
            raise InputError(f"{self.path} line {line}: {name!r} has control characters")
        if split not in SPLITS:
            raise InputError(
                f"{self.path} line {line}: split {split!r} is none of {', '.join(SPLITS)}"
            )
        first = self.lines.setdefault(image, line)
        if len(self.lines) == len(self.labels):  # no path more than rows before
            raise InputError(f"{self.path} line {line} has {image} again, after line {first}")
        self.labels.append(name)
        self.splits.append(split)

    def _plain(self, line: int, image: str) -> str:
        """An image's path without empty parts and `.`: one file, one path, one split."""
        if CONTROL.search(image):
            raise InputError(f"{self.path} line {line}: {image!r} has control characters")
        parts = image.split("/")
        if re.match(r"/|[A-Za-z]:/|[a-z]+://", image) or "\\" in image or ".." in parts:
            raise InputError(
                f"{self.path} line {line}: {image!r} is no path below the CSV's folder, with "
                "forward slashes"
            )
        return "/".join(part for part in parts if part not in ("", "."))


def find(data_root: Path) -> Path:
    """The CSV file that `data_root` is, or the only one that it holds.

    Raises:
        InputError: there is none, or more than one, or the folder cannot be read.
    """
    try:
        if not data_root.is_dir():
            return data_root
        found = [
            name
            for name in sorted(os.listdir(data_root))  # noqa: PTH208 - names will do
            if name.lower().endswith(".csv") and name[0] != "." and not (data_root / name).is_dir()
        ]
    except OSError as error:
        raise InputError(f"{data_root} cannot be read ({error.strerror})") from error
    if len(found) != 1:
        listed = printable(", ".join([*found[:3], *(["..."] if len(found) > 3 else [])]))
        what = f"{len(found)} CSV files ({listed})" if found else "no CSV file"
        raise InputError(f"{data_root} holds {what}: name one as --data_root")
    return data_root / found[0]


def splits(path: Path) -> tuple[str, ...]:
    """The splits that the rows name, or `train` without a column of splits.

    Raises:
        InputError: the file is missing, no CSV, not UTF-8, has another column, or a row is wrong;
            names the line.
    """
    named = set(_read_table(path).splits)
    return tuple(split for split in SPLITS if split in named)


def read(path: Path, split: str) -> Listing:
    """The rows of one split in the file's order; the sample id is the path without its ending.

    Classes are the labels of all rows, sorted; as numbers, if they all are.

    Raises:
        InputError: as `splits`; a class has no train row, or the split no row.
    """
    table = _read_table(path)
    classes = _classes(table)
    index = {name: number for number, name in enumerate(classes)}
    chosen = [where == split for where in table.splits]
    if not any(chosen):
        raise InputError(f"{path} has no row of split {split}")
    images = list(table.lines)
    return make_listing(
        path,
        classes,
        # Ids of the whole file: those of two splits differ as well.
        list(compress(short_ids(images), chosen)),
        list(compress(images, chosen)),
        [index[label] for label in compress(table.labels, chosen)],
    )


def _is_suspect(image: str) -> bool:
    """Whether a path needs a closer look: a part is empty, starts with a dot, or it is absolute.

    Called once for each row: searches for strings take a fifth of the time of a pattern.
    """
    parts = f"/{image}/"
    return (
        "//" in parts or "/." in parts or ":" in parts or "\\" in parts or not image.isprintable()
    )


def _classes(table: _Table) -> list[str]:
    used = set(zip(table.labels, table.splits, strict=True))
    trained = {label for label, split in used if split == "train"}
    for label, split in sorted(used):
        if label not in trained:
            raise InputError(f"{table.path}: the class {label!r} of split {split} has no train row")
    if all(re.fullmatch(r"[0-9]+", label) for label in trained):
        # By value, without int(), which refuses more than 4300 digits.
        return sorted(trained, key=lambda label: (len(label.lstrip("0")), label.lstrip("0"), label))
    return sorted(trained)


def _read_table(path: Path) -> _Table:
    # strict: a quote that is never closed would swallow the rest of the file.
    reader = csv.reader(io.StringIO(read_text(path, REMEDY), newline=""), strict=True)
    table = _Table(path)
    try:
        columns = _columns(path, next(reader, []))
        image, label = (columns.index(name) for name in NEEDED)
        split = columns.index("split") if "split" in columns else None
        for row in reader:
            if not row:
                continue
            if len(row) != len(columns):
                raise InputError(
                    f"{path} line {reader.line_num} has {len(row)} fields, not {len(columns)}"
                )
            where = "train" if split is None else row[split]
            table.add(reader.line_num, row[image], row[label], where)
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num} is no CSV ({error})") from error
    if not table.lines:
        raise InputError(f"{path} has no row")
    if "train" not in table.splits:
        raise InputError(f"{path} has no row of split train")
    return table


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
