"""A damaged state is noticed, and the one before it is taken."""

import argparse
import logging
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scripts.dev.soak_tests.runs import (
    ALL_THAT_IS_RANDOM,
    all_left,
    check_same,
    data_flags,
    is_same,
    run_to_its_end,
    session,
)
from utils.console import log
from utils.data_utils import RunPaths
from utils.errors import InputError, RunError

PAGE = 4096
STOP_AFTER = 5  # steps, when there is a state and one before it
NUM_STEPS = 24  # many enough that the run is not over when the signal arrives
RHYTHM = f"--save_every 2 --log_every 1 --eval_every 8 --num_steps {NUM_STEPS}".split()


def flip_bits(data: bytes, generator: random.Random) -> bytes:
    """1 to 8 random bits are others."""
    damaged = bytearray(data)
    for bit in generator.sample(range(8 * len(data)), generator.randint(1, 8)):
        damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def truncate(data: bytes, generator: random.Random) -> bytes:
    """The end is missing, or everything."""
    return data[: generator.choice([0, generator.randrange(len(data))])]


def zero_page(data: bytes, generator: random.Random) -> bytes:
    """A page that was not zero is."""
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


@contextmanager
def _overheard() -> Iterator[list[str]]:
    """The lines that are logged in the block, which are not shown."""
    lines = []

    def keep(record: logging.LogRecord) -> bool:
        lines.append(record.getMessage())
        return False

    log.addFilter(keep)
    try:
        yield lines
    finally:
        log.removeFilter(keep)


def _stopped_run(flags: list[str]) -> None:
    with session(flags) as run:
        run.wait_for(lambda: run.step >= STOP_AFTER)
        run.process.send_signal(signal.SIGTERM)
        code = run.code()
    if code != 143:
        raise RunError(f"a run that got SIGTERM ended with code {code}: {run.last_words()}")


def check_is_noticed(paths: RunPaths, way: str) -> None:
    """See that the damaged newest state of a run is passed over for the one before it.

    Raises:
        RunError: it is not, or nothing is said.
    """
    from utils.snapshot import load_newest, load_snapshot

    with _overheard() as lines:
        try:
            loaded = load_newest(paths)
        except InputError as error:
            raise RunError(f"{way}: the state before was not taken: {error}") from error
    if not is_same(loaded._asdict(), load_snapshot(paths.older(1))._asdict()):
        raise RunError(f"{way}: not noticed, {paths.last} was loaded")
    if not any(f"going back to {paths.older(1)}" in line for line in lines):
        raise RunError(f"{way}: noticed, but nothing was said")


def _check_goes_on(flags: list[str], paths: RunPaths, way: str, expected: dict[str, Any]) -> None:
    run = run_to_its_end([*flags, "--output_dir", str(paths.output_dir), "--resume"])
    if not any(f"going back to {paths.older(1)}" in line for line in run.lines):
        raise RunError(f"{way}: --resume did not say that it went back")
    check_same(expected, paths, all_left(paths))


def soak_damage(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Damage the newest state in many ways; each must be noticed, the one before be used.

    Raises:
        InputError: there are no data at `--data_root`.
        RunError: a promise was broken.
    """
    data = data_flags(args.data_root, folder)
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
        "8",
        "--eval_batch_size",
        "16",
        "--num_workers",
        "0",
        "--tiny_train_subset",
        f"{data[1]}_tiny",
        "--tiny_infer_subset",
        f"{data[1]}_tiny",
    ]
    whole, stopped = RunPaths(folder / "whole", "run"), RunPaths(folder / "stopped", "run")
    run_to_its_end([*flags, "--output_dir", str(whole.output_dir)])
    expected = all_left(whole)
    _stopped_run([*flags, "--output_dir", str(stopped.output_dir)])
    good = stopped.last.read_bytes()
    log.info("a run was stopped; its state has %d bytes", len(good))

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
            _check_goes_on(flags, damaged, way, expected)
            log.info("%s: --resume ended as an undisturbed run", kind)
    return {
        "data": data[1],
        "seed": args.seed,
        "bytes": len(good),
        **noticed,
        "gone on from": min(args.resumes, args.ways),
    }
