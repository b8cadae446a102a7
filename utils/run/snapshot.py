"""The whole state of a run on disk, `last.bin`, and the states before it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ml_collections import FrozenConfigDict

from utils.console import log
from utils.data_utils import RunPaths
from utils.errors import InputError
from utils.files import open_atomic
from utils.processes import failing_together, gather_objects_on_main, is_main, rank, world_size
from utils.run.tensor_file import is_whole, load_archive, write_archive
from utils.run.writer import RunWriter
from utils.training.learner import Learner
from utils.training.meter import TrainMeter
from utils.training.progress import Progress
from utils.training.random_state import rng_state, set_rng_state
from utils.training.step_loader import BadImages

FORMAT = "fine-vit state"
VERSION = 1


class Snapshot(NamedTuple):
    """All that a run needs to go on as if nothing had happened; tensors and plain data."""

    run_id: str
    config: dict[str, Any]  # resolved
    experiment: dict[str, Any]  # what of it enters the config hash
    data: dict[str, Any]  # identity of the splits and subsets
    position: dict[str, Any]  # step, epoch and samples of it that are done: for people
    training: dict[str, Any]  # of Progress
    learner: dict[str, Any]  # of Learner: model, optimizer, scheduler, averaged weights
    rng: list[dict[str, Any]]  # of each process
    meter: dict[str, Any]  # of TrainMeter: steps that are in no scalar yet
    skipped: list[str]  # ids of bad images


class Snapshots:
    """Writes the states of a run, and keeps the newest and some before it."""

    def __init__(self, paths: RunPaths, keep: int) -> None:
        """Describe the files.

        Args:
            paths: of the run.
            keep: states before the newest.
        """
        self.paths = paths
        self.keep = keep
        self._whole: set[Path] = set()  # known to be; others somebody else may have written

    def save(self, snapshot: Snapshot) -> None:
        """Make `snapshot` the newest state; the one before is kept until this one is verified.

        At every moment there is a whole state under one of the names, once there was one.

        Raises:
            OSError: it could not be written, or reads back otherwise; the states before are whole.
        """
        payload = {"format": FORMAT, "version": VERSION, **snapshot._asdict()}
        with open_atomic(self.paths.last, self._verify_and_make_room) as file:
            write_archive(file, payload)
        self._whole.add(self.paths.last)
        for path in older_states(self.paths)[self.keep :]:
            path.unlink()

    def _verify_and_make_room(self, finished: Path) -> None:
        if not is_whole_state(finished):
            raise OSError(f"{finished} reads back otherwise than it was written")
        names = [self.paths.last, *(self.paths.older(n) for n in range(1, self.keep + 1))]
        for newer, older in reversed(list(pairwise(names))):
            # A damaged state must not take the place of a whole one.
            if newer in self._whole or is_whole_state(newer):
                newer.replace(older)
                self._whole = (self._whole - {newer}) | {older}


def is_whole_state(path: Path) -> bool:
    """Whether the state at `path` is there, can be read, and is what was once written."""
    try:
        with path.open("rb") as file:
            return is_whole(file)
    except (OSError, EOFError):
        return False


def older_states(paths: RunPaths) -> list[Path]:
    """The states before the newest that are there, newest first."""
    numbered = {
        int(match[1]): path
        for path in paths.last.parent.glob("last~*.bin")
        if (match := re.fullmatch(r"last~(\d+)\.bin", path.name))
    }
    return [numbered[number] for number in sorted(numbered)]


def states(paths: RunPaths) -> list[Path]:
    """The states that are there, whole or not, newest first."""
    return [path for path in (paths.last, *older_states(paths)) if path.exists()]


def load_snapshot(path: Path) -> Snapshot:
    """The state at `path`, on the CPU.

    Raises:
        InputError: missing, truncated, damaged, foreign or of another version.
    """
    payload = load_archive(path)
    if not isinstance(payload, Mapping) or payload.get("format") != FORMAT:
        raise InputError(f"{path} is no state of a run; name a run's checkpoints/last.bin")
    if payload.get("version") != VERSION:
        raise InputError(
            f"{path} has format version {payload.get('version')}, this code reads {VERSION}; use "
            "the code that wrote it"
        )
    missing = [field for field in Snapshot._fields if field not in payload]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}; name a run's checkpoints/last.bin")
    return Snapshot(**{field: payload[field] for field in Snapshot._fields})


def load_newest(paths: RunPaths) -> Snapshot:
    """The newest state of a run that is whole; says so if it is not the newest of all.

    Raises:
        InputError: none is; names what is wrong with the newest.
    """
    first_error = None
    for path in states(paths):
        try:
            snapshot = load_snapshot(path)
        except InputError as error:
            log.warning("warning: %s", error)
            first_error = first_error or error
            continue
        if path != paths.last:
            log.warning("warning: going back to %s, step %d", path, snapshot.position["step"])
        return snapshot
    raise first_error or InputError(
        f"--resume: {paths.run} has no state to go on from; start it without --resume"
    )


@dataclass(frozen=True)
class Saver:
    """Saves the state of a run, and puts a run into a saved state."""

    config: FrozenConfigDict
    experiment: dict[str, Any]  # `experiment_of(config)` when the run began: files may change
    data: dict[str, Any]  # identity of the splits and subsets
    run: RunWriter
    snapshots: Snapshots
    learner: Learner
    meter: TrainMeter
    skipped: BadImages
    num_samples: int  # of an epoch
    device: torch.device

    def save(self, state: Progress) -> None:
        """Write the state, in the process that writes; the others pass their part on.

        Raises:
            RunError: it cannot be written, or a loss that was not read yet is not finite.
        """
        meter = self.meter.state_dict()
        generators = gather_objects_on_main(rng_state(self.device))
        seen = state.step * self.config.train_batch_size
        with failing_together():
            if is_main():
                self.run.flush()
                self.snapshots.save(
                    Snapshot(
                        run_id=self.run.stamp["run_id"],
                        config=self.config.to_dict(),
                        experiment=self.experiment,
                        data=self.data,
                        position={
                            "step": state.step,
                            "epoch": seen // self.num_samples,
                            "samples_of_epoch": seen % self.num_samples,
                        },
                        training=state.to_dict(),
                        learner=self.learner.state_dict(),
                        rng=generators,
                        meter=meter,
                        skipped=list(self.skipped.ids),
                    )
                )
        state.saved = state.step

    def restore(self, snapshot: Snapshot) -> None:
        """Put learner, meter and random generators into the state of `snapshot`, and empty it."""
        self.learner.load_state_dict(snapshot.learner)
        snapshot.learner.clear()  # gigabytes that nobody needs any more
        self.meter.load_state_dict(snapshot.meter)
        # Another number of processes draws other numbers; those of the model's start will do.
        if len(snapshot.rng) == world_size():
            set_rng_state(snapshot.rng[rank()], self.device)
