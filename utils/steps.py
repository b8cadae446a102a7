"""Steps of training as loaders feed them: their micro-batches, what they waited, what was bad."""

import itertools
import time
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader

from utils.console import log
from utils.errors import RunError, is_lost_loader, one_line
from utils.interrupts import Stopped, StopRequest, started
from utils.pipeline import Batch
from utils.processes import Processes


class Skipped:
    """Bad images that were left out of training: at most so many, each named once."""

    def __init__(self, allowed: int, ids: Iterable[str] = ()) -> None:
        self.allowed = allowed
        self.ids = list(ids)

    def note(self, bad: Iterable[tuple[str, str]]) -> None:
        """Log images that have not been seen before.

        Args:
            bad: id and trouble of each.

        Raises:
            RunError: there are more than are allowed.
        """
        for sample_id, trouble in bad:
            if sample_id in self.ids:
                continue
            self.ids.append(sample_id)
            if len(self.ids) > self.allowed:
                raise RunError(
                    f"{trouble}; it is bad image {len(self.ids)}, --skip_bad_images allows "
                    f"{self.allowed}"
                )
            log.warning("warning: left out %s: %s", sample_id, trouble)

    def facts(self) -> dict[str, object]:
        """What the env stamp says of them."""
        return {"allowed": self.allowed, "count": len(self.ids), "ids": list(self.ids)}


class Step(NamedTuple):
    """One optimizer step, as this process has it."""

    micro_batches: list[Batch]  # none without a sample of some process
    # Samples of each micro-batch by process. Where this one has none, its batch is one blank image.
    counts: list[list[int]]


class Steps:
    """The micro-batches of one optimizer step after another; all processes agree on them."""

    def __init__(
        self,
        loader: DataLoader,
        micro_batches: int,
        skipped: Skipped,
        processes: Processes,
        request: StopRequest,
    ) -> None:
        self.batches = started(loader)
        self.micro_batches = micro_batches
        self.skipped = skipped
        self.processes = processes
        self.request = request
        # Seconds that the last `next` took: what training waited for data. An accelerator may still
        # be at work in that time, so this is the most that it can have waited.
        self.waited = 0.0

    def __iter__(self) -> "Steps":
        return self

    def __next__(self) -> Step:
        """The next step; without the micro-batches of which every image is bad everywhere.

        Raises:
            RunError: too many images are bad, or one cannot be decoded, here or elsewhere.
            Stopped: a process was asked to stop.
        """
        started = time.perf_counter()
        step, failure = [], None
        try:
            step = list(itertools.islice(self.batches, self.micro_batches))
        except RunError as error:
            failure = error
        except RuntimeError as error:
            if not is_lost_loader(error):
                raise
            failure = RunError(one_line(error))
        self.waited = time.perf_counter() - started
        if not step and failure is None:
            raise StopIteration
        bad = [each for batch in step for each in batch.bad]
        own = [len(batch.labels) for batch in step] or [0] * self.micro_batches
        # One exchange of a few numbers; more only when there is something to tell.
        rows = self.processes.all_rows([self.request.signum, failure is not None, len(bad), *own])
        signums, failed, num_bad, *columns = zip(*rows, strict=True)
        if any(signums):  # first: what is to stop may have lost its loaders already
            raise Stopped(max(signums))
        if any(failed):
            self.processes.raise_first(failure)
        if any(num_bad):
            bad = [each for part in self.processes.all_objects(bad) for each in part]
        self.skipped.note(bad)
        counts = [list(column) for column in columns]
        kept = [
            (batch if len(batch.labels) else _blank(batch), by_process)
            for batch, by_process in zip(step, counts, strict=True)
            if sum(by_process)
        ]
        return Step([batch for batch, _ in kept], [by_process for _, by_process in kept])


def _blank(batch: Batch) -> Batch:
    """One black image of the first class, which will not count."""
    return Batch(
        torch.zeros(1, *batch.images.shape[1:], dtype=batch.images.dtype),
        torch.zeros(1, dtype=torch.int64),
        batch.positions,
        batch.sizes,
    )
