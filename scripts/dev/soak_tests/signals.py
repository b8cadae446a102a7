"""End a training by signals at random moments and compare it with an undisturbed one."""

import argparse
import os
import random
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from scripts.dev.soak_tests.runs import (
    REPO,
    check_same,
    read_scalars,
    results_of,
    resume_flags,
    run_to_its_end,
    tiny_flags,
)
from utils.console import log
from utils.data_utils import RunPaths
from utils.environment import ENDINGS
from utils.errors import RunError
from utils.run.folder import has_snapshot

START_SECONDS = 3.0  # after the first line of ours, in which a signal comes
SAVE_SECONDS = 0.03  # after a save begins, the same
MAX_SECONDS = 60  # a run that has not ended by then has not obeyed
AGAIN_SHARE = 0.5  # share of the ended runs whose resumption is ended as well
MAX_SYNCS = 60  # of files, after which a signal comes in a save, early in a run; or of a run's end
RHYTHM = shlex.split("--num_steps 60 --save_every 2 --log_every 3 --eval_every 5 --num_workers 2")
# Runs a program that tells, through a pipe, that it has taken the signals (s), and each synced file
# (f). SIGHUP is not ignored, even if this soak test runs under `nohup`.
PROGRAM = """
import os, runpy, signal, sys
pipe, *sys.argv = sys.argv[1:]
signal.signal(signal.SIGHUP, signal.SIG_DFL)
def telling(real, letter):
    def told(*args):
        result = real(*args)
        if letter == b"f" or args[0] == signal.SIGTERM:
            os.write(int(pipe), letter)
        return result
    return told
signal.signal, os.fsync = telling(signal.signal, b"s"), telling(os.fsync, b"f")
sys.path.insert(0, os.getcwd())
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def end_by_signal(flags: list[str], at_save: bool, generator: random.Random) -> str:
    """Run train.py, end it by a signal at a random moment, and check how it ends.

    Args:
        flags: command line of train.py.
        at_save: whether the moment is during a save, with a second signal half of the time.
        generator: source of the moment.

    Returns:
        What became of the run.

    Raises:
        RunError: it hangs, or its code or what it says is not that of the signal.
    """
    signums = [generator.choice(list(ENDINGS))]
    if at_save and generator.random() < 0.5:
        signums.append(generator.choice([signal.SIGINT, signal.SIGTERM]))
    reader, writer = os.pipe()
    os.set_blocking(writer, False)  # nobody reads on
    letter, count = (b"f", generator.randint(1, MAX_SYNCS)) if at_save else (b"s", 1)
    command = [sys.executable, "-c", PROGRAM, str(writer), "train.py", *flags]
    with subprocess.Popen(
        command, cwd=REPO, pass_fds=[writer], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        os.close(writer)
        while count:
            count -= os.read(reader, 1) in (letter, b"")  # nothing: the run has ended
        time.sleep(generator.uniform(0, SAVE_SECONDS if at_save else START_SECONDS))
        for signum in signums:
            process.send_signal(signum)
            time.sleep(generator.uniform(0, SAVE_SECONDS))
        try:
            said = process.communicate(timeout=MAX_SECONDS)[1].decode()
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise RunError(f"{signums} was not obeyed within {MAX_SECONDS} s") from error
        syncs = len(os.read(reader, 1 << 16)) if select.select([reader], [], [], 0)[0] else 0
        os.close(reader)
    if (process.returncode, said) == (0, "") and syncs <= MAX_SYNCS:
        return "came too late"
    # The second may come when the first has ended the run.
    if not any(
        (process.returncode, said) == (128 + signum, f"error: {ENDINGS[signum]}\n")
        for signum in signums
    ):
        raise RunError(f"{signums}: code {process.returncode} and {said!r}")
    return "obeyed"


def soak_signals(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """End a training by signals at random moments, in its start and in saves, and resume it.

    Raises:
        InputError: the flowers are not at `--data_root`.
        RunError: a promise was broken.
    """
    generator = random.Random(args.seed)
    moments = [False] * args.starts + [True] * args.saves
    generator.shuffle(moments)
    flags = [*tiny_flags(args.data_root, folder), *RHYTHM, "--name", "run", "--output_dir"]
    whole, ended = RunPaths(folder / "whole", "run"), RunPaths(folder / "ended", "run")
    run_to_its_end([*flags, str(whole.output_dir)], folder / "whole")
    expected = {**results_of(whole), **read_scalars(whole.tensorboard)}
    again = [*flags, str(ended.output_dir)]

    seen = {"obeyed": 0, "came too late": 0, "before the first save": 0, "runs compared": 0}
    for number, at_save in enumerate(moments, 1):
        became = end_by_signal([*again, *resume_flags(ended)], at_save, generator)
        seen[became] += 1
        seen["before the first save"] += not has_snapshot(ended)
        where = "a save" if at_save else "the start"
        log.info("signal %d of %d, in %s: %s", number, len(moments), where, became)
        if number == len(moments) or generator.random() >= AGAIN_SHARE:
            run_to_its_end([*again, *resume_flags(ended)], folder / "end")
            found = {**results_of(ended), **read_scalars(ended.tensorboard)}
            check_same(expected, found, f"signal {number}")
            seen["runs compared"] += 1
            shutil.rmtree(ended.output_dir)
    return {"seed": args.seed, **seen, "results compared": len(expected)}
