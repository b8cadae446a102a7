"""Name the files of a run, tell paths apart, and seed random numbers.

Datasets are in `utils/dataset.py`. Imports no torch: names are checked before it.
"""

import hashlib
import os
import random
import shutil
import signal
import sys
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import numpy as np

from utils.errors import InputError
from utils.files import NOT_SUPPORTED, canonical_json, kind_of

# --- Run paths ------------------------------------------------------------------------------------

TENSORBOARD_FOLDER = "tb"
SYNTHETIC_FOLDER = ".synthetic"  # under --output_dir; the dot keeps it apart from run names
# Of data in one heap of images: a run needs something to evaluate on.
DEFAULT_VAL_FRACTION = 0.2
DEFAULT_SPLIT_SEED = 42
PROBE_METHODS = ("knn", "nearest_mean", "logistic")  # for the flag and for `utils/probe`


@dataclass(frozen=True)
class RunPaths:
    """Name a run's artifacts: no other place knows a file name under `--output_dir`."""

    output_dir: Path
    name: str
    suffix: str = ""  # of the files that an evaluation writes, where a run has several

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.output_dir / self.name

    @property
    def tensorboard(self) -> Path:
        """The folder of the run's TensorBoard events."""
        return self.output_dir / TENSORBOARD_FOLDER / self.name

    @property
    def checkpoint(self) -> Path:
        """The best weights by eval accuracy."""
        return self.run / "checkpoints" / f"ckpt{self.suffix}.bin"

    @property
    def last(self) -> Path:
        """The newest snapshot of a training run."""
        return self.run / "checkpoints" / "last.bin"

    def older(self, number: int) -> Path:
        """Return the snapshot that was saved `number` saves before the newest."""
        return self.last.with_name(f"last~{number}.bin")

    @property
    def lock(self) -> Path:
        """The lock, which names the process that writes the run."""
        return self.output_dir / f".{self.name}.lock"

    @property
    def predictions(self) -> Path:
        """The predictions, one row for every evaluated sample."""
        return self.run / "fiftyone" / f"predictions{self.suffix}.jsonl"

    @property
    def labelmap(self) -> Path:
        """The class names in index order."""
        return self.run / "labelmap.json"

    @property
    def env_stamp(self) -> Path:
        """The stamp: what ran, where and with what."""
        return self.run / "env_stamp.json"

    @property
    def metrics(self) -> Path:
        """The metrics of the evaluation that the checkpoint came from."""
        return self.run / f"metrics{self.suffix}.json"

    @property
    def per_class(self) -> Path:
        """The figures of each class in that evaluation."""
        return self.run / f"per_class{self.suffix}.csv"

    @property
    def features(self) -> Path:
        """The features of the evaluated samples; their ids are beside them in `features.json`."""
        return self.run / "features.npy"

    @property
    def probe(self) -> Path:
        """What a probe tried: methods, features, strengths, accuracies, learning curve, folds."""
        return self.run / "probe.json"

    @property
    def few_shot(self) -> Path:
        """The picture of a probe's learning curve."""
        return self.run / "few_shot.png"

    @property
    def folds(self) -> Path:
        """The out-of-fold probabilities of a probe: ids, labels, fold, probabilities."""
        return self.run / "folds.npz"

    @property
    def retention(self) -> Path:
        """The note that says how long to keep all of this."""
        return self.run / "RETENTION.txt"

    def artifacts(self) -> dict[str, Path]:
        """Return the artifacts that exist, by what they are."""
        named = {
            "checkpoint": self.checkpoint,
            "averaged": checkpoint_paths(self, EMA).checkpoint,
            "of train alone": checkpoint_paths(self, TRAIN_ALONE).checkpoint,
            "last state": self.last,
            "predictions": self.predictions,
            "metrics": self.metrics,
            "per class": self.per_class,
            "features": self.features,
            "probe": self.probe,
            "learning curve": self.few_shot,
            "out of fold": self.folds,
            "labelmap": self.labelmap,
            "env stamp": self.env_stamp,
            "retention": self.retention,
            "tensorboard": self.tensorboard,
        }
        return {what: path for what, path in named.items() if path.exists()}


