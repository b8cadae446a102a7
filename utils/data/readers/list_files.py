"""Read list files, and compare the lists of a dataset. No torch here."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from utils.data.formats import OTHERS
from utils.errors import InputError
from utils.files import read_regular

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
# What stands where a list is meant: a photograph, a web page, a pointer of Git LFS.
NO_LISTS = ((b"\xff\xd8\xff", "a JPEG image"), (b"\x89png", "a PNG image"), *OTHERS)
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
        InputError: as `read_bytes`, or the file is not UTF-8, or something else than a list.
    """
    data = read_bytes(path, remedy)
    for start, what in FOREIGN.items():
        if data.startswith(start) or (start == UTF16 and b"\0" in data[:2]):
            raise InputError(f"{path} is {what}, not UTF-8; {remedy}")
    start = data[:100].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for magic, what in NO_LISTS:
        if start.startswith(magic):
            whose = remedy if remedy == FETCH else "name or fetch the list itself"
            raise InputError(f"{path} is {what}, not a list; {whose}")
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


def check_same_keys(
    path: Path | str, table: Mapping[Any, object], other: Path | str, keys: Mapping[Any, object]
) -> None:
    """Raise an error unless two lists speak of the same samples.

    Raises:
        InputError: `table` in `path` lacks one of the `keys` in `other`, or has one more.
    """
    for key in keys:
        if key not in table:
            raise InputError(f"{path} lacks {key}, which {other} has")
    for key in table:
        if key not in keys:
            raise InputError(f"{path} has {key}, which {other} lacks")


def check_not_shared(path: Path, what: str, table: Mapping[str, str]) -> None:
    """Raise an error if a list file gives one value to two keys.

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


def check_apart(path: Path, ids: Iterable[str], other: Path, other_ids: Iterable[str]) -> None:
    """Raise an error if two splits share an image: what is trained on must not be tested on.

    Raises:
        InputError: names the image and both list files.
    """
    known = set(ids)
    for sample_id in other_ids:
        if sample_id in known:
            raise InputError(f"{path} has the image {sample_id!r}, and so has {other}")
