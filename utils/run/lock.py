"""Let only one process write a run, by a lock that names its holder. Imports no torch."""

import fcntl
import json
import os
import platform
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from utils.console import log
from utils.data_utils import RunPaths
from utils.errors import InputError
from utils.files import kind_of
from utils.ownership import make_folder
from utils.processes import failing_together, is_main

MAX_BYTES = 4096  # of a lock, which names one process


def _owner(file: TextIO) -> dict[str, Any]:
    """Return what the lock says of its holder; empty if it says nothing."""
    file.seek(0)
    try:
        owner = json.loads(file.read())
    except ValueError:  # killed before it was written
        return {}
    return owner if isinstance(owner, dict) else {}


def _refusal(path: Path, owner: dict[str, Any]) -> InputError:
    who = f"process {owner.get('pid', 'unknown')} on {owner.get('host', 'an unknown host')}"
    return InputError(
        f"--name {owner.get('name', path.stem.lstrip('.'))} is being written by {who} since "
        f"{owner.get('since', 'an unknown time')}; wait for it, end it, or choose another name"
    )


def _is_of_another_host(owner: dict[str, Any]) -> bool:
    # By name or by hardware: a Mac's name follows the network that it is in.
    return owner.get("host", platform.node()) != platform.node() and (
        owner.get("machine") != uuid.getnode()
    )


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


def check_not_locked(path: Path) -> None:
    """Raise if another process is writing the run; writes nothing.

    Raises:
        InputError: names the process, or what is not a lock.
    """
    _check_is_lock(path)
    try:
        file = path.open("r", encoding="utf-8")
    except FileNotFoundError:
        return
    with file:
        owner = _owner(file)
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _refusal(path, owner) from error


@contextmanager
def run_lock(path: Path, name: str) -> Iterator[None]:
    """Hold the lock of a run; the system releases it when this process ends, however it ends.

    A record lock (`lockf`): unlike one of `flock`, loader processes that outlive a killed run by
    seconds do not inherit it. Network disks may keep it to one host, so the owner's counts too.

    Args:
        path: path of the lock file, which is removed in the end.
        name: name of the run.

    Raises:
        InputError: another process holds it, or something else is at its path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        _check_is_lock(path)
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            with file:
                raise _refusal(path, _owner(file)) from error
        if _is_same_file(file, path):
            break
        file.close()  # its owner ended and removed it between our two calls
    with file:
        before = _owner(file)
        if before and _is_of_another_host(before):
            raise InputError(
                f"{path} says that process {before.get('pid')} on {before['host']} writes this "
                "run; if that process has ended, remove that file"
            )
        if before:
            log.info("took over the run from process %s, which is dead", before.get("pid"))
        owner = {
            "name": name,
            "pid": os.getpid(),
            "host": platform.node(),
            "machine": uuid.getnode(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        file.truncate(0)
        file.write(json.dumps(owner) + "\n")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def locked_run(paths: RunPaths) -> Iterator[None]:
    """Hold the lock of a run in its main process; all processes call it together.

    Raises:
        InputError: another process holds it.
        RunError: the lock cannot be written.
    """
    with ExitStack() as held:
        with failing_together():
            if is_main():
                make_folder(paths.output_dir)
                held.enter_context(run_lock(paths.lock, paths.name))
        yield


def _is_same_file(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
