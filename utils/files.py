"""Write files whole or not at all, read without waiting, lock; JSON; SHA-256 checksums.

Not every file system knows every request: what safety does not need is done without.
"""

import errno
import fcntl
import hashlib
import json
import os
import platform
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

UNFINISHED = ".tmp"  # suffix of what is being written
# Names of what is being written: of which file, on which host (older names lack it), by which
# process.
TEMPORARY = re.compile(rf"\.(?P<of>.+?)(?:\.(?P<host>[0-9a-f]{{8}}))?\.\d+{re.escape(UNFINISHED)}")
LONGEST_NAME = 80  # bytes that a temporary name takes of a file's: some systems take 143 in all
ABANDONED_SECONDS = 7 * 24 * 3600  # after which a temporary file that cannot be locked is rubbish
# How a file system says that it does not know a request: SMB, exFAT, FUSE, network drives.
NOT_SUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY}
NO_LOCKS = {*NOT_SUPPORTED, errno.ENOLCK}
HELD = {errno.EAGAIN, errno.EACCES}  # POSIX allows both for a lock that another process has
CANNOT_REPLACE = {*NOT_SUPPORTED, errno.EEXIST, errno.EPERM, errno.EACCES, errno.EXDEV}

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
    with naming(path), open_regular(path) as file:
        return file.read()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have errors of the system that name no file, as those of reading and writing, name `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def has_locked(
    lock: Callable[[int, int], None], file: IO[Any], kind: int = fcntl.LOCK_EX
) -> bool | None:
    """Lock a file without waiting; return whether that was possible, None: there are no locks.

    Args:
        lock: `fcntl.lockf` (the process has it, until it closes the file once) or `fcntl.flock`
            (the open file has it).
        file: open file.
        kind: exclusive or shared.
    """
    try:
        lock(file.fileno(), kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            return None
        if error.errno in HELD:
            return False
        raise
    return True


def sync(descriptor: int) -> None:
    """Wait until what was written to an open file or folder is on the disk itself.

    A file system that cannot be asked to is no failure: it keeps what it was given, in its own way.
    """
    # macOS's fsync leaves it in the drive's own memory. Some file systems do not know this request.
    full_sync = getattr(fcntl, "F_FULLFSYNC", None)
    if full_sync is not None:
        try:
            fcntl.fcntl(descriptor, full_sync)
            return
        except OSError:
            pass
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise


def sync_folder(folder: Path) -> None:
    """Wait until the names in `folder` are on the disk, so that a power cut undoes no renaming."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        # A folder that cannot be opened, or only be written into, cannot be waited for.
        if error.errno in (*NOT_SUPPORTED, errno.EACCES, errno.EPERM, errno.EISDIR):
            return
        raise
    try:
        with naming(folder):
            sync(descriptor)
    finally:
        os.close(descriptor)


# --- What is being written ------------------------------------------------------------------------


def _host() -> str:
    return sha256_text(platform.node())[:8]


def _of(path: Path) -> str:
    """Return the name of a file as temporary names have it."""
    name = path.name.lstrip(".")
    data = os.fsencode(name)
    return name if len(data) <= LONGEST_NAME else hashlib.sha256(data).hexdigest()[:40]


def temporary(path: Path) -> Path:
    """Return the name beside `path` under which this process writes it."""
    return path.with_name(f".{_of(path)}.{_host()}.{os.getpid()}{UNFINISHED}")


def _parsed(path: Path) -> re.Match[str] | None:
    return TEMPORARY.fullmatch("." + path.name.lstrip("."))  # older names of folders lack the dot


def left_of(path: Path) -> list[Path]:
    """Return what is or was being written to become `path`, by any process; files and folders."""
    found: list[Path] = []
    with suppress(PermissionError):  # some folders may only be written into
        matches = ((each, _parsed(each)) for each in path.parent.iterdir())
        found += (each for each, match in matches if match and match["of"] == _of(path))
    return found


def clear_if_left(path: Path, locked: Path, remove: Callable[[Path], None]) -> None:
    """Remove something temporary whose writer is gone: its lock is free, or it is 7 days old.

    Only age counts where there are no locks, and for what another host wrote: it may not see ours.

    Args:
        path: what may be removed.
        locked: file that its writer keeps locked.
        remove: function that removes it.
    """
    match = _parsed(path)
    host = match and match["host"]
    with suppress(OSError), locked.open("rb+") as file:
        is_free = has_locked(fcntl.flock, file)
        if is_free is None or host not in (None, _host()):
            is_old = time.time() - path.stat().st_mtime > ABANDONED_SECONDS
            is_free = is_free is not False and is_old
        if is_free and os.path.samestat(os.fstat(file.fileno()), locked.stat()):
            remove(path)


@contextmanager
def open_locked(path: Path) -> Iterator[BinaryIO]:
    """Make a file of a temporary name, and keep it locked: `clear_if_left` leaves it alone."""
    while True:
        with path.open("w+b") as file:
            if has_locked(fcntl.flock, file) is False:  # it is just being cleared
                path.unlink(missing_ok=True)
            elif path.exists():  # else it was cleared before it was locked
                yield file
                return


@contextmanager
def open_atomic(
    path: Path, before_replacing: Callable[[BinaryIO], None] | None = None
) -> Iterator[BinaryIO]:
    """Yield a file beside `path` that replaces it when the block ends without an error.

    A reader sees the old file or the new one, never half of one, even after a power cut. The parent
    folder is made. What killed processes left of this file is removed.

    Args:
        path: path of the file to write or replace.
        before_replacing: function that is called with the finished file, which it may read.

    Raises:
        OSError: names the file; it cannot be written, or not replaced on this disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in left_of(path):
        _clear_file(left)
    beside = temporary(path)
    try:
        with naming(path), open_locked(beside) as file:
            yield file
            file.flush()
            sync(file.fileno())
            if before_replacing is not None:
                before_replacing(file)
            _replace(beside, path)
        sync_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def _replace(beside: Path, path: Path) -> None:
    try:
        beside.replace(path)
    except OSError as error:
        if error.errno not in CANNOT_REPLACE:
            raise
        trouble = (
            f"a finished file cannot take this name ({error.strerror}): another program keeps it, "
            "or this disk does not replace files; use a folder on another disk"
        )
        raise OSError(error.errno, trouble, str(path)) from error


def _clear_file(path: Path) -> None:
    if path.name.startswith(".") and kind_of(path, follow=False) == "file":
        clear_if_left(path, path, Path.unlink)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed writers left below `folder`, which is a run's."""
    for path in folder.glob(f"**/.*{UNFINISHED}"):
        if TEMPORARY.fullmatch(path.name):
            _clear_file(path)


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
    with naming(path), open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
