"""A disk that gets full at each write of a run: one line, and what was written before is whole."""

import argparse
import errno
import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from scripts.dev.soak_tests.runs import (
    ALL_THAT_IS_RANDOM,
    ENV,
    REPO,
    check_nothing_unfinished,
    check_same,
    data_flags,
    states,
    weights_left,
)
from scripts.dev.soak_tests.watch import broken_json, has_whole_state
from utils.console import log
from utils.data_utils import EMA, RunPaths, checkpoint_paths
from utils.errors import InputError, RunError

RHYTHM = ["--num_steps", "3", "--eval_every", "2", "--save_every", "2", "--log_every", "1"]
NO_SPACE = os.strerror(errno.ENOSPC)
TMPFS_SHARES = [tenths / 10 for tenths in range(1, 10)]  # real disks, of what a run leaves

T = TypeVar("T")


class Ended(NamedTuple):
    """How a run ended."""

    code: int
    errors: str  # its stderr
    operations: list[str]  # that wrote
    failed: str | None  # the first that the disk was full for


class Server:
    """Runs train.py in forks of a process that has made the imports."""

    def __init__(self, process: subprocess.Popen, folder: Path) -> None:
        """Talk to it.

        Args:
            process: of scripts/dev/soak_tests/full_disk.py.
            folder: for what the runs say.
        """
        self.process = process
        self.folder = folder
        self.runs = 0

    def run(self, flags: list[str], output: Path, fail_from: int | None = None) -> Ended:
        """Run train.py; from the operation `fail_from` on, the disk of `output` is full.

        Raises:
            RunError: the server is gone.
        """
        self.runs += 1
        path = self.folder / str(self.runs)
        request = {
            "flags": [*flags, "--output_dir", str(output)],
            "folder": str(output),
            "fail_from": fail_from,
            "log": str(path),
        }
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RunError("scripts/dev/soak_tests/full_disk.py ended; see what it wrote above")
        report = path.with_suffix(".json")
        facts = json.loads(report.read_text("utf-8")) if report.exists() else {}
        errors = path.with_suffix(".err").read_text("utf-8", errors="replace")
        return Ended(int(answer), errors, facts.get("operations", []), facts.get("failed"))


