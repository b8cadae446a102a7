"""Kill a training again and again, and compare it with an undisturbed one."""

import argparse
import random
import shlex
import time
from pathlib import Path
from typing import Any

from scripts.dev.soak_tests.runs import (
    check_same,
    read_scalars,
    results_of,
    resume_flags,
    run_to_its_end,
    tiny_flags,
    training,
)
from scripts.dev.soak_tests.watch import watched
from utils.console import log
from utils.data_utils import RunPaths
from utils.errors import RunError

MAX_LINES = 10  # a process is killed after so many of its lines at the latest; 4 come at the start
MAX_EXTRA_STEPS = 4  # and after the time of so many steps
STEPS_A_KILL = 24  # more than a process can do until it is killed
# No two of these have a common divisor: snapshots hold unfinished readings, and evaluations come at
# steps that are saved and at steps that are not.
RHYTHM = shlex.split("--save_every 2 --log_every 3 --eval_every 5 --num_workers 2")


def kill_after(flags: list[str], output: Path, lines: int, seconds: float) -> str:
    """Run train.py and kill it with SIGKILL `seconds` after its first `lines` lines.

    Returns:
        Its last line on stdout.

    Raises:
        RunError: the run ended by itself before.
    """
    with training(flags, output) as run:
        run.wait_for_lines(lines)
        run.process.join(seconds)
        if run.process.exitcode is not None:
            raise RunError(
                f"a run ended with code {run.code()} before it was killed: {run.last_words()}"
            )
        run.process.kill()
        run.process.join()
        return (run.lines() or ["its start"])[-1]


def soak_kills(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Kill a training with SIGKILL at random moments and resume it; its results must not change.

    Raises:
        InputError: the flowers are not at `--data_root`.
        RunError: a promise was broken.
    """
    num_steps = STEPS_A_KILL * (args.kills + 1)
    flags = [*tiny_flags(args.data_root, folder), *RHYTHM, "--num_steps", str(num_steps)]
    flags += ["--output_dir", str(folder / "output"), "--name"]
    whole, killed = (RunPaths(folder / "output", name) for name in ("whole", "killed"))
    began = time.perf_counter()
    run_to_its_end([*flags, "whole"], folder / "whole")
    extra = MAX_EXTRA_STEPS * (time.perf_counter() - began) / num_steps

    generator = random.Random(args.seed)
    with watched(killed) as watch:
        for kill in range(1, args.kills + 1):
            lines, seconds = generator.randrange(MAX_LINES), generator.uniform(0, extra)
            resumed = [*flags, "killed", *resume_flags(killed)]
            last = kill_after(resumed, folder / f"kill{kill}", lines, seconds)
            log.info("kill %d of %d, after: %s", kill, args.kills, last)
            watch.check()
        run_to_its_end([*flags, "killed", *resume_flags(killed)], folder / "end")
    expected, found = (
        {**results_of(paths), **read_scalars(paths.tensorboard)} for paths in (whole, killed)
    )
    check_same(expected, found, f"{args.kills} kills")
    return {
        "steps": num_steps,
        "kills": args.kills,
        "seed": args.seed,
        "looks at the files": watch.looks,
        "results compared": len(expected),
    }
