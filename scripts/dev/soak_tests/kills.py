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

STARTING_SHARE = 0.25  # share of the kills that come while a process starts,
STARTING_LINES = 4  # before it has printed so many lines
MAX_STEP_LINES = 6  # the others come after at most so many lines about steps
MAX_EXTRA_STEPS = 4  # and the time of at most so many steps
STEPS_A_KILL = 24  # more than a process can do until it is killed
# No two of these have a common divisor: snapshots hold unfinished readings, and evaluations come at
# steps that are saved and at steps that are not.
RHYTHM = shlex.split("--save_every 2 --log_every 3 --eval_every 5 --num_workers 2")


def kill_at_random(flags: list[str], output: Path, generator: random.Random, extra: float) -> str:
    """Run train.py, kill it with SIGKILL at a random moment, and return its last line on stdout.

    Args:
        flags: command line of train.py.
        output: path of its output, without an ending.
        generator: source of the moment.
        extra: most seconds to wait after one of the first lines or one about a step.

    Raises:
        RunError: the run ended by itself before that.
    """
    with training(flags, output) as run:
        if generator.random() < STARTING_SHARE:
            run.wait_for_lines(generator.randrange(STARTING_LINES))
        else:
            run.wait_for_lines(generator.randint(1, MAX_STEP_LINES), "step ")
        run.process.join(generator.uniform(0, extra))
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
            resumed = [*flags, "killed", *resume_flags(killed)]
            last = kill_at_random(resumed, folder / f"kill{kill}", generator, extra)
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
