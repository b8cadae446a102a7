"""Read a table from CSV as spreadsheets, pandas and people write it.

Separators, names of columns and closing commas differ. What can be meant in one way only is
understood, and `CsvTable.understood` says how; the rest is refused with its line.
"""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from utils.errors import InputError

REMEDY = "save it as CSV in UTF-8"
FORMAT = "the first line must name the columns: path,label and perhaps split"
SEPARATORS = {",": "','", ";": "';'", "\t": "tab", "|": "'|'"}

# What a column may be called, in steps: our own name, then names that say as much, then names that
# are taken only where no other is there. Compared without case, blanks, hyphens and underscores.
_PATHS = (
    "file filename filepath image images img photo picture imagepath imgpath imagefile imgfile "
    "imagefilename imagefilepath imagename imgname photopath photofile pathname relativepath "
    "relpath fullpath"
)
_LABELS = (
    "labels labelname class classes classname classlabel category categoryname breed breedname "
    "species speciesname variety taxon taxonname scientificname commonname genus family"
)
_NUMBERS = "labelid labelidx classid classidx categoryid target targets y"
ROLES = {
    "path": ({"path"}, set(_PATHS.split()), {"id", "imageid", "imgid", "name", "uuid"}),
    "label": (
        {"label"},
        set(_LABELS.split()),
        set(_NUMBERS.split()),
    ),
    "split": ({"split"}, {"splits", "set", "subset", "partition", "phase", "usage"}, set()),
}
NEEDED = ("path", "label")
SHOWN = 5  # columns that a line names
# What Excel puts first where the separator is not the system's own.
DECLARED = re.compile(r'\s*"?sep=([,;\t|])"?[,;\t| ]*(?:\n|$)', re.IGNORECASE)


class CsvTable(NamedTuple):
    """A CSV file whose columns are understood."""

    path: Path
    text: str
    separator: str
    is_declared: bool  # by a line `sep=;` before the header
    header: list[str]  # names of the columns, without blanks around them
    columns: dict[str, int]  # where path, label and perhaps split are

    def rows(self) -> Iterator[tuple[int, str, str, str]]:
        """Yield the line number and the cells of path, label and split of each row but empty ones.

        Without a column of splits all rows are of `train`.

        Raises:
            InputError: a row has too few or too many fields, or is not CSV.
        """
        lines = _numbered_rows(self.path, self.text, self.separator)
        for _ in range(1 + self.is_declared):
            next(lines)
        width = len(self.header)
        while width and not self.header[width - 1]:
            width -= 1  # closing commas
        at_path, at_label = self.columns["path"], self.columns["label"]
        at_split = self.columns.get("split")
        for line, row in lines:
            if len(row) < width or any(map(str.strip, row[len(self.header) :])):
                remedy = f"; a cell that holds {SEPARATORS[self.separator]} needs quotes"
                raise InputError(
                    f"{self.path} line {line} has {len(row)} fields, not {width}"
                    f"{remedy if len(row) > width else ''}"
                )
            split = "train" if at_split is None else row[at_split].strip()
            yield line, row[at_path].strip(), row[at_label].strip(), split

    def name_of(self, role: str) -> str:
        """Return what the file calls the column of a role; empty if it has none."""
        return self.header[self.columns[role]] if role in self.columns else ""

    def understood(self) -> list[str]:
        """Return what people should know of how the file is read; nothing of our own format."""
        unused = [name for at, name in enumerate(self.header) if at not in self.columns.values()]
        named = [repr(name) for name in unused if name]
        unnamed = len(unused) - len(named)
        is_ours = all(self.header[at] == role for role, at in self.columns.items())
        if is_ours and not unused and self.separator == ",":
            return []
        roles = [f"{role} from column {self.name_of(role)!r}" for role in self.columns]
        parts = [", ".join(roles)]
        if named:
            more = f" and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
            parts.append(f"not used: {', '.join(named[:SHOWN])}{more}")
        if unnamed:
            parts.append(f"columns without a name: {unnamed}, not used")
        if self.separator != ",":
            parts.append(f"separator {SEPARATORS[self.separator]}")
        return parts


def open_table(path: Path, text: str) -> CsvTable:
    """Find separator, header and columns of the CSV file that has this text.

    Raises:
        InputError: it has no header, or no column or more than one that may be meant.
    """
    declared = DECLARED.match(text)
    headers = {
        separator: _header(path, text, separator, declared is not None)
        for separator in (declared[1] if declared else SEPARATORS)
    }
    # The separator that gives both columns; else that which gives most, to name what is missing.
    separator = max(headers, key=lambda sign: _merit(headers[sign][1]))
    line, header = headers[separator]
    if not header:
        next(_numbered_rows(path, text, separator), None)  # says what is wrong, if it is not empty
        raise InputError(f"{path} is empty; {FORMAT}")
    found = {role: _column(f"{path} line {line}", header, role) for role in ROLES}
    columns = {role: at for role, at in found.items() if at is not None}
    return CsvTable(path, text, separator, declared is not None, header, columns)


def _header(path: Path, text: str, separator: str, is_declared: bool) -> tuple[int, list[str]]:
    """Return line and cells of the header as this separator gives them; none if it cannot."""
    try:
        rows = _numbered_rows(path, text, separator)
        if is_declared:
            next(rows)
        line, header = next(rows)
    except (InputError, StopIteration):
        return 1, []
    return line, [name.strip() for name in header]


def _merit(header: Sequence[str]) -> tuple[int, int]:
    found = sum(bool(_candidates(header, role)) for role in NEEDED)
    return found, len(header)


def _candidates(header: Sequence[str], role: str) -> list[int]:
    """Return the columns that may be meant: those of the first step that has any."""
    keys = [re.sub(r"[\W_]+", "", name).casefold() for name in header]
    for names in ROLES[role]:
        found = [at for at, key in enumerate(keys) if key in names]
        if found:
            return found
    return []


def _column(where: str, header: Sequence[str], role: str) -> int | None:
    found = _candidates(header, role)
    if len(found) > 1:
        both = " and ".join(repr(header[at]) for at in found[:2])
        raise InputError(
            f"{where} has two columns that may be the {role}: {both}; call the right one {role!r}, "
            "or remove the other"
        )
    if not found and role in NEEDED:
        named = ", ".join(repr(name)[:100] for name in header[:SHOWN])
        more = ", ..." if len(header) > SHOWN else ""
        raise InputError(f"{where} has no column for the {role}, only {named}{more}; {FORMAT}")
    return found[0] if found else None


def _numbered_rows(path: Path, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line, from 1, at which each row ends, and its cells; not if all are blank."""
    # strict: a quote that is never closed would swallow the rest of the file.
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=True)
    begin = 1  # a quote that is never closed is in the row that begins here
    try:
        for row in reader:
            begin = reader.line_num + 1
            if row and (row[0].strip() or any(map(str.strip, row))):
                yield reader.line_num, row
    except csv.Error as error:
        raise InputError(f"{path} line {begin} is not CSV ({error})") from error
