"""Give training one optimizer step after another, cut into micro-batches, without bad images."""

import itertools
import time
from collections.abc import Iterable
from typing import ClassVar, NamedTuple

import torch
from torch.utils.data import DataLoader

from utils.console import log
from utils.data.batches import Batch
from utils.errors import RunError, is_lost_loader, one_line
from utils.processes import gather_objects, gather_rows, raise_first_failure
from utils.schema import is_text, list_of
from utils.signals import Stopped, started, stop_signal, unless_stopped


class BadImages:
    """Bad images that were left out of training or evaluation: at most so many, named once."""

    STATE: ClassVar = {"ids": list_of(is_text)}

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed
        self.ids: list[str] = []
        self.of_caches: set[str] = set()

    def note(self, bad: Iterable[tuple[str, str]]) -> None:
        """Log images that have not been seen before, and caches, of which any number may be bad.

        Args:
            bad: id and trouble of each image; without an id, trouble of a cache.

        Raises:
            RunError: there are more than are allowed.
        """
        for sample_id, trouble in bad:
            if not sample_id and trouble not in self.of_caches:
                self.of_caches.add(trouble)
                log.warning("warning: %s", trouble)
            if not sample_id or sample_id in self.ids:
                continue
            self.ids.append(sample_id)
            if len(self.ids) > self.allowed:
                raise RunError(
                    f"{trouble}; it is bad image {len(self.ids)}, --skip_bad_images allows "
                    f"{self.allowed}"
                )
            log.warning("warning: left out %s: %s", sample_id, trouble)

    def facts(self) -> dict[str, object]:
        """Return what the env stamp says of these images."""
        return {"allowed": self.allowed, "count": len(self.ids), "ids": list(self.ids)}

    def state_dict(self) -> dict[str, list[str]]:
        """Return plain data."""
        return {"ids": list(self.ids)}

    def load_state_dict(self, state: dict[str, list[str]]) -> None:
        """Continue with the images of `state`; as many more are allowed as this run says."""
        self.ids = list(state["ids"])


class StepBatches(NamedTuple):
    """One optimizer step in this process; empty if every image is bad in every process."""

    micro_batches: list[Batch]  # those of which some process has a sample
    # Samples of each micro-batch by rank. Where this process has none, its batch is a blank image.
    counts: list[list[int]]

    @property
    def samples(self) -> int:
        """Number of samples in all processes."""
        return sum(map(sum, self.counts))


class StepLoader:
    """The micro-batches of one optimizer step after another; all processes agree on them."""

    def __init__(self, loader: DataLoader, micro_batches: int, bad_images: BadImages) -> None:
        self.batches = started(loader)
        self.micro_batches = micro_batches
        self.bad_images = bad_images
        # Seconds that the last `next` took: what training waited for data. An accelerator may still
        # be at work in that time, so this is the most that it can have waited.
        self.waited = 0.0

    def __iter__(self) -> "StepLoader":
        return self

    def __next__(self) -> StepBatches:
        """Return the next step, without the micro-batches in which every image is bad everywhere.

        Raises:
            RunError: too many images are bad, or one cannot be decoded, here or elsewhere.
            Stopped: a process was asked to stop.
        """
        batches, failure = self._next_batches()
        if not batches and failure is None and not stop_signal():
            raise StopIteration
        bad = [each for batch in batches for each in batch.bad]
        own = [len(batch.labels) for batch in batches] or [0] * self.micro_batches
        # One exchange of a few numbers; more only when there is something to tell.
        rows = gather_rows([stop_signal(), failure is not None, len(bad), *own])
        signums, failed, num_bad, *columns = zip(*rows, strict=True)
        if any(signums):  # first: a process that is to stop may have lost its loaders already
            raise Stopped(max(signums))
        if any(failed):
            raise_first_failure(failure)
        if any(num_bad):
            bad = [each for part in gather_objects(bad) for each in part]
        self.bad_images.note(bad)
        counts = [list(column) for column in columns]
        kept = [
            (batch if len(batch.labels) else _blank(batch), by_rank)
            for batch, by_rank in zip(batches, counts, strict=True)
            if sum(by_rank)
        ]
        return StepBatches([batch for batch, _ in kept], [by_rank for _, by_rank in kept])

    def _next_batches(self) -> tuple[list[Batch], RunError | None]:
        """Return the batches of the next step, or what went wrong; measure how long it took."""
        began = time.perf_counter()
        batches, failure = [], None
        try:
            next_batches = itertools.islice(self.batches, self.micro_batches)
            batches = unless_stopped(lambda: list(next_batches)) or []
        except RunError as error:
            failure = error
        except RuntimeError as error:
            if not is_lost_loader(error):
                raise
            failure = RunError(one_line(error))
        self.waited = time.perf_counter() - began
        return batches, failure


def _blank(batch: Batch) -> Batch:
    """Return one black image of the first class, which will not count."""
    return Batch(
        torch.zeros(1, *batch.images.shape[1:], dtype=batch.images.dtype),
        torch.zeros(1, dtype=torch.int64),
        batch.positions,
        batch.sizes,
    )
