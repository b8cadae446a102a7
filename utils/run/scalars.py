"""TensorBoard's events of a run."""

import errno
import os
import time
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from utils.files import sync, sync_folder

EVENTS = "events.out.tfevents."


def _make_sort_first(folder: Path) -> None:
    """Rename files of events that a file which begins now would not come after.

    TensorBoard reads them in the order of their names, which hold the second in which they began:
    two sessions of a run may begin within one, and a clock may have been set back.
    """
    there = sorted(folder.glob(f"{EVENTS}*"))
    if there and there[-1].name >= f"{EVENTS}{int(time.time()):010d}":
        for number, path in enumerate(there):
            path.rename(path.with_name(f"{EVENTS}{0:010d}.{number:06d}"))


class Scalars:
    """Writes the scalars of a run; those after the step that it goes on from do not count."""

    def __init__(self, folder: Path, logged_until: int | None) -> None:
        """Begin a file of events.

        Args:
            folder: of the run's events.
            logged_until: the last step whose scalars stay; None for a new run.
        """
        purge_step = None if logged_until is None else logged_until + 1
        _make_sort_first(folder)
        self._folder = folder
        self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def add(self, phase: str, scalars: Mapping[str, float], step: int) -> None:
        """Write `<phase>/<name>` at `step` optimizer steps."""
        for name, value in scalars.items():
            self._writer.add_scalar(f"{phase}/{name}", value, step)

    def flush(self) -> None:
        """Have all that was added on the disk: a state that is saved later counts on it.

        Raises:
            OSError: it could not be written.
        """
        self._writer.flush()
        newest = max(self._folder.glob(f"{EVENTS}*"), default=None)
        if newest is None:  # deleted; the writer notices when it has something to write
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._folder))
        with newest.open("rb") as file:
            sync(file.fileno())
        sync_folder(self._folder)

    def close(self) -> None:
        """Flush, and let go of the file."""
        self._writer.close()
