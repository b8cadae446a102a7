"""Train where a container has little of something: shared memory, open files, temporary space."""

import argparse
import ctypes
import functools
import multiprocessing
import os
import resource
import shlex
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.dev.soak_tests.runs import (
    check_same,
    results_of,
    run_to_its_end,
    tiny_flags,
    training,
)
from utils.data_utils import RunPaths
from utils.errors import RunError

# Three batches of 24 MB are on their way at a time.
LARGE_BATCHES = shlex.split(
    "--img_size 224 --train_batch_size 163 --num_steps 3 --num_workers 2 --preset vit"
)
NEW_MOUNTS, PRIVATE = 0x20000, 1 << 18 | 1 << 14  # CLONE_NEWNS, MS_PRIVATE | MS_REC
REFUSED = 77  # exit code of a process that the machine does not let have the limit


def _mount(folder: str, options: str) -> None:
    """Mount memory over a folder, for this process and those that it starts; exit if refused."""
    calls = ctypes.CDLL(None) if sys.platform == "linux" else None
    if (
        calls is None
        or calls.unshare(NEW_MOUNTS)
        or calls.mount(b"none", b"/", None, PRIVATE, None)
        or calls.mount(b"tmpfs", folder.encode(), b"tmpfs", 0, options.encode())
    ):
        os._exit(REFUSED)


def _fill_temporary_space(folder: str) -> None:
    _mount(folder, "nr_inodes=1")
    tempfile.tempdir = folder  # as TMPDIR where nothing else can be written
    multiprocessing.current_process()._config.pop("tempdir", None)  # the fork server's


def _open_few_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (96, 96))


def limits(folder: Path) -> dict[str, tuple[Callable[[], None], bool]]:
    """Return what imposes each limit, and whether no batch can be shared then."""
    return {
        "12 MB of /dev/shm": (functools.partial(_mount, "/dev/shm", "size=12m"), True),
        "64 MB of /dev/shm": (functools.partial(_mount, "/dev/shm", "size=64m"), False),
        "96 open files": (_open_few_files, True),
        "a full TMPDIR": (functools.partial(_fill_temporary_space, str(folder)), True),
    }


def soak_limits(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train where shared memory, open files or temporary space is short; no result may change.

    Raises:
        InputError: the flowers are not at `--data_root`.
        RunError: a promise was broken.
    """
    flags = [*tiny_flags(args.data_root, folder), *LARGE_BATCHES]
    flags += ["--output_dir", str(folder / "output"), "--name"]
    (folder / "full").mkdir()
    run_to_its_end([*flags, "whole"], folder / "whole")
    expected, figures = results_of(RunPaths(folder / "output", "whole")), {}
    for number, (limit, (impose, shares_none)) in enumerate(limits(folder / "full").items()):
        name = f"limit{number}"
        with training([*flags, name], folder / name, impose=impose) as run:
            code = run.code()
            if code == REFUSED:
                figures[limit] = "skipped, the machine does not allow it"
                continue
            is_said = any("through a pipe" in line for line in run.lines())
            if code or (shares_none and not is_said):
                raise RunError(f"{limit}: code {code}, and: {run.last_words()}")
        check_same(expected, results_of(RunPaths(folder / "output", name)), limit)
        figures[limit] = "the same results"
    return figures
