"""TensorBoard's events of a run."""

import errno
import os
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from utils.files import sync, sync_folder


class Scalars:
    """Writes the scalars of a run; those after the step that it goes on from do not count."""

    def __init__(self, folder: Path, logged_until: int | None) -> None:
        """Begin a file of events.

        Args:
            folder: of the run's events.
            logged_until: the last step whose scalars stay; None for a new run.
        """
        purge_step = None if logged_until is None else logged_until + 1
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
        newest = max(self._folder.glob("events.out.tfevents.*"), default=None)  # by time
        if newest is None:  # deleted; the writer notices when it has something to write
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._folder))
        with newest.open("rb") as file:
            sync(file.fileno())
        sync_folder(self._folder)

    def close(self) -> None:
        """Flush, and let go of the file."""
        self._writer.close()
