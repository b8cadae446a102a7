"""Let only one process write a run, by a lock that names its holder. Imports no torch.

The system keeps the lock as long as its holder lives. Where a disk has no locks, or the lock's file
was removed, what the lock and the run's stamp say of the holder counts: whether it is at work.
"""

import errno
import fcntl
import json
import os
import platform
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from utils.console import log
from utils.data_utils import RunPaths
from utils.errors import InputError, RunError
from utils.files import has_locked, kind_of, naming, read_regular
from utils.ownership import make_folder
from utils.processes import failing_together, is_main

MAX_BYTES = 4096  # of a lock, which names one process
MAX_PID = 2**31 - 1
TRIES = 100  # to open a lock that others remove meanwhile; some disks number files anew each time


# --- Who writes -----------------------------------------------------------------------------------


def this_process() -> dict[str, Any]:
    """Return what tells this process from all others, for lock and stamp."""
    return {
        "pid": os.getpid(),
        "host": platform.node(),
        "machine": uuid.getnode(),
        "began": _began(os.getpid()),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _began(pid: object) -> str:
    """Return when a process of this host began, as the system says it; empty if there is none.

    It tells the process from another that was given its number later.
    """
    if type(pid) is not int or not 0 < pid <= MAX_PID:
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:  # another user's
        pass
    try:
        # After the program's name, which may hold anything: state (3) to start (22), in ticks.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        state, began = fields[0].decode(), fields[19].decode()
    except OSError:  # macOS has no /proc
        ps = ("ps", "-o", "stat=,lstart=", "-p", str(pid))
        try:
            said = subprocess.run(ps, capture_output=True, text=True, check=False).stdout
        except OSError:
            return "unknown"
        state, _, began = said.strip().partition(" ")
    return "" if state[:1] in ("Z", "X", "") else began.strip()  # ended, and not yet waited for


def _is_of_another_host(owner: dict[str, Any]) -> bool:
    # By name or by hardware: a Mac's name follows the network that it is in.
    return owner.get("host", platform.node()) != platform.node() and (
        owner.get("machine") != uuid.getnode()
    )


def _is_at_work(owner: dict[str, Any]) -> bool:
    """Return whether a holder is another process of this host that lives."""
    pid = owner.get("pid")
    if _is_of_another_host(owner) or pid == os.getpid():
        return False
    began = _began(pid)
    return began != "" and began == owner.get("began")


def _owner(text: str | bytes) -> dict[str, Any]:
    """Return what a lock or a stamp says; empty if it says nothing."""
    try:
        owner = json.loads(text)
    except (ValueError, RecursionError):  # killed before it was written
        return {}
    return owner if isinstance(owner, dict) else {}


def _owner_of(file: IO[str]) -> dict[str, Any]:
    try:
        file.seek(0)
        return _owner(file.read())
    except (OSError, ValueError):  # on some disks nobody can read what another process locks
        return {}


def _refusal(paths: RunPaths, owner: dict[str, Any]) -> InputError:
    who = f"process {owner.get('pid', 'unknown')} on {owner.get('host', 'an unknown host')}"
    return InputError(
        f"--name {paths.name} is being written by {who} since "
        f"{owner.get('since', 'an unknown time')}; wait for it, end it, or choose another name"
    )


def _check_is_free(paths: RunPaths, owner: dict[str, Any], take_over: bool) -> None:
    """Raise if the holder that a lock names, or the writer that the stamp does, may be at work."""
    if _is_of_another_host(owner) and not take_over:
        raise InputError(
            f"{paths.lock} says that process {owner.get('pid')} on {owner['host']} writes this "
            "run; if that process has ended, repeat the command with --take_over"
        )
    stamp: dict[str, Any] = {}
    with suppress(OSError):
        stamp = _owner(read_regular(paths.env_stamp))
    writer = stamp.get("writer") if stamp.get("name") == paths.name else None  # else it is a copy
    for each in (owner, writer):
        if isinstance(each, dict) and _is_at_work(each):
            raise _refusal(paths, each)


# --- The lock -------------------------------------------------------------------------------------


def _check_is_lock(path: Path) -> None:
    """Raise if what is at the path of a lock cannot be one: it would be waited for, or emptied."""
    kind = kind_of(path, follow=False)
    what = f"a {kind}" if kind not in (None, "file") else ""
    with suppress(FileNotFoundError):  # its holder has just given it back
        if kind == "file" and path.stat().st_size > MAX_BYTES:
            what = f"a file of over {MAX_BYTES} bytes"
    if what:
        raise InputError(
            f"{path} is {what}, not the lock of a run; move it away, or choose another --name"
        )


def _open(path: Path, mode: str) -> IO[str]:
    """Open a lock; what a link leads to is never opened, even if the link has just been made."""

    def opened(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)

    while True:
        _check_is_lock(path)
        try:
            return open(path, mode, encoding="utf-8", opener=opened)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise


def check_not_locked(paths: RunPaths, take_over: bool = False) -> None:
    """Raise if another process is writing the run; writes nothing.

    Args:
        paths: paths of the run.
        take_over: whether a lock of another host does not count.

    Raises:
        InputError: names the process, or what is not a lock.
    """
    owner: dict[str, Any] = {}
    with suppress(FileNotFoundError), naming(paths.lock), _open(paths.lock, "r") as file:
        owner = _owner_of(file)
        if has_locked(fcntl.lockf, file, fcntl.LOCK_SH) is False:
            raise _refusal(paths, owner)
    _check_is_free(paths, owner, take_over)


def _is_at(file: IO[str], path: Path) -> bool:
    """Return whether an open file still lies at a path; not by its number alone, as some repeat."""
    own = os.fstat(file.fileno())
    with suppress(FileNotFoundError):
        there = path.stat(follow_symlinks=False)
        same = (own.st_size, own.st_mtime_ns) == (there.st_size, there.st_mtime_ns)
        return same and os.path.samestat(own, there)
    return False


def _open_locked(paths: RunPaths) -> tuple[IO[str], bool]:
    """Open the lock of a run and lock it; return also whether its disk has locks."""
    for number in range(TRIES):
        file = _open(paths.lock, "a+")
        is_locked = has_locked(fcntl.lockf, file)
        if is_locked is False:
            with file:
                raise _refusal(paths, _owner_of(file))
        if _is_at(file, paths.lock) or number == TRIES - 1:
            break
        file.close()  # its holder ended and removed it between our two calls
    return file, is_locked is True


def _acquire(paths: RunPaths, take_over: bool) -> IO[str]:
    """Lock a run, and write into the lock's file that this process holds it."""
    make_folder(paths.output_dir)
    with naming(paths.lock), ExitStack() as until_held:
        file, is_locked = _open_locked(paths)
        until_held.enter_context(file)
        before, own = _owner_of(file), this_process()
        _check_is_free(paths, before, take_over)
        if before and (before.get("pid"), before.get("began")) != (own["pid"], own["began"]):
            is_gone = f"on {before['host']}" if _is_of_another_host(before) else "which is dead"
            log.info("took over the run from process %s, %s", before.get("pid"), is_gone)
        if not is_locked:
            log.warning(
                "warning: the disk of %s has no locks: only processes of this host are kept from "
                "writing the same run",
                paths.lock,
            )
        file.truncate(0)
        file.write(json.dumps({"name": paths.name, **own}) + "\n")
        file.flush()
        until_held.pop_all()
    return file


@contextmanager
def run_lock(paths: RunPaths, take_over: bool = False) -> Iterator[Callable[[], None]]:
    """Hold the lock of a run; the system releases it when this process ends, however it ends.

    A record lock (`lockf`): unlike one of `flock`, loader processes that outlive a killed run by
    seconds do not inherit it. Network disks may keep it to one host, so the owner's counts too.

    Args:
        paths: paths of the run; the lock's file is removed in the end.
        take_over: whether a lock of another host does not count.

    Yields:
        Function to call before the run is written. It makes the lock's file again if somebody
        removed it, and raises a `RunError` if another process has taken the run over.

    Raises:
        InputError: another process holds it, or something else is at its path.
    """
    with ExitStack() as held:
        file = held.enter_context(_acquire(paths, take_over))
        owner = _owner_of(file)

        def is_own() -> bool:
            return _is_at(file, paths.lock) and _owner_of(file) == owner

        def renew() -> None:
            nonlocal file, owner
            if is_own():
                return
            file.close()
            try:
                file = held.enter_context(_acquire(paths, take_over=False))
            except InputError as error:
                raise RunError(f"this process lost the run: {error}") from error
            owner = _owner_of(file)

        try:
            yield renew
        finally:
            if not file.closed and is_own():
                paths.lock.unlink(missing_ok=True)


@contextmanager
def locked_run(paths: RunPaths, take_over: bool = False) -> Iterator[Callable[[], None]]:
    """Hold the lock of a run in its main process; all processes call it together.

    Args:
        paths: paths of the run.
        take_over: whether a lock of another host does not count.

    Yields:
        As `run_lock`, to be called in the main process.

    Raises:
        InputError: another process holds it.
        RunError: the lock cannot be written.
    """
    with ExitStack() as held:
        renew = lambda: None  # noqa: E731
        with failing_together():
            if is_main():
                renew = held.enter_context(run_lock(paths, take_over))
        yield renew
