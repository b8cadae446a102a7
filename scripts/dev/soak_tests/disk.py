"""Fill the disk at each write of a run: one error line, and earlier files stay whole."""

import argparse
import errno
import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from scripts.dev.soak_tests.full_disk import FullDisk
from scripts.dev.soak_tests.runs import (
    check_same,
    results_of,
    resume_flags,
    run_to_its_end,
    tiny_flags,
    training,
)
from scripts.dev.soak_tests.watch import broken_checkpoint, broken_json, has_whole_snapshot
from utils.console import log
from utils.data_utils import RunPaths
from utils.errors import RunError

RHYTHM = shlex.split("--num_steps 3 --eval_every 2 --save_every 2 --log_every 1 --num_workers 0")
NO_SPACE = os.strerror(errno.ENOSPC)
RESUME_EVERY = 5  # resuming every failed run would double the time


class Ended(NamedTuple):
    """The ending of a run on a pretended disk."""

    code: int
    errors: list[str]  # lines on stderr
    operations: list[str]  # that wrote, in order
    failed: str | None  # the first operation that the disk was full for


def run_on_disk(flags: list[str], paths: RunPaths, fail_from: int | None) -> Ended:
    """Run train.py on a disk that is full from the operation `fail_from` on."""
    output = paths.output_dir.with_name(f"{paths.output_dir.name}_said")
    with training(flags, output, FullDisk(paths.output_dir, fail_from)) as run:
        code = run.code()
        report = json.loads(output.with_suffix(".json").read_text("utf-8"))
        return Ended(code, run.lines(".err"), report["operations"], report["failed"])


def spread(count: int, most: int | None) -> list[int]:
    """Return at most `most` of the numbers 1 to `count`, evenly spread, with first and last."""
    chosen = count if most is None else min(most, count)
    return [1 + i * (count - 1) // max(1, chosen - 1) for i in range(chosen)]


def check_ending(ended: Ended, where: str) -> None:
    """Check that a run on a full disk ended with one line that says so.

    Raises:
        RunError: exit code or stderr is different.
    """
    says_so = len(ended.errors) == 1 and ended.errors[0].startswith("error: ")
    if ended.code not in (1, 2) or not says_so or NO_SPACE not in ended.errors[0]:
        said = " | ".join(ended.errors[-3:]) or "nothing"
        raise RunError(
            f"{where}: expected exit code 1 or 2 and one error line that says {NO_SPACE!r}, got "
            f"code {ended.code} and: {said}"
        )


def check_what_is_left(paths: RunPaths, where: str) -> None:
    """Check that everything that a failed run left is whole.

    Raises:
        RunError: a file is not; names it.
    """
    broken = broken_json(paths.output_dir) or broken_checkpoint(paths)
    if broken is None and resume_flags(paths) and not has_whole_snapshot(paths):
        broken = "no snapshot is whole"
    if broken:
        raise RunError(f"{where}: {broken}")


def soak_disk(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Fill the disk at each write of a run; everything written before must stay whole.

    Raises:
        InputError: the flowers are not at `--data_root`.
        RunError: a promise was broken.
    """
    tiny = tiny_flags(args.data_root, folder)
    flags = ["--name", "run", *tiny, *RHYTHM, "--tiny_train_subset", tiny[-1], "--output_dir"]
    whole, paths = RunPaths(folder / "whole", "run"), RunPaths(folder / "output", "run")
    undisturbed = run_on_disk([*flags, str(whole.output_dir)], whole, None)
    if undisturbed.code != 0:
        raise RunError(f"the undisturbed run failed: {undisturbed.errors}")
    expected, writes = results_of(whole), len(undisturbed.operations)
    flags.append(str(paths.output_dir))
    failed = resumed = 0
    for number in spread(writes, args.disks):
        ended = run_on_disk(flags, paths, number)
        where = f"full at write {number} of {writes} ({ended.failed})"
        # TensorBoard's thread writes when it gets to it: a run can have one operation less.
        if ended.failed is not None or ended.code != 0:
            check_ending(ended, where)
            check_what_is_left(paths, where)
            if failed % RESUME_EVERY == 0:
                run_to_its_end([*flags, *resume_flags(paths)], folder / "resumed")
                check_same(expected, results_of(paths), where)
                resumed += 1
            failed += 1
            log.info("%s: code %d, all whole", where, ended.code)
        shutil.rmtree(paths.output_dir, ignore_errors=True)
    return {"writes of a run": writes, "full disks": failed, "resumed": resumed}
