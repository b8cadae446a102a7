"""Pretend, in a process that writes through Python, that its disk gets full at the n-th write."""

import _pyio
import builtins
import errno
import io
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any


class FullDisk:
    """Counts the operations that write below a folder; from one of them on, all fail."""

    def __init__(self, folder: Path, fail_from: int | None) -> None:
        """Describe the disk; `install` has the effect.

        Args:
            folder: folder that lies on the disk.
            fail_from: number of the first operation that fails, from 1; None: none does.
        """
        self.folder = os.path.realpath(folder)
        self.fail_from = fail_from
        self.operations: list[str] = []
        self.failed: str | None = None  # the first operation that failed

    def install(self) -> None:
        """Replace what Python writes files with, in this process."""
        self._lock = threading.Lock()  # TensorBoard writes in a thread
        self._files: dict[int, str] = {}  # descriptors that write, and their paths
        self._real_open, self._real_write, self._real_fsync = os.open, os.write, os.fsync
        for name in ("mkdir", "rename", "replace"):
            setattr(os, name, self._limited(name, getattr(os, name)))
        os.open, os.write, os.fsync = self._os_open, self._write, self._fsync
        # The `open` of the standard library that is written in Python writes with `os.write`.
        real_open = builtins.open

        def limited_open(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            writes = set(mode) & set("wax+") and self._holds(file)
            return (_pyio.open if writes else real_open)(file, mode, *args, **kwargs)

        builtins.open = io.open = limited_open

    def _holds(self, path: Any) -> bool:  # noqa: ANN401 - whatever `open` takes
        if not isinstance(path, str | os.PathLike):
            return False
        absolute = os.path.realpath(path)
        return absolute == self.folder or absolute.startswith(self.folder + os.sep)

    def _spend(self, what: str, path: str, at_first: Callable[[], object] = lambda: None) -> None:
        """Count an operation.

        Raises:
            OSError: the disk is full; the first time, `at_first` is called before.
        """
        with self._lock:
            name = f"{what} {os.path.relpath(path, self.folder)}"
            self.operations.append(name)
            if self.fail_from is None or len(self.operations) < self.fail_from:
                return
            if self.failed is None:
                self.failed = name
                at_first()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def _limited(self, name: str, call: Callable[..., None]) -> Callable[..., None]:
        def limited(path: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as in `os`
            if self._holds(path):
                self._spend(name, os.fspath(path))
            call(path, *args, **kwargs)

        return limited

    def _os_open(self, path: Any, flags: int, *args: Any, **kwargs: Any) -> int:  # noqa: ANN401
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and self._holds(path)
        if writes:
            self._spend("open", os.fspath(path))
        descriptor = self._real_open(path, flags, *args, **kwargs)
        self._files.pop(descriptor, None)  # a number that a closed file had
        if writes:
            self._files[descriptor] = os.fspath(path)
        return descriptor

    def _write(self, descriptor: int, data: Any) -> int:  # noqa: ANN401 - a buffer
        if (path := self._files.get(descriptor)) is not None:
            half = memoryview(data).cast("B")[: len(data) // 2]  # a real disk takes a part, too
            self._spend("write", path, lambda: self._real_write(descriptor, half))
        return self._real_write(descriptor, data)

    def _fsync(self, descriptor: int) -> None:
        self._spend("fsync", self._files.get(descriptor, self.folder))
        self._real_fsync(descriptor)
