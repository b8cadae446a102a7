"""Read the user's own images, listed in a CSV file: `path,label[,split]` with a header.

Paths are relative to the CSV's folder; absolute ones that lead below it will do. `csv_table.py`
knows what else a column may be called.
"""

import functools
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.data.formats import IMAGE_ENDINGS
from utils.data.readers.class_names import check_class_name, check_distinct
from utils.data.readers.csv_table import REMEDY, open_table
from utils.data.readers.file_names import find_files
from utils.data.readers.list_files import CONTROL, read_text
from utils.data.readers.listing import TEXT, Listing, make_listing, sorted_classes
from utils.data.readers.own import SPELLINGS, SPLITS, short_ids
from utils.errors import InputError, near_miss

FOREIGN_ENDINGS = (".xlsx", ".xls", ".ods", ".numbers")


class _Rows(NamedTuple):
    """The R rows of one split."""

    ids: np.ndarray  # (R,) text
    paths: np.ndarray  # (R,) text, below the CSV's folder
    labels: np.ndarray  # (R,) int64, index into the names of `_List`
    lines: np.ndarray  # (R,) int64, from 1


class _List(NamedTuple):
    """A CSV file whose rows are checked; whether the images are there is not."""

    names: list[str]  # of the classes, as they come
    rows: dict[str, _Rows]  # by split
    notes: tuple[str, ...]


def find(data_root: Path) -> Path:
    """Return the CSV file that `data_root` is, or the only one that it holds.

    Raises:
        InputError: there is none, or more than one.
    """
    if not data_root.is_dir():
        return data_root
    names = sorted(path.name for path in data_root.iterdir() if path.name[0] != ".")
    found = [
        name
        for name in names
        if name.lower().endswith((".csv", ".tsv")) and not (data_root / name).is_dir()
    ]
    if len(found) == 1:
        return data_root / found[0]
    if not found:
        others = [name for name in names if name.lower().endswith(FOREIGN_ENDINGS)]
        hint = f" (of {others[0]!r}: {REMEDY})" if others else ""
        raise InputError(f"{data_root} holds no CSV file: name one as --data_root{hint}")
    listed = ", ".join([*found[:3], *(["..."] if len(found) > 3 else [])])
    raise InputError(
        f"{data_root} holds {len(found)} CSV files ({listed}): name one as --data_root"
    )


def splits(path: Path) -> tuple[str, ...]:
    """Return the splits that the rows name, or `train` without a column of splits.

    Raises:
        InputError: the file is missing, not a CSV in UTF-8, has no column of paths or labels, or a
            row is wrong; names the line.
    """
    return tuple(_read_list(path).rows)


def read(path: Path, split: str) -> Listing:
    """Read the rows of a split in the file's order; the sample id is the path without its ending.

    Its classes are the labels of the split and of train; of all splits without a row of train.

    Raises:
        InputError: as `splits`; no row is of this split; two rows mean one file; a file is not an
            image by its ending.
    """
    listed = _read_list(path)
    if split not in listed.rows:
        raise InputError(f"{path} has no row of split {split}, only of {', '.join(listed.rows)}")
    rows = listed.rows[split]
    found = find_files(path.parent, rows.paths)
    if found.other:
        _check_one_row_each(path, listed)
    for position, image in enumerate(found.paths):
        if not image.endswith(IMAGE_ENDINGS):  # quick, and false for nearly all
            _check_ending(f"{path} line {rows.lines[position]}", image)
    known = [rows, listed.rows["train"]] if "train" in listed.rows else listed.rows.values()
    codes = np.unique(np.concatenate([each.labels for each in known]))
    classes = sorted_classes(listed.names[code] for code in codes)
    index = {name: number for number, name in enumerate(classes)}
    label_of = np.array([index.get(name, -1) for name in listed.names])
    listing = make_listing(path, classes, rows.ids, found.paths, label_of[rows.labels])
    lines = found.notes(path, rows.paths, lambda position: f"line {rows.lines[position]}: ")
    return replace(listing, notes=(*listed.notes, *lines))


def _check_one_row_each(path: Path, listed: _List) -> None:
    """Raise an error if two rows, of whatever splits, mean one file."""
    line_of: dict[str, int] = {}
    for rows in listed.rows.values():
        files = find_files(path.parent, rows.paths).paths
        for image, line in zip(files, rows.lines.tolist(), strict=True):
            if image in line_of:
                first, second = sorted((line_of[image], line))
                raise InputError(f"{path} line {second} has {image} again, after line {first}")
            line_of[image] = line


def _check_ending(where: str, image: str) -> None:
    ending = re.search(r"\.(?=[0-9]*[A-Za-z])[0-9A-Za-z]{1,5}$", image)
    if ending and not image.lower().endswith(IMAGE_ENDINGS):
        raise InputError(
            f"{where}: {image!r} is not an image by its ending (but {' '.join(IMAGE_ENDINGS)}); "
            "remove the row"
        )


# --- Rows -----------------------------------------------------------------------------------------


def _read_list(path: Path) -> _List:
    """Return the checked rows of a CSV file, parsed once as long as it does not change."""
    state = path.stat() if path.is_file() else None
    return _parse(path, state and (state.st_ino, state.st_size, state.st_mtime_ns))


