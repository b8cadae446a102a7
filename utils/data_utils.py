"""Run paths, seeding. Importing it imports no torch: names are checked before."""

import hashlib
import json
import os
import random
import re
import signal
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import InputError
from utils.files import canonical_json, write_text

# --- Run paths ------------------------------------------------------------------------------------

TENSORBOARD_FOLDER = "tb"
RETENTION_DAYS = 90


@dataclass(frozen=True)
class RunPaths:
    """Where a run's artifacts lie: the only place that knows a file name under `--output_dir`."""

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
        """The whole state of a training run, to go on from."""
        return self.run / "checkpoints" / "last.bin"

    def older(self, number: int) -> Path:
        """The state that was saved `number` saves before the last."""
        return self.last.with_name(f"last~{number}.bin")

    @property
    def lock(self) -> Path:
        """Says which process is writing the run."""
        return self.output_dir / f".{self.name}.lock"

    @property
    def predictions(self) -> Path:
        """One row for every evaluated sample."""
        return self.run / "fiftyone" / f"predictions{self.suffix}.jsonl"

    @property
    def labelmap(self) -> Path:
        """Class names in index order."""
        return self.run / "labelmap.json"

    @property
    def env_stamp(self) -> Path:
        """What ran, where and with what."""
        return self.run / "env_stamp.json"

    @property
    def metrics(self) -> Path:
        """The metrics of the evaluation that the checkpoint came from."""
        return self.run / f"metrics{self.suffix}.json"

    @property
    def per_class(self) -> Path:
        """The same evaluation, a row a class."""
        return self.run / f"per_class{self.suffix}.csv"

    @property
    def retention(self) -> Path:
        """How long all of this is to be kept."""
        return self.run / "RETENTION.txt"

    def artifacts(self) -> dict[str, Path]:
        """The artifacts that are there, by what they are."""
        named = {
            "checkpoint": self.checkpoint,
            "averaged": checkpoint_paths(self, EMA).checkpoint,
            "last state": self.last,
            "predictions": self.predictions,
            "metrics": self.metrics,
            "per class": self.per_class,
            "labelmap": self.labelmap,
            "env stamp": self.env_stamp,
            "retention": self.retention,
            "tensorboard": self.tensorboard,
        }
        return {what: path for what, path in named.items() if path.exists()}


EMA = "ema"  # the variant of a run's weights that is averaged; the raw ones are ""


def checkpoint_paths(paths: RunPaths, variant: str) -> RunPaths:
    """Where the evaluations of a variant of the weights lie: `ckpt_ema.bin` beside `ckpt.bin`."""
    return replace(paths, suffix=f"_{variant}" if variant else "")


def read_stamp(paths: RunPaths) -> dict[str, Any]:
    """What the stamp of a run says; empty if there is none that can be read."""
    try:
        stamp = json.loads(paths.env_stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def check_writable(folder: Path, flag: str) -> None:
    """Refuse a folder, there or not yet, that cannot be written into.

    Raises:
        InputError: it or something above it is a file or may not be written; names `flag`.
    """
    absolute = folder.absolute()
    nearest = next(path for path in (absolute, *absolute.parents) if path.exists())
    if not nearest.is_dir():
        raise InputError(f"{flag} {folder}: {nearest} is a file, not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"{flag} {folder}: no permission to write in {nearest}")


def check_run_name(paths: RunPaths) -> None:
    """Refuse a run that cannot be written: an output folder that is a file, a name that folds.

    Raises:
        InputError: the output folder cannot be written into, or a run whose name differs only in
            case exists (Mac file systems would mix the two).
    """
    check_writable(paths.output_dir, "--output_dir")
    tensorboard = paths.output_dir / TENSORBOARD_FOLDER
    if tensorboard.exists() and not tensorboard.is_dir():
        raise InputError(f"--output_dir {paths.output_dir}: {tensorboard} is a file, not a folder")
    for parent in (paths.output_dir, tensorboard):
        taken = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
        for name in taken:
            if name != paths.name and name.casefold() == paths.name.casefold():
                raise InputError(
                    f"--name {paths.name} differs only in case from the run {name} in {parent}; "
                    "choose another name"
                )


def keep_previous_run(paths: RunPaths) -> RunPaths | None:
    """Move a run of the same name and its TensorBoard folder to `<name>~1`, `~2`, ...

    Returns:
        Where the previous run is now, or None if there was none.
    """
    if not (paths.run.exists() or paths.tensorboard.exists()):
        return None
    number = 1
    while True:
        kept = RunPaths(paths.output_dir, f"{paths.name}~{number}")
        if not (kept.run.exists() or kept.tensorboard.exists()):
            break
        number += 1
    for before, after in ((paths.run, kept.run), (paths.tensorboard, kept.tensorboard)):
        if before.exists():
            before.rename(after)
    if kept.retention.exists():  # it says where the run lies, and that has changed
        note = kept.retention.read_text(encoding="utf-8", errors="replace")
        date = re.search(r"^keep until: (\S+)$", note, re.MULTILINE)
        if date is not None:
            write_text(kept.retention, retention_note(kept, date[1], kept.checkpoint.exists()))
    return kept


def retention_note(paths: RunPaths, keep_until: str, has_checkpoint: bool) -> str:
    """The note that says how long the run is to be kept, where it is, and what it holds."""
    held = [
        paths.predictions,
        paths.metrics,
        paths.per_class,
        paths.labelmap,
        paths.env_stamp,
        paths.tensorboard,
    ]
    if has_checkpoint:
        held[:0] = [paths.checkpoint, paths.last]
    lines = [
        f"run: {paths.name}",
        f"retention: at least {RETENTION_DAYS} days",
        f"keep until: {keep_until}",
        f"location: {paths.run.resolve()}",
        "artifacts:",
        *(f"  - {path.relative_to(paths.output_dir).as_posix()}" for path in held),
        "rule: checkpoints are never committed to version control.",
    ]
    return "\n".join(lines) + "\n"


def write_retention(paths: RunPaths, has_checkpoint: bool) -> None:
    """Write the retention note of a run that starts now."""
    until = (datetime.now(UTC) + timedelta(days=RETENTION_DAYS)).date()
    write_text(paths.retention, retention_note(paths, until.isoformat(), has_checkpoint))


# --- Seeding --------------------------------------------------------------------------------------


def derive_seed(*parts: int | str) -> int:
    """A seed below 2**63 that depends on all `parts` and on nothing else."""
    digest = hashlib.sha256(canonical_json(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (CPU, CUDA, MPS); `seed` is in [0, 2**32)."""
    import torch  # 2 s: not before the flags are known to be good

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries still draw from the global generator
    torch.manual_seed(seed)  # CUDA and MPS too
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def seed_worker(worker_id: int) -> None:
    """Seed the libraries of a loader process from the seed that torch gave it.

    A terminal's Ctrl-C and torchrun's SIGTERM go to the whole process group, and are for the main
    process to answer: it finishes its step, and ends its loaders itself. So they leave the group,
    but take SIGTERM as torch arranges it: by that they are ended.
    """
    import torch.utils.data

    if torch.utils.data.get_worker_info() is not None:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    seed = torch.initial_seed() % 2**32
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - as above
