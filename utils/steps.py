"""Steps of training as loaders feed them: their micro-batches, what they waited, what was bad."""

import itertools
import time
from collections.abc import Iterable

from torch.utils.data import DataLoader

from utils.console import log
from utils.errors import RunError
from utils.pipeline import Batch


class Skipped:
    """Bad images that were left out of training: at most so many, each named once."""

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed
        self.ids: list[str] = []

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


class Steps:
    """The micro-batches of one optimizer step after another."""

    def __init__(self, loader: DataLoader, micro_batches: int, skipped: Skipped) -> None:
        self.batches = iter(loader)
        self.micro_batches = micro_batches
        self.skipped = skipped
        # Seconds that the last `next` took: what training waited for data. An accelerator may still
        # be at work in that time, so this is the most that it can have waited.
        self.waited = 0.0

    def __iter__(self) -> "Steps":
        return self

    def __next__(self) -> list[Batch]:
        """The next step; without the micro-batches of which every image is bad.

        Raises:
            RunError: too many images are bad.
        """
        started = time.perf_counter()
        step = list(itertools.islice(self.batches, self.micro_batches))
        self.waited = time.perf_counter() - started
        if not step:
            raise StopIteration
        for batch in step:
            self.skipped.note(batch.bad)
        return [batch for batch in step if len(batch.labels)]