EMA = "ema"  # the variant of a run's weights that is averaged; the raw ones are ""
# Share of the average that update n keeps, n updates before it (TensorFlow,
# tf.train.ExponentialMovingAverage); runs without this in their config keep `decay` from the start.
EMA_RULE = "min(decay, (1 + n) / (10 + n))"

TRAIN_ALONE = "train"  # the variant of a probe's head that has not seen val

TRAIN_ALONE = "train"  # the variant of a probe's head that has not seen val


def checkpoint_paths(paths: RunPaths, variant: str) -> RunPaths:
    """Return the paths of a variant of the weights: `ckpt_ema.bin` beside `ckpt.bin`."""
    return replace(paths, suffix=f"_{variant}" if variant else "")


def check_writable(folder: Path, flag: str) -> None:
    """Raise if a folder, whether it exists or not, cannot be written into.

    Raises:
        InputError: it or something above it is a file or may not be written; names `flag`.
    """
    absolute = folder.absolute()
    there = (path for path in (absolute, *absolute.parents) if kind_of(path, follow=False))
    nearest = next(there)
    if not nearest.exists():
        raise InputError(f"{flag} {folder}: {nearest} is a link that leads nowhere")
    if not nearest.is_dir():
        raise InputError(f"{flag} {folder}: {nearest} is a file, not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"{flag} {folder}: no permission to write in {nearest}")


def check_file(path: Path, flag: str) -> None:
    """Raise if there is no file at `path`.

    Raises:
        InputError: names `flag` and what is there instead.
    """
    kind = kind_of(path)
    if kind != "file":
        state = "does not exist" if kind is None else f"is a {kind}"
        raise InputError(f"{flag} {path} {state}; name a file")


def identity(path: str | Path) -> tuple[int, int, str]:
    """Return what all ways to a file or folder have in common, and no other file has.

    Some file systems give many files one inode number, so the real path decides; and of real paths
    that differ only in case or composition, as on a Mac, the number.

    Raises:
        OSError: there is nothing, or it cannot be looked at.
    """
    state = os.stat(path)  # noqa: PTH116 - of many thousands of folders
    real = unicodedata.normalize("NFC", os.path.realpath(path)).casefold()
    return state.st_dev, state.st_ino, real


def free_bytes(folder: Path) -> int | None:
    """Return how much room the disk of a folder has; None if its file system does not say."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
        return None
    return usage.free if usage.total else None


def with_home(text: str, blamed: str = "") -> str:
    """Return a path with `~` or `~user` at its start expanded; a folder called `~` is `./~`.

    Shells leave it as it is in `--flag=~/x`, in quotes, and in a variable that was set in quotes.

    Args:
        text: path.
        blamed: what to name at the start of the error message.

    Raises:
        InputError: `text` is empty, as a variable that was never set, or there is no such user.
    """
    if not text:
        raise InputError(f"{blamed}'' is not a path")
    expanded = os.path.expanduser(text)  # noqa: PTH111 - Path takes `./~` for `~`
    if text.startswith("~") and expanded == text:
        name = text.partition("/")[0]
        raise InputError(
            f"{blamed}{text!r}: there is no user {name[1:]}; a file or folder of that name is "
            f"./{name}"
        )
    return expanded


# --- Seeding --------------------------------------------------------------------------------------


def derive_seed(*parts: int | str) -> int:
    """Return a seed below 2**63 that depends on all `parts` and on nothing else."""
    digest = hashlib.sha256(canonical_json(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (CPU, CUDA, MPS); `seed` is in [0, 2**32)."""
    import torch  # 2 s: not before the flags are checked

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries still draw from the global generator
    torch.manual_seed(seed)  # CUDA and MPS too
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def _say_all_but_lost_connections(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print what a thread of a loader says of errors, but not that the main process has ended."""
    if not issubclass(kind, OSError | EOFError):
        sys.__excepthook__(kind, error, trace)


def seed_worker(worker_id: int) -> None:
    """Seed the libraries in a loader process from the seed that torch gave it.

    A terminal's Ctrl-C and torchrun's SIGTERM go to the whole process group, but only the main
    process is to answer them: it finishes its step and ends its loaders itself, by SIGTERM. So
    loaders leave the group and ignore Ctrl-C.
    """
    import torch.utils.data

    if torch.utils.data.get_worker_info() is not None:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.excepthook = _say_all_but_lost_connections
    seed = torch.initial_seed() % 2**32
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - as above
