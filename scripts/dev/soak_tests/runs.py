"""Train in processes that can be killed, and compare what two runs left."""

import importlib
import json
import logging
import multiprocessing
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from scripts.dev.soak_tests.full_disk import FullDisk
from utils.data.catalog import get_spec
from utils.data.readers import synthetic
from utils.data_utils import EMA, RunPaths, checkpoint_paths, with_home
from utils.errors import InputError, RunError
from utils.run.folder import read_stamp

REPO = Path(__file__).resolve().parents[3]
CONTEXT = multiprocessing.get_context("forkserver")
PRELOAD = ["torch", "torchvision", "torch.utils.tensorboard", "scipy.io", "train"]
MAX_SECONDS = 300  # a run on a tiny model that takes longer hangs
PAUSE = 0.01  # seconds between two looks at a run's output
# Scalars that say how long something took: no two runs agree.
TIMINGS = ("train/images_per_second", "data/wait_fraction")
# A tiny model that draws random numbers (dropout, mixed images) and averages its weights (EMA).
TINY_RUN = shlex.split(
    "--model_type testing --img_size 32 --train_batch_size 8 --eval_batch_size 16 --device cpu "
    "--dropout 0.1 --preset strong --ema_decay 0.9"
)


def tiny_flags(data_root: Path | None, folder: Path) -> list[str]:
    """Return the flags of a tiny run on the real flowers, else on ones drawn into `folder`.

    Args:
        data_root: Flowers-102 or its parent; None: $DATA_ROOT, if it is set.
        folder: existing folder of the soak test.

    Raises:
        InputError: `data_root` or $DATA_ROOT does not hold the flowers.
    """
    named = data_root or os.environ.get("DATA_ROOT")
    if named:
        spec = get_spec("flower102")
        dataset, root = "flower102", spec.find_root(spec, Path(with_home(str(named)))).resolve()
    else:
        dataset, root = "synthetic", folder / "drawn"
        synthetic.draw(root)
    data = ["--dataset", dataset, "--data_root", str(root)]
    return [*data, *TINY_RUN, "--tiny_infer_subset", f"{dataset}_tiny"]


def _train(
    flags: list[str], output: Path, disk: FullDisk | None, impose: Callable[[], None] | None
) -> None:
    """Run train.py in this forked process, with its output and a report of its writes in files."""
    import torch

    for descriptor, ending in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(output.with_suffix(ending), os.O_WRONLY | os.O_CREAT), descriptor)
    os.chdir(REPO)
    # Loaders start as in a process that a user starts, not in the server of these forks.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    torch.set_num_threads(1)  # more threads are slower for so small a model
    if impose is not None:
        impose()
    if disk is not None:
        disk.install()
    code = importlib.import_module("train").main(flags)  # a program to the soak, not a part of it
    if disk is not None:
        report = {"operations": disk.operations, "failed": disk.failed}
        output.with_suffix(".json").write_text(json.dumps(report), "utf-8")
    raise SystemExit(code)


class Training:
    """A process of train.py, forked from one that has imported torch."""

    def __init__(
        self,
        flags: list[str],
        output: Path,
        disk: FullDisk | None = None,
        impose: Callable[[], None] | None = None,
    ) -> None:
        """Start the process.

        Args:
            flags: command line of train.py.
            output: path without an ending; .out, .err and, with a disk, .json are written there.
            disk: disk that gets full; None: the real one.
            impose: limits the process before train.py begins.
        """
        CONTEXT.set_forkserver_preload(PRELOAD)
        for ending in (".out", ".err"):
            output.with_suffix(ending).write_bytes(b"")
        self.output = output
        self.process: BaseProcess = CONTEXT.Process(
            target=_train, args=(flags, output, disk, impose)
        )
        self.process.start()

    def lines(self, ending: str = ".out") -> list[str]:
        """Return the lines on stdout (.out) or stderr (.err) so far."""
        return self.output.with_suffix(ending).read_text("utf-8", errors="replace").splitlines()

    def last_words(self) -> str:
        """Return the end of stderr, or of stdout if stderr is empty, on one line."""
        return " | ".join((self.lines(".err") or self.lines() or ["nothing"])[-3:])

    def wait_for_lines(self, count: int, start: str = "") -> None:
        """Wait for `count` lines on stdout that begin with `start`, or for the process's end."""
        while self.process.is_alive() and sum(s.startswith(start) for s in self.lines()) < count:
            time.sleep(PAUSE)

    def code(self) -> int:
        """Wait for the end and return the exit code.

        Raises:
            RunError: the process hangs.
        """
        self.process.join(MAX_SECONDS)
        if self.process.exitcode is None:
            raise RunError(f"a run has not ended after {MAX_SECONDS} s: {self.last_words()}")
        return self.process.exitcode


