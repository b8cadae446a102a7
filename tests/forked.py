"""Run entrypoints in real processes that need not import torch: each is a fork of one that has.

What torchrun does takes a tenth of the time so. A few tests start torchrun itself.
"""

import ctypes
import importlib
import multiprocessing
import os
import re
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from helpers import REPO
from torch.distributed import TCPStore

from utils import watch

CONTEXT = multiprocessing.get_context("forkserver")
# Read when the first process starts: what anybody's processes import.
CONTEXT.set_forkserver_preload(
    ["torch", "torchvision", "torch.utils.tensorboard", "train", "eval", "scripts.data_check.scan"]
)


def _limit_memory(room: int) -> None:
    """Let this process reserve only `room` more bytes of addresses."""
    # Otherwise every thread may reserve 64 MB of addresses for itself (glibc's arenas).
    ctypes.CDLL(None).mallopt(-8, 1)  # M_ARENA_MAX
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    size = 1024 * int(re.search(r"VmSize:\s+(\d+) kB", status)[1])
    resource.setrlimit(resource.RLIMIT_AS, (size + room,) * 2)


def begin(
    script: str, argv: list[str], output: Path, environment: Mapping[str, str], room: int | None
) -> None:
    """Do in the forked process what `python script argv` does, stdout and stderr into a file."""
    # The fork server has blocked Ctrl-C if `check_data.py` was the first to use it.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # Otherwise loaders would start by a fork server of their own, which would import torch again.
    multiprocessing.set_start_method(None, force=True)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.chdir(REPO)
    os.environ.update(environment)
    os.environ.pop("DATA_ROOT", None)
    torch.set_num_threads(1)
    if room is not None:
        _limit_memory(room)
    module = importlib.import_module(Path(script).stem)
    watch.obey()
    code = module.main(argv)
    sys.stdout.flush()
    sys.exit(code)


def begin_unwatched(*arguments: object) -> None:
    """Do the same, but nobody ends this process if it does not obey a signal."""
    watch.MOST_SECONDS = float("inf")
    begin(*arguments)


def started(
    script: str,
    argv: list[str],
    output: Path,
    environment: Mapping[str, str] | None = None,
    room: int | None = None,
    target: Callable[..., None] = begin,
) -> BaseProcess:
    """Start a process that runs an entrypoint.

    Args:
        script: file name of the entrypoint.
        argv: its arguments.
        output: file for what it prints.
        environment: variables to add.
        room: bytes of addresses that it may reserve, if limited.
        target: what the process does with all these; `begin_unwatched` is another.
    """
    process = CONTEXT.Process(target=target, args=(script, argv, output, environment or {}, room))
    process.start()
    return process


class Together:
    """Start as many processes as torchrun would, with the environment that it would set."""

    def __init__(
        self,
        count: int,
        script: str,
        argv: list[str],
        output: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.output = output
        self.processes = [
            started(script, argv, output, (environment or {}) | self._environment(rank, count))
            for rank in range(count)
        ]

    def _environment(self, rank: int, count: int) -> dict[str, str]:
        numbers = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": count,
            "LOCAL_WORLD_SIZE": count,
            "MASTER_PORT": self.store.port,
        }
        return {
            **{name: str(number) for name, number in numbers.items()},
            "MASTER_ADDR": "127.0.0.1",
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # as torchrun: the store is the launcher's
            "TORCHELASTIC_RUN_ID": "forked",
        }

    def said(self) -> str:
        """Return what they have printed so far."""
        return self.output.read_text("utf-8") if self.output.exists() else ""

    def end(self, seconds: float = 300) -> list[int | None]:
        """Wait for the processes, kill those that take longer, and return their exit codes."""
        for process in self.processes:
            process.join(seconds)
            process.kill()
            process.join()
        return [process.exitcode for process in self.processes]
