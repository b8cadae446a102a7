"""Damage each file of an interrupted run, resume it, and see that nothing is kept silently."""

import argparse
import random
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.dev.soak_tests.runs import (
    Training,
    is_same,
    read_scalars,
    results_of,
    run_to_its_end,
    tiny_flags,
    training,
)
from utils.console import log
from utils.data_utils import RunPaths
from utils.errors import RunError
from utils.files import remove_unfinished
from utils.run.folder import read_stamp

RHYTHM = shlex.split(
    "--num_steps 40 --eval_every 8 --save_every 2 --log_every 1 --num_workers 0 --export_logits"
)
KILLED_AT = (10, 20)  # steps after which the run is killed, once for each of its starts
OTHER = ["--seed", "7"]  # what makes another run
MINE = "mine.txt"  # a file of the user's


def cut(path: Path, *_: object) -> None:
    """Cut a file to half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero(path: Path, *_: object) -> None:
    """Zero a file."""
    path.write_bytes(bytes(path.stat().st_size))


def flip(path: Path, _: Path, generator: random.Random) -> None:
    """Flip a bit of a file."""
    data = bytearray(path.read_bytes())
    bit = generator.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def remove(path: Path, *_: object) -> None:
    """Remove a file or folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def swap(path: Path, other: Path, _: random.Random) -> None:
    """Put another run's file or folder in its place."""
    remove(path)
    (shutil.copytree if other.is_dir() else shutil.copyfile)(other, path)


def replace_by_folder(path: Path, *_: object) -> None:
    """Put a folder of the user's in its place."""
    remove(path)
    path.mkdir()
    (path / MINE).touch()


def replace_by_file(path: Path, *_: object) -> None:
    """Put a file of the user's in its place."""
    remove(path)
    path.touch()


Way = Callable[[Path, Path, random.Random], None]
OF_FILES: dict[str, Way] = {
    "deleted": remove,
    "cut to half": cut,
    "zeroed": zero,
    "a bit flipped": flip,
    "another run's": swap,
    "a folder": replace_by_folder,
}
OF_FOLDERS: dict[str, Way] = {
    "deleted": remove,
    "another run's": swap,
    "a file": replace_by_file,
}


def interrupt(flags: list[str], output: Path, kept: Path) -> None:
    """Start a run of `flags` again and again, kill each start, and move what is left to `kept`.

    Raises:
        RunError: it ended by itself.
    """
    for start, step in enumerate(KILLED_AT):
        resume = ["--resume"] if start else []
        with training([*flags, *resume], output.with_name("interrupted")) as run:
            run.wait_for_lines(1, f"step {step}/")
            if run.process.exitcode is not None:
                raise RunError(f"a run ended before it was killed: {run.last_words()}")
    output.rename(kept)


def cases_of(interrupted: Path, other: Path) -> list[tuple[str, str, Way, Path]]:
    """Return what to do: path below the output folder, name and kind of damage, other run's."""
    paths, others = RunPaths(interrupted, "run"), RunPaths(other, "run")
    remove_unfinished(paths.run)  # the kill may have left one
    pairs = {path: other / path.relative_to(interrupted) for path in paths.run.rglob("*")}
    events = [sorted(each.tensorboard.iterdir()) for each in (paths, others)]
    pairs |= {**dict(zip(*events, strict=True)), paths.tensorboard: others.tensorboard}
    pairs[paths.lock] = others.lock
    return [
        (path.relative_to(interrupted).as_posix(), name, way, pairs[path])
        for path in sorted(pairs)
        for name, way in (OF_FOLDERS if path.is_dir() else OF_FILES).items()
    ]


def everything_of(paths: RunPaths) -> dict[str, Any]:
    """Return what a finished run left, all but times and the starts that made it."""
    notes = {path.name: path.read_bytes() for path in (paths.labelmap, paths.retention)}
    return {**results_of(paths), **read_scalars(paths.tensorboard), **notes}


def outcome(
    run: Training, name: str, paths: RunPaths, expected: dict[str, Any], before: dict[str, Any]
) -> str:
    """Return how a run ended that was resumed after a file was damaged.

    Args:
        run: the run.
        name: path of what was damaged, below the output folder.
        paths: paths of the run.
        expected: what an undisturbed run left.
        before: stamp of the run before the damage.

    Raises:
        RunError: it ended otherwise than an undisturbed run, and did not say why.
    """
    code, errors = run.code(), run.lines(".err")
    named = (name, name.rpartition("/")[0] or name)  # event files are counted
    said = [line for line in run.lines() if "warning: " in line and any(n in line for n in named)]
    told = "; ".join(dict.fromkeys(each.replace(f"{paths.output_dir}/", "") for each in said))
    if code:
        if code not in (1, 2) or len(errors) != 1 or not any(n in errors[0] for n in named):
            raise RunError(f"code {code}: {run.last_words()}")
        return f"exit {code}: {errors[0].replace(f'{paths.output_dir}/', '')}"
    found, stamp = everything_of(paths), read_stamp(paths)
    wrong = [key for key in expected if not is_same(expected[key], found.get(key))]
    if stamp["run_id"] != before["run_id"] or stamp["sessions"][:-1] != before["sessions"]:
        wrong.append("env_stamp.json")
    if wrong and not said:
        raise RunError(f"it differs from an undisturbed run in {', '.join(wrong)} and says nothing")
    ended = "differs" if wrong else "bit-equal"
    return f"{ended}; says: {told}" if told else ended


def soak_files(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Damage each file of an interrupted run; resumed, it is as undisturbed or says what it lacks.

    Raises:
        InputError: the flowers are not at `--data_root`.
        RunError: a promise was broken.
    """
    paths = RunPaths(folder / "output", "run")
    flags = [*tiny_flags(args.data_root, folder), *RHYTHM, "--name", "run", "--output_dir"]
    flags.append(str(paths.output_dir))
    run_to_its_end(flags, folder / "whole")
    expected = everything_of(paths)
    shutil.rmtree(paths.output_dir)
    interrupted, other = folder / "kept", folder / "other"
    interrupt(flags, paths.output_dir, interrupted)
    interrupt([*flags, *OTHER], paths.output_dir, other)
    before = read_stamp(RunPaths(interrupted, "run"))
    generator, cases = random.Random(args.seed), cases_of(interrupted, other)
    if args.cases is not None:
        cases = generator.sample(cases, min(args.cases, len(cases)))
    log.info("| what | damage | the resumed run |")
    log.info("|---|---|---|")
    equal = 0
    for name, what, way, of_other in cases:
        shutil.copytree(interrupted, paths.output_dir)
        damaged = paths.output_dir / name
        way(damaged, of_other, generator)
        with training([*flags, "--resume"], folder / "resumed") as run:
            try:
                ended = outcome(run, name, paths, expected, before)
            except RunError as error:
                raise RunError(f"{name}, {what}: {error}") from error
        if way is replace_by_folder and not (damaged / MINE).exists():
            raise RunError(f"{name}: a folder of the user's was replaced")
        log.info("| `%s` | %s | %s |", name, what, ended)
        equal += ended.startswith("bit-equal")
        shutil.rmtree(paths.output_dir)
    return {"cases": len(cases), "seed": args.seed, "bit-equal": equal}