@contextmanager
def training(
    flags: list[str],
    output: Path,
    disk: FullDisk | None = None,
    impose: Callable[[], None] | None = None,
) -> Iterator[Training]:
    """Start a `Training` that is killed with SIGKILL if the block leaves it running."""
    started = Training(flags, output, disk, impose)
    try:
        yield started
    finally:
        started.process.kill()
        started.process.join()


def run_to_its_end(flags: list[str], output: Path) -> list[str]:
    """Run train.py and return its lines on stdout.

    Raises:
        RunError: train.py failed; names its last line.
    """
    with training(flags, output) as run:
        if (code := run.code()) != 0:
            raise RunError(f"train.py {' '.join(flags)} ended with code {code}: {run.last_words()}")
        return run.lines()


def resume_flags(paths: RunPaths) -> list[str]:
    """Return `--resume` if the run has a snapshot; without one it starts anew."""
    from utils.run.folder import has_snapshot

    return ["--resume"] if has_snapshot(paths) else []


def is_same(first: Any, second: Any) -> bool:  # noqa: ANN401 - tensors and plain data of any shape
    """Return whether tensors and plain data have the same bits."""
    from torch import Tensor, equal

    if type(first) is not type(second):
        return False
    if isinstance(first, Mapping):
        same_keys = list(first) == list(second)
        return same_keys and all(is_same(value, second[key]) for key, value in first.items())
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(is_same, first, second))
    if isinstance(first, Tensor):
        return first.dtype == second.dtype and equal(first, second)
    return first == second


def read_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return tag to all (step, value) of the TensorBoard events in a folder, but the timings."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it names each purge of a resume
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in sorted(events.Tags()["scalars"])
        if tag not in TIMINGS
    }


def results_of(paths: RunPaths) -> dict[str, Any]:
    """Return by name what a finished run left and two runs of the same flags must agree on.

    Raises:
        RunError: something is missing or damaged, or an unfinished file was left behind.
    """
    from utils.evaluation.predictions import predictions_digest
    from utils.files import UNFINISHED
    from utils.run.snapshot import load_snapshot

    unfinished = [*paths.run.rglob(f"*{UNFINISHED}"), *filter(Path.exists, [paths.lock])]
    if unfinished:
        raise RunError(f"{unfinished[0]} was left behind")
    try:
        snapshot = load_snapshot(paths.last)
        results: dict[str, Any] = {"last.bin": [snapshot.header.step, snapshot.parts]}
        for variant in ("", EMA):
            of = checkpoint_paths(paths, variant)
            for path in (of.checkpoint, of.metrics, of.per_class):
                results[path.name] = path.read_bytes()
            results[of.predictions.name] = predictions_digest(of.predictions)
    except (InputError, OSError) as error:
        raise RunError(f"{paths.run} is not whole: {error}") from error
    stamp = read_stamp(paths)
    keys = ("status", "predictions_digest", f"{EMA}_predictions_digest")
    return results | {f"{key} in the stamp": stamp.get(key) for key in keys}


def check_same(expected: Mapping[str, Any], results: Mapping[str, Any], where: str) -> None:
    """Compare the results of a run with those of an undisturbed one.

    Raises:
        RunError: something differs; names it.
    """
    keys = [*expected, *(key for key in results if key not in expected)]
    wrong = [k for k in keys if k not in results or not is_same(expected.get(k), results[k])]
    if wrong:
        raise RunError(f"{where}: differs from an undisturbed run in {', '.join(wrong)}")
