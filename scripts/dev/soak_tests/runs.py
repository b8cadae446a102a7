"""What the soak tests share: runs of train.py to start, watch and stop, and what is left of one."""

import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils.data_utils import EMA, RunPaths, checkpoint_paths, read_stamp
from utils.dataset import get_spec
from utils.errors import InputError, RunError
from utils.readers import synthetic

REPO = Path(__file__).resolve().parents[3]
ENV = {"OMP_NUM_THREADS": "1", **os.environ}  # more threads are slower for so small a model
STEP_LINE = re.compile(r"step (\d+)/")
# Scalars that say how long something took: no two runs agree.
TIMINGS = ("train/images_per_second", "data/wait_fraction")
# Dropout, augmentation with a mix of images, averaged weights: all that draws random numbers.
ALL_THAT_IS_RANDOM = (
    "--dropout",
    "0.1",
    "--preset",
    "strong",
    "--ema_decay",
    "0.9",
    "--device",
    "cpu",
)


def data_flags(data_root: Path | None, folder: Path) -> list[str]:
    """The flowers to train on: real ones if they are there, else drawn into `folder`.

    Args:
        data_root: as for train.py; None: $DATA_ROOT, if it is set.
        folder: that is ours.

    Raises:
        InputError: `data_root`, or $DATA_ROOT, is no place of the flowers.
    """
    named = data_root or (Path(os.environ["DATA_ROOT"]) if os.environ.get("DATA_ROOT") else None)
    if named is None:
        synthetic.draw(folder / "drawn")
        return ["--dataset", "synthetic", "--data_root", str(folder / "drawn")]
    spec = get_spec("flower102")
    root = spec.find_root(spec, named)
    return ["--dataset", "flower102", "--data_root", str(root.resolve())]


class Session:
    """A process of train.py in a session of its own, and the lines that it writes."""

    def __init__(self, flags: list[str]) -> None:
        """Start it.

        Args:
            flags: of train.py.
        """
        self.process = subprocess.Popen(
            [sys.executable, "train.py", *flags],
            cwd=REPO,
            env=ENV,
            text=True,
            errors="replace",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self.step = 0  # the last one that it named; 0: none yet
        self.ended = False
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line.rstrip("\n"))
                if match := STEP_LINE.match(line):
                    self.step = int(match[1])
                self._news.notify_all()
        with self._news:
            self.ended = True
            self._news.notify_all()

    def wait_for(self, is_so: Callable[[], object], seconds: float | None = None) -> bool:
        """Wait until `is_so()`, the process has ended, or `seconds` are over; whether it ended."""
        with self._news:
            self._news.wait_for(lambda: self.ended or is_so(), seconds)
            return self.ended

    def kill(self) -> None:
        """End it with SIGKILL; its loaders, which have left its group, end seconds later."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join()

    def code(self) -> int:
        """Wait for its end; the exit code."""
        self._reader.join()
        return self.process.wait()

    def last_words(self) -> str:
        """The last line that it wrote."""
        return self.lines[-1] if self.lines else "nothing"


@contextmanager
def session(flags: list[str]) -> Iterator[Session]:
    """A process of train.py that does not outlive the block."""
    started = Session(flags)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.kill()
        started.process.stdout.close()


def run_to_its_end(flags: list[str]) -> Session:
    """Run train.py.

    Raises:
        RunError: it failed; names its last line.
    """
    with session(flags) as started:
        if started.code() != 0:
            raise RunError(
                f"train.py --name {flags[flags.index('--name') + 1]} ended with code "
                f"{started.code()}: {started.last_words()}"
            )
    return started


def states(paths: RunPaths) -> list[Path]:
    """The states of a run that are there, newest first; torch is imported only now."""
    from utils import snapshot

    return snapshot.states(paths)


def is_same(first: Any, second: Any) -> bool:  # noqa: ANN401 - tensors and plain data of any shape
    """Whether tensors and plain data have the same bits."""
    from torch import Tensor, equal

    if isinstance(first, Mapping) and isinstance(second, Mapping):
        same_keys = list(first) == list(second)
        return same_keys and all(is_same(value, second[key]) for key, value in first.items())
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(map(is_same, first, second))
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.dtype == second.dtype and equal(first, second)
    return type(first) is type(second) and first == second


def read_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag to all (step, value) of the TensorBoard events in a folder, without the timings."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it names each purge of a resume
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in sorted(events.Tags()["scalars"])
        if tag not in TIMINGS
    }


def weights_left(paths: RunPaths) -> dict[str, Any]:
    """The last state and the checkpoints of a finished run, by what they are.

    Raises:
        RunError: one is missing or damaged.
    """
    from utils.snapshot import load_snapshot

    try:
        snapshot = load_snapshot(paths.last)
    except InputError as error:
        raise RunError(str(error)) from error
    # `saved` names the save before, and a run that was stopped had one more.
    training = {key: value for key, value in snapshot.training.items() if key != "saved"}
    left = {
        **{f"{part} in last.bin": state for part, state in snapshot.learner.items()},
        "generators in last.bin": snapshot.rng,
        "meter in last.bin": snapshot.meter,
        "progress in last.bin": [training, snapshot.position, snapshot.skipped],
    }
    for variant in ("", EMA):
        path = checkpoint_paths(paths, variant).checkpoint
        if not path.exists():
            raise RunError(f"{path} is missing")
        left[path.name] = path.read_bytes()
    return left


def all_left(paths: RunPaths) -> dict[str, Any]:
    """All that two runs of the same flags must agree on, by what it is.

    Raises:
        RunError: something is missing or damaged.
    """
    from utils.export import predictions_digest

    left, stamp = weights_left(paths), read_stamp(paths)
    for variant in ("", EMA):
        of = checkpoint_paths(paths, variant)
        missing = [p for p in (of.metrics, of.per_class, of.predictions) if not p.exists()]
        if missing:
            raise RunError(f"{missing[0]} is missing")
        left |= {path.name: path.read_bytes() for path in (of.metrics, of.per_class)}
        key = "_".join(filter(None, (variant, "predictions_digest")))
        digest = predictions_digest(of.predictions)
        if stamp.get(key) != digest:
            raise RunError(f"{of.predictions} is not what {key} in {paths.env_stamp} is of")
        left[of.predictions.name] = digest
    left["status"] = stamp.get("status")
    scalars = read_scalars(paths.tensorboard)
    return left | {f"scalar {tag}": values for tag, values in scalars.items()}


def check_same(expected: Mapping[str, Any], paths: RunPaths, left: Mapping[str, Any]) -> None:
    """Compare what a run left with what it was to leave.

    Raises:
        RunError: names what differs.
    """
    keys = [*expected, *(key for key in left if key not in expected)]
    wrong = [k for k in keys if k not in left or not is_same(expected.get(k), left[k])]
    if wrong:
        raise RunError(
            f"{paths.run} is not what an undisturbed run left: {', '.join(wrong)} "
            f"{'differs' if len(wrong) == 1 else 'differ'}"
        )


def check_nothing_unfinished(paths: RunPaths) -> None:
    """See that a finished run left no half-written file behind.

    Raises:
        RunError: it did.
    """
    from utils.files import UNFINISHED

    left = [*paths.run.rglob(f"*{UNFINISHED}"), *filter(Path.exists, [paths.lock])]
    if left:
        raise RunError(f"{left[0]} was left behind")
