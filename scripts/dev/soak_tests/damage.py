"""Damage the newest snapshot of a run, and see that the one before it is used."""

import argparse
import logging
import random
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.dev.soak_tests.runs import (
    check_same,
    is_same,
    results_of,
    run_to_its_end,
    tiny_flags,
    training,
)
from utils.console import log
from utils.data_utils import RunPaths
from utils.errors import InputError, RunError

PAGE = 4096  # bytes
STOP_AFTER = 8  # lines on stdout: 4 of the start, then a line a step; two snapshots exist
RHYTHM = shlex.split("--save_every 2 --log_every 1 --eval_every 8 --num_steps 24 --num_workers 0")


def flip_bits(data: bytes, generator: random.Random) -> bytes:
    """`data` with 1 to 8 random bits flipped."""
    damaged = bytearray(data)
    for bit in generator.sample(range(8 * len(data)), generator.randint(1, 8)):
        damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def truncate(data: bytes, generator: random.Random) -> bytes:
    """`data` without its end, or nothing of it."""
    return data[: generator.choice([0, generator.randrange(len(data))])]


def zero_page(data: bytes, generator: random.Random) -> bytes:
    """`data` with a page zeroed that was not zero."""
    while True:
        start = generator.randrange(max(1, len(data) - PAGE + 1))
        page = data[start : start + PAGE]
        if any(page):
            return data[:start] + bytes(len(page)) + data[start + PAGE :]


KINDS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "bits flipped": flip_bits,
    "truncated": truncate,
    "page zeroed": zero_page,
}


def check_is_noticed(paths: RunPaths, way: str) -> None:
    """See that the damaged newest snapshot of a run is passed over for the one before it.

    Raises:
        RunError: the damage was not noticed.
    """
    from utils.run.snapshot import load_newest, load_snapshot

    log.setLevel(logging.ERROR)  # else two warnings for each way
    try:
        loaded = load_newest(paths)
    except InputError as error:
        raise RunError(f"{way}: the snapshot before was not used: {error}") from error
    finally:
        log.setLevel(logging.INFO)
    if not is_same(loaded._asdict(), load_snapshot(paths.older(1))._asdict()):
        raise RunError(f"{way}: not noticed, {paths.last} was loaded")


def soak_damage(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Damage the newest snapshot in many ways; each must be noticed and the one before be used.

    Raises:
        InputError: the flowers are not at `--data_root`.
        RunError: a promise was broken.
    """
    flags = ["--name", "run", *tiny_flags(args.data_root, folder), *RHYTHM, "--output_dir"]
    stopped = RunPaths(folder / "stopped", "run")
    with training([*flags, str(stopped.output_dir)], folder / "stop") as run:
        run.wait_for_lines(STOP_AFTER)
        run.process.terminate()
        if (code := run.code()) != 143:
            raise RunError(f"a run that got SIGTERM ended with code {code}: {run.last_words()}")
    expected = {}
    if args.resumes:
        run_to_its_end([*flags, str(folder / "whole")], folder / "whole")
        expected = results_of(RunPaths(folder / "whole", "run"))

    good = stopped.last.read_bytes()
    generator, kinds = random.Random(args.seed), list(KINDS)
    noticed = dict.fromkeys(kinds, 0)
    for number in range(args.ways):
        kind = kinds[number % len(kinds)]
        way = f"{kind}, way {number + 1} of seed {args.seed}"
        stopped.last.write_bytes(KINDS[kind](good, generator))
        check_is_noticed(stopped, way)
        noticed[kind] += 1
        if number < args.resumes:
            damaged = RunPaths(folder / f"damaged{number}", "run")
            shutil.copytree(stopped.output_dir, damaged.output_dir)
            resume = [*flags, str(damaged.output_dir), "--resume"]
            lines = run_to_its_end(resume, folder / f"resume{number}")
            if not any(str(damaged.older(1)) in line for line in lines):
                raise RunError(f"{way}: --resume did not say that it uses {damaged.older(1)}")
            check_same(expected, results_of(damaged), way)
            log.info("%s: resumed from the snapshot before, same results", way)
    return {"seed": args.seed, "bytes": len(good), **noticed, "resumed": args.resumes}
