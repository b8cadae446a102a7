"""Damage the newest snapshot of a run, and see that the one before it is used."""

import argparse
import logging
import random
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.dev.soak_tests.runs import is_same, run_to_its_end, tiny_flags
from utils.console import log
from utils.data_utils import RunPaths
from utils.errors import InputError, RunError

PAGE = 4096  # bytes
RHYTHM = shlex.split("--save_every 2 --eval_every 4 --num_steps 4 --num_workers 0")


def flip_bits(data: bytes, generator: random.Random) -> bytes:
    """Return `data` with 1 to 8 random bits flipped."""
    damaged = bytearray(data)
    for bit in generator.sample(range(8 * len(data)), generator.randint(1, 8)):
        damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def truncate(data: bytes, generator: random.Random) -> bytes:
    """Return `data` without its end, or nothing of it."""
    return data[: generator.choice([0, generator.randrange(len(data))])]


def zero_page(data: bytes, generator: random.Random) -> bytes:
    """Return `data` with a page zeroed that was not zero."""
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
    """Check that the damaged newest snapshot of a run is passed over for the one before it.

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
    paths = RunPaths(folder / "output", "run")
    flags = ["--name", "run", *tiny_flags(args.data_root, folder), *RHYTHM, "--output_dir"]
    run_to_its_end([*flags, str(paths.output_dir)], folder / "run")
    good = paths.last.read_bytes()
    generator, kinds = random.Random(args.seed), list(KINDS)
    noticed = dict.fromkeys(kinds, 0)
    for number in range(args.ways):
        kind = kinds[number % len(kinds)]
        paths.last.write_bytes(KINDS[kind](good, generator))
        check_is_noticed(paths, f"{kind}, way {number + 1} of seed {args.seed}")
        noticed[kind] += 1
    return {"seed": args.seed, "bytes": len(good), **noticed}