@contextmanager
def served(folder: Path) -> Iterator[Server]:
    """A server for the length of the block."""
    folder.mkdir()
    command = [sys.executable, str(REPO / "scripts/dev/soak_tests/full_disk.py")]
    with subprocess.Popen(
        command, cwd=REPO, env=ENV, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        yield Server(process, folder)
        process.stdin.close()


def chosen_writes(operations: list[str], stride: int) -> list[int]:
    """The numbers, from 1, of the operations to fail at.

    Args:
        operations: of a run.
        stride: of the writes to one file the first and the last are chosen, and every so-many-th.
    """
    chosen, inside = [], 0
    for number, name in enumerate(operations, start=1):
        neighbours = operations[number - 2 : number + 1]
        is_inside = name.startswith("write ") and neighbours == [name] * 3
        inside = inside + 1 if is_inside else 0
        if inside % stride == 0:
            chosen.append(number)
    return chosen


def spread(numbers: list[T], most: int | None) -> list[T]:
    """At most so many of `numbers`, evenly spread, the first and the last among them."""
    if most is None or most >= len(numbers):
        return numbers
    return [numbers[i * (len(numbers) - 1) // max(1, most - 1)] for i in range(most)]


def said(ended: Ended) -> str:
    """The end of a run's stderr, on one line."""
    return " | ".join(line.strip() for line in ended.errors.splitlines()[-3:]) or "nothing"


def check_ending(ended: Ended, where: str) -> None:
    """See that a run on a full disk ended with one line that says so.

    Raises:
        RunError: it did not.
    """
    if ended.code not in (1, 2):
        raise RunError(f"{where}: exit code {ended.code}, neither 1 nor 2; stderr: {said(ended)}")
    lines = ended.errors.splitlines()
    if len(lines) != 1 or not lines[0].startswith("error: ") or NO_SPACE not in lines[0]:
        raise RunError(f"{where}: not one error line that says {NO_SPACE!r}; stderr: {said(ended)}")


def check_what_lies_there(paths: RunPaths, where: str) -> None:
    """See that everything which a failed run left is whole.

    Raises:
        RunError: something is not.
    """
    from utils.checkpoint import load_checkpoint

    _, broken = broken_json(paths.output_dir)
    for variant in ("", EMA):
        path = checkpoint_paths(paths, variant).checkpoint
        if path.exists():
            try:
                load_checkpoint(path)
            except InputError as error:
                broken = broken or str(error)
    if states(paths) and not has_whole_state(paths):
        broken = broken or "no state is whole"
    if broken:
        raise RunError(f"{where}: {broken}")


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """A real disk in memory of `size` bytes at `folder`, which is made."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={size}", "soak", str(folder)]
    subprocess.run(["mount", *options], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True)


def no_mounting(folder: Path) -> str | None:
    """Why no real disk can be mounted here; None if it can."""
    if not sys.platform.startswith("linux"):
        return "only on Linux"
    if os.geteuid() != 0:
        return "only for root"
    try:
        with small_disk(folder, 1 << 20):
            return None
    except subprocess.CalledProcessError as error:
        return error.stderr.decode(errors="replace").strip()


@dataclass
class _Soak:
    """Runs on full disks, and what came of them."""

    server: Server
    flags: list[str]
    paths: RunPaths
    expected: dict[str, Any]  # of an undisturbed run
    resume_every: int
    failed: int = 0
    went_on: int = 0
    broken: list[str] = field(default_factory=list)

    def fail_at(self, number: int) -> None:
        """Train on a disk that is full at an operation, and judge it."""
        ended = self.server.run(self.flags, self.paths.output_dir, fail_from=number)
        # TensorBoard's thread writes when it gets to it: a run can have one operation less.
        if ended.failed is not None or ended.code != 0:
            self.judge(ended, f"full at write {number} ({ended.failed})", self.paths)
        shutil.rmtree(self.paths.output_dir, ignore_errors=True)

    def judge(
        self, ended: Ended, where: str, paths: RunPaths, make_room: Callable[[], None] | None = None
    ) -> None:
        """Check what a run on a full disk said and left, and now and then that it can go on.

        Args:
            ended: how it ended.
            where: to say of it.
            paths: where it wrote.
            make_room: called before it goes on; without, only every `resume_every`-th run does.
        """
        try:
            check_ending(ended, where)
            check_what_lies_there(paths, where)
            if make_room is not None or self.failed % self.resume_every == 0:
                (make_room or (lambda: None))()
                self._check_goes_on(paths, where)
                self.went_on += 1
        except RunError as error:
            self.broken.append(str(error))
            log.warning("broken: %s", error)
        else:
            log.info("%s: code %d, all whole", where, ended.code)
        self.failed += 1

    def _check_goes_on(self, paths: RunPaths, where: str) -> None:
        resume = ["--resume"] if states(paths) else []
        ended = self.server.run([*self.flags, *resume], paths.output_dir)
        if ended.code != 0:
            how = "--resume" if resume else "a new start"
            raise RunError(f"{where}: then {how} ended with code {ended.code}: {said(ended)}")
        try:
            check_same(self.expected, paths, weights_left(paths))
            check_nothing_unfinished(paths)
        except RunError as error:
            raise RunError(f"{where}: {error}") from error


def _real_disks(soak: _Soak, folder: Path, size: int, most: int | None) -> str:
    trouble = no_mounting(folder / "mounting")
    if trouble is not None:
        log.info("no real disk: %s", trouble)
        return f"skipped: {trouble}"
    shares = spread(TMPFS_SHARES, most)
    for share in shares:
        disk = folder / f"disk{share}"
        enlarge = ["mount", "-o", f"remount,size={4 * size}", str(disk)]
        make_room = functools.partial(subprocess.run, enlarge, check=True, capture_output=True)
        with small_disk(disk, int(size * share)):
            paths = RunPaths(disk / "output", "run")
            ended = soak.server.run(soak.flags, paths.output_dir)
            soak.judge(ended, f"a real disk of {share:.0%} of a run's size", paths, make_room)
    return f"{len(shares)} sizes"


def soak_disk(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Fill the disk at each write that a run makes; all that was written before must be whole.

    Raises:
        InputError: there are no data at `--data_root`.
        RunError: a promise was broken.
    """
    data = data_flags(args.data_root, folder)
    tiny = f"{data[1]}_tiny"
    flags = [
        "--name",
        "run",
        *data,
        *RHYTHM,
        *ALL_THAT_IS_RANDOM,
        "--model_type",
        "testing",
        "--img_size",
        "32",
        "--train_batch_size",
        "4",
        "--eval_batch_size",
        "4",
        "--num_workers",
        "0",
        "--tiny_train_subset",
        tiny,
        "--tiny_infer_subset",
        tiny,
    ]
    with served(folder / "said") as server:
        whole = RunPaths(folder / "whole", "run")
        undisturbed = server.run(flags, whole.output_dir)
        if undisturbed.code != 0:
            raise RunError(f"the undisturbed run failed: {said(undisturbed)}")
        expected = weights_left(whole)
        size = sum(path.stat().st_size for path in whole.output_dir.rglob("*") if path.is_file())
        writes = len(undisturbed.operations)
        log.info("undisturbed: %d writes, %d bytes in the end", writes, size)

        soak = _Soak(server, flags, RunPaths(folder / "output", "run"), expected, args.resume_every)
        for number in spread(chosen_writes(undisturbed.operations, args.stride), args.disks):
            soak.fail_at(number)
        real = _real_disks(soak, folder, size, args.disks)
    if soak.broken:
        raise RunError(
            f"{len(soak.broken)} of {soak.failed} full disks broke a promise, the first: "
            f"{soak.broken[0]}"
        )
    return {
        "data": data[1],
        "writes of a run": writes,
        "full disks": soak.failed,
        "of them gone on from": soak.went_on,
        "real disks": real,
    }
