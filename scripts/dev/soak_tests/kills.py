"""A training that is killed again and again, against one that is not."""

import argparse
import random
import time
from pathlib import Path
from typing import Any, NamedTuple

from scripts.dev.soak_tests.runs import (
    ALL_THAT_IS_RANDOM,
    Session,
    all_left,
    check_nothing_unfinished,
    check_same,
    data_flags,
    run_to_its_end,
    session,
    states,
)
from scripts.dev.soak_tests.watch import Watch, watched
from utils.console import log
from utils.data_utils import RunPaths
from utils.errors import RunError

STEPS_BETWEEN = 8  # a session is killed at the latest when it has done so many
STARTING_SHARE = 0.25  # of the kills that come before the first step of a session
# No two of these have a common divisor: states hold readings that are not finished, and
# evaluations come at steps that are saved and at steps that are not.
RHYTHM = ["--save_every", "2", "--log_every", "3", "--eval_every", "5"]


class Pace(NamedTuple):
    """How long the parts of a session take, in seconds."""

    start: float  # from the first line to the first step that is named
    step: float  # with its share of saving and evaluating


def measured_run(flags: list[str]) -> Pace:
    """Run train.py to its end and measure it.

    Raises:
        RunError: it failed.
    """
    with session(flags) as run:
        run.wait_for(lambda: run.lines)
        began = time.perf_counter()
        run.wait_for(lambda: run.step)
        first, first_at = run.step, time.perf_counter()
        code, ended = run.code(), time.perf_counter()
    if code != 0:
        raise RunError(f"the undisturbed run ended with code {code}: {run.last_words()}")
    return Pace(first_at - began, (ended - first_at) / max(1, run.step - first))


def kill_at_random(run: Session, pace: Pace, generator: random.Random) -> str | None:
    """Kill a session at a random moment: while it starts, or later.

    Returns:
        What it was doing, or None if it ended by itself before.
    """
    run.wait_for(lambda: run.lines)
    if generator.random() < STARTING_SHARE:
        seconds = generator.uniform(0, pace.start)
        ended = run.wait_for(lambda: False, seconds)
    else:
        seconds = generator.uniform(0, STEPS_BETWEEN * pace.step)
        run.wait_for(lambda: run.step)
        enough = run.step + STEPS_BETWEEN
        ended = run.wait_for(lambda: run.step >= enough, seconds)
    if ended:
        return None
    run.kill()
    return f"after step {run.step}" if run.step else "while it started"


def _kill_and_go_on(
    flags: list[str], paths: RunPaths, args: argparse.Namespace, pace: Pace, watch: Watch
) -> None:
    generator = random.Random(args.seed)
    for kill in range(1, args.kills + 1):
        resume = ["--resume"] if states(paths) else []
        with session([*flags, *resume]) as run:
            doing = kill_at_random(run, pace, generator)
            if doing is None:
                code = run.code()
                trouble = "give more --num_steps" if code == 0 else run.last_words()
                raise RunError(
                    f"the run ended with code {code} after {kill - 1} of {args.kills} kills: "
                    f"{trouble}"
                )
        log.info("kill %d of %d: %s", kill, args.kills, doing)
        watch.check()
    run_to_its_end([*flags, *(["--resume"] if states(paths) else [])])


def soak_kills(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Kill a training at random moments; it must end as if nothing had happened.

    Raises:
        InputError: there are no data at `--data_root`.
        RunError: a promise was broken.
    """
    # A session does at most STEPS_BETWEEN steps and those to the next line, so there is always
    # something left to kill.
    num_steps = args.num_steps or (STEPS_BETWEEN + 3) * args.kills + STEPS_BETWEEN
    data = data_flags(args.data_root, folder)
    output = folder / "output"
    flags = [
        *data,
        *RHYTHM,
        *ALL_THAT_IS_RANDOM,
        "--output_dir",
        str(output),
        "--num_steps",
        str(num_steps),
        "--model_type",
        args.model_type,
        "--img_size",
        str(args.img_size),
        "--train_batch_size",
        "8",
        "--eval_batch_size",
        "16",
        "--num_workers",
        "2",
        "--tiny_infer_subset",
        f"{data[1]}_tiny",
    ]
    whole, killed = RunPaths(output, "whole"), RunPaths(output, "killed")
    pace = measured_run(["--name", "whole", *flags])
    log.info("undisturbed: %.1f s to the first step, %.3f s a step", *pace)
    with watched(killed) as watch:
        _kill_and_go_on(["--name", "killed", *flags], killed, args, pace, watch)
    expected = all_left(whole)
    check_same(expected, killed, all_left(killed))
    check_nothing_unfinished(killed)
    return {
        "data": data[1],
        "steps": num_steps,
        "kills": args.kills,
        "seed": args.seed,
        "seconds to the first step": pace.start,
        "seconds a step": pace.step,
        "looks at the files": watch.looks,
        "JSON files parsed": watch.files_read,
        "things compared": len(expected),
    }
