"""Files and their checksums: whole-or-nothing writes, canonical JSON, SHA-256."""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

UNFINISHED = ".tmp"  # the ending of files that are being written


def sync(descriptor: int) -> None:
    """Have what was written to an open file or folder on the disk itself."""
    # macOS's fsync leaves it in the drive's own memory. Not every file system knows the request.
    full_sync = getattr(fcntl, "F_FULLFSYNC", None)
    if full_sync is not None:
        try:
            fcntl.fcntl(descriptor, full_sync)
            return
        except OSError:
            pass
    os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Have the names in `folder` on the disk: a renamed file is found again after a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def open_atomic(
    path: Path, before_replacing: Callable[[Path], None] | None = None
) -> Iterator[BinaryIO]:
    """A file opened beside `path` that replaces it when the block ends without an error.

    A reader sees the old file or the new one, never half of one, also after a power cut. The parent
    folder is made.

    Args:
        path: of the file.
        before_replacing: called with the path of the finished file, which is on the disk.
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
    """Remove what writers left below `folder` that were killed; nobody may be writing there."""
    for path in folder.glob(f"**/.*{UNFINISHED}"):
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace the file at `path` by `text` in UTF-8, whole or not at all."""
    with open_atomic(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401 - any JSON value
    """Replace the file at `path` by `value` as indented JSON; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def canonical_json(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """The one spelling of a JSON value that checksums are taken of: compact, keys sorted."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def sha256_text(text: str) -> str:
    """SHA-256 of `text` in UTF-8, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of the bytes of the file at `path`, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
