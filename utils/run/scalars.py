"""Write a run's TensorBoard scalars."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from torch.utils.tensorboard import SummaryWriter

from utils.console import log
from utils.files import naming, open_regular, sync, sync_folder
from utils.schema import dict_of, is_count, is_finite

EVENTS = "events.out.tfevents."
# The scalars of an evaluation, of the metrics that `utils.evaluation.metrics.summarize` returns.
EVAL_SCALARS = ("loss", "accuracy", "top5", "mean_per_class_accuracy", "macro_f1")


def _make_sort_first(folder: Path) -> None:
    """Rename event files that a file which begins now would not come after.

    TensorBoard reads them in the order of their names, which hold the second in which they began:
    two starts of a run may fall into one second, and a clock may have been set back.
    """
    there = sorted(folder.glob(f"{EVENTS}*"))
    if there and there[-1].name >= f"{EVENTS}{int(time.time()):010d}":
        for number, path in enumerate(there):
            path.rename(path.with_name(f"{EVENTS}{0:010d}.{number:06d}"))


def _begins_with(path: Path, size: int, sha256: str) -> bool:
    """Return whether the first `size` bytes of a file are those that were once written."""
    with open_regular(path) as file:
        is_cut = path.stat().st_size < size
        return not is_cut and hashlib.sha256(file.read(size)).hexdigest() == sha256


class EventLog:
    """The scalars of a run, and what a resumed run has to know of them.

    Before `open` nothing is written; only the main process opens it.
    """

    STATE: ClassVar = {"pending": dict_of(is_finite), "logged": is_count}

    def __init__(self) -> None:
        # Scalars of training that were logged at a step whose evaluation is still to come: a run
        # that is resumed from there logs all of that step anew.
        self.pending: dict[str, float] = {}
        self.logged = 0  # the last step whose evaluation is logged; it may have to be done again
        # Length and SHA-256 of each file of earlier starts, as the snapshot has them.
        self.earlier: list[list[Any]] = []
        self._writer: SummaryWriter | None = None
        self._file = Path()  # that it writes
        self._hashed, self._digest = 0, hashlib.sha256()  # of the bytes it held at the last flush
        self._unflushed: list[tuple[str, float, int]] = []  # tag, value and step of scalars

    def open(self, folder: Path, step: int = 0, is_resumed: bool = False) -> None:
        """Begin a file of events.

        Args:
            folder: folder of the run's events.
            step: optimizer steps done.
            is_resumed: whether this run is resumed: its scalars after `step` do not count then.
        """
        self._forget_what_is_lost(folder, step)
        first = step if self.pending else step + 1  # step of the first scalar that will be written
        self._begin_file(folder, first if is_resumed else None)
        self._add_training(self.pending, step)

    def _begin_file(self, folder: Path, purge_step: int | None = None) -> None:
        _make_sort_first(folder)
        self._writer = SummaryWriter(str(folder), purge_step=purge_step)
        self._file = max(folder.glob(f"{EVENTS}*"))
        self._hashed, self._digest = 0, hashlib.sha256()

    def _forget_what_is_lost(self, folder: Path, step: int) -> None:
        """Warn once of files of earlier starts that are missing or damaged."""
        paths = list(folder.glob(f"{EVENTS}*"))  # by any name: a start may give them others
        there = [each for each in self.earlier if any(_begins_with(path, *each) for path in paths)]
        if lost := len(self.earlier) - len(there):
            log.warning(
                "warning: %d of %d event files in %s are missing or damaged: TensorBoard does not "
                "show all scalars up to step %d",
                lost,
                len(self.earlier),
                folder,
                step,
            )
        self.earlier = there

    def log_training(self, scalars: dict[str, float], step: int, is_eval_due: bool) -> None:
        """Write the scalars of training.

        Args:
            scalars: what `TrainMeter.read` returns, and the learning rate as `lr`.
            step: optimizer steps done.
            is_eval_due: whether this step is evaluated next.
        """
        self._add_training(scalars, step)
        self.pending = scalars if is_eval_due else {}

    def _add_training(self, scalars: Mapping[str, float], step: int) -> None:
        for name, value in scalars.items():
            phase = "data" if name == "wait_fraction" else "train"
            self._add(phase, {name: value}, step)

    def log_evaluation(self, phase: str, metrics: Mapping[str, Any], step: int) -> None:
        """Write the scalars of an evaluation, unless those of this step are there already.

        A training run never evaluates at step 0; a model that no step has trained has that one.
        """
        if step > self.logged or not step:
            self._add(phase, {name: metrics[name] for name in EVAL_SCALARS}, step)

    def mark_evaluated(self, step: int) -> None:
        """Note that everything of `step` is logged."""
        self.logged, self.pending = step, {}

    def _add(self, phase: str, scalars: Mapping[str, float], step: int) -> None:
        if self._writer is not None:
            added = [(f"{phase}/{name}", value, step) for name, value in scalars.items()]
            self._unflushed += added
            with naming(self._file):
                self._hand_over(added)

    def _hand_over(self, added: Sequence[tuple[str, float, int]]) -> None:
        """Have the writer write scalars, or wait until all are written if there are none to add.

        Where its file was removed, it goes on in a new one.
        """
        is_there = self._file.exists()
        # A thread writes: what happened to it is raised here, by the next call.
        with suppress(FileNotFoundError):
            if is_there:
                for each in added:
                    self._writer.add_scalar(*each)
                if not added:
                    self._writer.flush()
                return
        log.warning("warning: %s was removed; scalars go on in a new file", self._file)
        with suppress(FileNotFoundError):
            self._writer.close()
        if not is_there:
            self._file.unlink(missing_ok=True)  # closing may have written it again, without a head
        self._begin_file(self._file.parent)
        for each in self._unflushed:
            self._writer.add_scalar(*each)
        self._writer.flush()

    def flush(self) -> list[list[Any]]:
        """Put all scalars on the disk: a snapshot that is saved later counts on them.

        Returns:
            Length and SHA-256 of each file of the run.

        Raises:
            OSError: they could not be written.
        """
        if self._writer is None:
            return self.earlier
        with naming(self._file):
            self._hand_over(())
            with self._file.open("rb") as file:
                sync(file.fileno())
                file.seek(self._hashed)  # a long run's file is not read again at each save
                added = file.read()
        sync_folder(self._file.parent)
        self._unflushed = []
        self._digest.update(added)
        self._hashed += len(added)
        return [*self.earlier, [self._hashed, self._digest.hexdigest()]]

    def close(self) -> None:
        """Flush, and close the file."""
        if self._writer is not None:
            self.flush()
            with naming(self._file):
                self._writer.close()

    def state_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {"pending": self.pending, "logged": self.logged}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`; call it before `open`."""
        self.pending, self.logged = state["pending"], state["logged"]
