"""A disk that gets full at the k-th write, and a server that runs train.py on one, each in a fork.

    python scripts/dev/soak_tests/full_disk.py

reads requests from stdin, one JSON object a line, and answers each with the exit code of train.py.
The imports, which take seconds, are made once.
"""

import builtins
import errno
import gc
import importlib
import io
import json
import os
import pkgutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import models
import utils

MAX_SECONDS = 300  # a run that takes longer hangs; it is ended by SIGALRM


class FullDisk:
    """Counts what writes below a folder; from one operation on, everything fails."""

    def __init__(self, folder: Path, fail_from: int | None) -> None:
        """Describe the disk; `installed` has the effect.

        Args:
            folder: that lies on it.
            fail_from: the first operation that fails, from 1; None: none does.
        """
        self.folder = os.path.realpath(folder)
        self.fail_from = fail_from
        self.operations: list[str] = []
        self.failed: str | None = None  # the first operation that did
        self.open, self.os_open = builtins.open, os.open
        self._lock = threading.Lock()  # TensorBoard writes in a thread

    def holds(self, path: Any) -> bool:  # noqa: ANN401 - whatever `open` takes
        """Whether a path lies on the disk."""
        if not isinstance(path, str | os.PathLike):
            return False
        absolute = os.path.realpath(path)
        return absolute == self.folder or absolute.startswith(self.folder + os.sep)

    def spend(self, what: str, path: object) -> bool:
        """Count an operation; whether it is the first that fails.

        Raises:
            OSError: the disk was full before.
        """
        with self._lock:
            name = f"{what} {os.path.relpath(os.fspath(path), self.folder)}"
            self.operations.append(name)
            if self.fail_from is None or len(self.operations) < self.fail_from:
                return False
            if self.failed is None:
                self.failed = name
                return True
        self.refuse(path)

    def refuse(self, path: object) -> NoReturn:
        """Say that the disk is full.

        Raises:
            OSError: always.
        """
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def install(self) -> None:
        """Replace what Python writes to files with, in this process, for good."""
        builtins.open = io.open = self._open
        os.open = self._open_descriptor
        for name in ("mkdir", "rename", "replace"):
            setattr(os, name, self._refusable(name, getattr(os, name)))
        fsync = os.fsync

        def sync(descriptor: int) -> None:  # this process syncs nothing but its output
            if self.spend("fsync", self.folder):
                self.refuse(self.folder)
            fsync(descriptor)

        os.fsync = sync

    def _refusable(self, name: str, call: Any) -> Any:  # noqa: ANN401 - functions of `os`
        def refusable(path: Any, *rest: Any, **options: Any) -> None:  # noqa: ANN401
            if self.holds(path) and self.spend(name, path):
                self.refuse(path)
            return call(path, *rest, **options)

        return refusable

    def _open_descriptor(self, path: Any, flags: int, *rest: Any, **options: Any) -> int:  # noqa: ANN401
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes and self.holds(path) and self.spend("os.open", path):
            self.refuse(path)
        return self.os_open(path, flags, *rest, **options)

    def _open(  # the signature of `open`
        self,
        file: Any,  # noqa: ANN401
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        if not (set(mode) & set("wax+") and self.holds(file)):
            return self.open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        if self.spend(f"open({mode!r})", file):
            self.refuse(file)
        raw = _FullDiskFile(self, file, mode.replace("b", "").replace("t", ""))
        if buffering == 0:
            return raw
        buffered = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
        if "b" in mode:
            return buffered
        return io.TextIOWrapper(buffered, encoding, errors, newline, buffering == 1)


class _FullDiskFile(io.FileIO):
    """A file whose writes reach the disk, as long as that has room.

    The first write that fails leaves half of its bytes, as a real one does.
    """

    def __init__(self, disk: FullDisk, path: Any, mode: str) -> None:  # noqa: ANN401
        super().__init__(path, mode)
        self.disk = disk

    def write(self, data: Any) -> int:  # noqa: ANN401 - a buffer
        """One write(2)."""
        if self.disk.spend("write", self.name):
            super().write(memoryview(data).cast("B")[: len(data) // 2])
            self.disk.refuse(self.name)
        return super().write(data)


def _run(request: dict[str, Any]) -> int:
    """In the forked process: train on such a disk; the exit code."""
    import train

    signal.alarm(MAX_SECONDS)
    for descriptor, ending in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{request['log']}.{ending}", os.O_WRONLY | os.O_CREAT), descriptor)
    disk = FullDisk(Path(request["folder"]), request["fail_from"])
    disk.install()
    try:
        return train.main(request["flags"])
    finally:
        report = {"operations": disk.operations, "failed": disk.failed}
        with disk.open(f"{request['log']}.json", "w") as file:
            json.dump(report, file)


def _end(line: str) -> NoReturn:
    """In the forked process: answer a request, and end.

    Without taking torch apart module by module, which takes several times as long as the run.
    """
    code = 1
    try:
        code = _run(json.loads(line))
    finally:
        if sys.exc_info()[0] is not None:
            sys.excepthook(*sys.exc_info())
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    """Answer requests until stdin ends."""
    for package in (models, utils):  # once for all forks, with torch and all else that they import
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    importlib.import_module("scipy.io")
    gc.freeze()  # what is never looked at is never copied
    while line := sys.stdin.readline():
        child = os.fork()
        if child == 0:
            _end(line)
        _, status = os.waitpid(child, 0)
        os.write(1, f"{os.waitstatus_to_exitcode(status)}\n".encode())


if __name__ == "__main__":
    serve()
