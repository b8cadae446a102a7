"""Entrypoints in real processes that need not import torch: each is a fork of one that has.

What torchrun does, started so, is a tenth of the time. A few tests start torchrun itself.
"""

import importlib
import multiprocessing
import os
import sys
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from helpers import REPO
from torch.distributed import TCPStore

CONTEXT = multiprocessing.get_context("forkserver")
# Read when the first process starts: what anybody's processes import.
CONTEXT.set_forkserver_preload(
    ["torch", "torchvision", "torch.utils.tensorboard", "train", "eval", "scripts.data_check.scan"]
)


def _run(script: str, argv: list[str], output: Path, environment: Mapping[str, str]) -> None:
    """What the forked process does: `python script argv`, stdout and stderr into a file."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.chdir(REPO)
    os.environ.update(environment)
    os.environ.pop("DATA_ROOT", None)
    torch.set_num_threads(1)
    code = importlib.import_module(Path(script).stem).main(argv)
    sys.stdout.flush()
    sys.exit(code)


def started(
    script: str, argv: list[str], output: Path, environment: Mapping[str, str] | None = None
) -> BaseProcess:
    """A process that runs an entrypoint, one of those above."""
    process = CONTEXT.Process(target=_run, args=(script, argv, output, environment or {}))
    process.start()
    return process


class Together:
    """As many processes as torchrun would start, with the environment that it would set."""

    def __init__(self, count: int, script: str, argv: list[str], output: Path) -> None:
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.output = output
        self.processes = [
            started(script, argv, output, self._environment(rank, count)) for rank in range(count)
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
        """What they have printed so far."""
        return self.output.read_text("utf-8") if self.output.exists() else ""

    def end(self, seconds: float = 300) -> list[int | None]:
        """Their exit codes; what has not ended by then is killed."""
        for process in self.processes:
            process.join(seconds)
            process.kill()
            process.join()
        return [process.exitcode for process in self.processes]
