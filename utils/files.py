"""Write files whole or not at all, read without waiting, spell JSON, take SHA-256 checksums."""

import errno
import fcntl
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

UNFINISHED = ".tmp"  # suffix of files that are being written
TEMPORARY = re.compile(rf"\..+\.\d+{re.escape(UNFINISHED)}")  # their names, with a process id


_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "symbolic link",
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
}


def kind_of(path: Path, follow: bool = True) -> str | None:
    """Return what is at `path`: a file, folder, pipe, socket or device; None: nothing.

    Args:
        path: any path.
        follow: whether a symbolic link counts as what it leads to.
    """
    try:
        mode = path.stat(follow_symlinks=follow).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    return _KINDS.get(stat.S_IFMT(mode), "device")


def open_regular(path: Path) -> BinaryIO:
    """Open the file at `path` for reading. A pipe, socket or device is never waited for.

    Raises:
        OSError: it is not a file, or cannot be read.
    """
    kind = kind_of(path)
    if kind not in ("file", "folder", None):  # the system itself refuses the latter two
        raise OSError(errno.EINVAL, f"it is a {kind}, not a file", str(path))
    return path.open("rb")


def read_regular(path: Path) -> bytes:
    """Return the bytes of the file at `path`.

    Raises:
        OSError: as `open_regular`.
    """
    with open_regular(path) as file:
        return file.read()


def sync(descriptor: int) -> None:
    """Wait until what was written to an open file or folder is on the disk itself."""
    # macOS's fsync leaves it in the drive's own memory. Some file systems do not know this request.
    full_sync = getattr(fcntl, "F_FULLFSYNC", None)
    if full_sync is not None:
        try:
            fcntl.fcntl(descriptor, full_sync)
            return
        except OSError:
            pass
    os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Wait until the names in `folder` are on the disk, so that a power cut undoes no renaming."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def open_atomic(
    path: Path, before_replacing: Callable[[Path], None] | None = None
) -> Iterator[BinaryIO]:
    """Yield a file beside `path` that replaces it when the block ends without an error.

    A reader sees the old file or the new one, never half of one, even after a power cut. The parent
    folder is made.

    Args:
        path: path of the file to write or replace.
        before_replacing: function that is called with the path of the finished file beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            sync(file.fileno())
        if before_replacing is not None:
            before_replacing(beside)
        beside.replace(path)
        sync_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed writers left below `folder`, in which nobody may be writing."""
    for path in folder.glob(f"**/.*{UNFINISHED}"):
        if TEMPORARY.fullmatch(path.name) and kind_of(path, follow=False) == "file":
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to the file at `path` in UTF-8, replacing it whole or not at all."""
    with open_atomic(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401 - any JSON value
    """Write `value` to the file at `path` as indented JSON, replacing it whole or not at all.

    Raises:
        ValueError: a number in `value` is NaN or infinite.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def canonical_json(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """Return the one spelling of a JSON value for checksums: compact, with sorted keys."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def sha256_text(text: str) -> str:
    """Return the SHA-256 of `text` in UTF-8, as hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of the file at `path`, as hexadecimal digits."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