@functools.lru_cache(maxsize=1)
def _parse(path: Path, _state: object) -> _List:
    table, paths, labels = open_table(path, read_text(path, REMEDY)), _Paths(path), _Labels(path)
    line_of: dict[str, int] = {}
    codes, splits_of, spelled = [], [], {}
    for line, raw, label, split in table.rows():
        if not raw or not label:
            raise InputError(f"{path} line {line} has no {'label' if raw else 'path'}")
        image = paths.below_root(line, raw)
        if image in line_of:
            raise InputError(f"{path} line {line} has {image} again, after line {line_of[image]}")
        line_of[image] = line
        codes.append(labels.code(line, label))
        if split not in spelled:
            spelled[split] = _split_name(f"{path} line {line}", split, table.name_of("split"))
        splits_of.append(spelled[split])
    if not line_of:
        raise InputError(f"{path} has no row below its header")
    labels.check_distinct()
    ids, images = (np.array(texts, dtype=TEXT) for texts in (short_ids([*line_of]), [*line_of]))
    columns = ids, images, np.array(codes), np.array([*line_of.values()])
    of = np.array(splits_of)
    rows = {name: _Rows(*(each[of == name] for each in columns)) for name in SPLITS}
    understood = [*table.understood(), *paths.understood(), *_understood(spelled)]
    note = (f"{path.name} is read as: {'; '.join(understood)}",) if understood else ()
    return _List(labels.names, {name: rows[name] for name in SPLITS if len(rows[name].ids)}, note)


def _split_name(where: str, raw: str, column: str) -> str:
    split = SPELLINGS.get(raw.casefold())
    if split is None:
        of = "" if column == "split" else f" of column {column!r}"
        raise InputError(
            f"{where}: split {raw!r}{of} is not one of {', '.join(SPLITS)}{near_miss(raw, SPLITS)}"
        )
    return split


def _understood(spelled: dict[str, str]) -> list[str]:
    """Return how splits are read that are not spelled as ours."""
    return [f"split {raw!r} is {split}" for raw, split in spelled.items() if raw != split]


class _Labels:
    """The labels of a CSV file, numbered as they come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names: list[str] = []  # clean, by number
        self._codes: dict[str, int] = {}
        self._places: dict[str, str] = {}

    def code(self, line: int, label: str) -> int:
        """Return the number of a label; check it where it is new."""
        if label not in self._codes:
            self.names.append(check_class_name(f"{self.path} line {line}", label))
            self._codes[label] = len(self._codes)
            self._places[label] = f"line {line}"
        return self._codes[label]

    def check_distinct(self) -> None:
        """Raise an error if two labels are spellings of one class; else each is a class."""
        check_distinct(self.path, self._codes, self._places)


class _Paths:
    """The paths of a CSV file, made relative to its folder."""

    def __init__(self, path: Path) -> None:
        self.path, self.root = path, path.parent
        self._backslashes = self._absolute = 0
        self._below: dict[str, str | None] = {}  # by absolute folder: what it is from the root

    def below_root(self, line: int, raw: str) -> str:
        """Return an image's path without empty parts and `.`: one file, one path, one split.

        Raises:
            InputError: it does not lead to a file below the CSV's folder, or not in one way only.
        """
        if not raw.isprintable() and CONTROL.search(raw):
            raise InputError(f"{self.path} line {line}: {raw!r} has control characters")
        is_elsewhere = ":" in raw and re.match(r"[A-Za-z]:[/\\]|[a-z]+://", raw)
        image = self._with_slashes(line, raw) if "\\" in raw and not is_elsewhere else raw
        if image.startswith("/"):
            image = self._from_root(image)
        parts = image.split("/")
        if "" in parts or "." in parts:
            parts = [part for part in parts if part not in ("", ".")]
        if is_elsewhere or ".." in parts or not parts:
            raise InputError(
                f"{self.path} line {line}: {raw!r} is not a path below the CSV's folder; write "
                "paths as they are from there"
            )
        return "/".join(parts)

    def understood(self) -> list[str]:
        """Return how paths are read that are not as ours."""
        counts = {
            "paths with backslashes, read as slashes": self._backslashes,
            "absolute paths, which lead below its folder": self._absolute,
        }
        return [f"{count} {what}" for what, count in counts.items() if count]

    def _with_slashes(self, line: int, raw: str) -> str:
        if os.path.lexists(self.root / raw):
            raise InputError(
                f"{self.path} line {line}: the file {raw!r} has backslashes in its name; rename it"
            )
        self._backslashes += 1
        return raw.replace("\\", "/")

    def _from_root(self, image: str) -> str:
        """Return what an absolute path is from the CSV's folder; empty if it is not below it."""
        folder, _, name = image.rpartition("/")
        if folder not in self._below:
            self._below[folder] = self._folder_from_root(folder)
        below = self._below[folder]
        if below is None:
            return ""
        self._absolute += 1
        return f"{below}/{name}"

    def _folder_from_root(self, folder: str) -> str | None:
        root = self.root.stat()
        for above in reversed((Path(folder), *Path(folder).parents)):
            try:
                if os.path.samestat(above.stat(), root):  # whichever links lead there
                    return Path(folder).relative_to(above).as_posix()
            except (OSError, ValueError):
                return None
        return None
