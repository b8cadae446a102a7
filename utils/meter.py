"""What training steps report, summed until it is read: loss, accuracy, speed, waiting."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from utils.engine import StepResult
from utils.errors import RunError
from utils.processes import Processes


class Settled(NamedTuple):
    """One step as numbers of this process's memory, over all processes."""

    step: int
    loss: float
    correct: float
    samples: int


class TrainMeter:
    """Sums over the steps since the last reading; the device is read only when asked."""

    def __init__(
        self, step: int, processes: Processes, ids_of: Callable[[int], Sequence[str]]
    ) -> None:
        """Start counting.

        Args:
            step: optimizer steps that are done.
            processes: that train together.
            ids_of: the ids of the samples of a step.
        """
        self.step = step
        self.processes = processes
        self.ids_of = ids_of
        self.total_seconds = self.total_waited = 0.0  # of all readings
        self.restart()

    def restart(self) -> None:
        """Forget what was added, and start the clock again."""
        self.results: list[tuple[int, StepResult]] = []  # on the device
        self.settled: list[Settled] = []
        self.carried = 0  # of `settled`, from before this process
        self.waited = 0.0
        self.started = time.perf_counter()

    def __bool__(self) -> bool:
        """Whether there is something to read."""
        return bool(self.results or self.settled)

    def add(self, result: StepResult | None, waited: float) -> None:
        """Count one more step.

        Args:
            result: None if every image of the step was bad.
            waited: seconds that the step waited for its images.
        """
        self.step += 1
        if result is not None:
            self.results.append((self.step, result))
        self.waited += waited

    @property
    def wait_fraction(self) -> float:
        """Of the seconds of all readings, the share that was waiting for images."""
        return self.total_waited / self.total_seconds if self.total_seconds else 0.0

    def settle(self) -> None:
        """Read the device once for all steps that were added.

        Raises:
            RunError: a loss or a gradient is not finite; names the first such step and its samples.
        """
        if not self.results:
            return
        # Counts of a step are far below 2**24, where float32 stops being exact.
        columns = torch.stack(
            [
                torch.stack((result.loss, result.correct.float(), result.grad_norm))
                for _, result in self.results
            ]
        )
        rows = self.processes.sum(columns).tolist()
        world_size = self.processes.world_size
        for (step, result), (loss, correct, norm) in zip(self.results, rows, strict=True):
            for what, value in (("loss", loss), ("gradient", norm)):
                if not math.isfinite(value):
                    raise RunError(
                        f"the {what} of step {step} is {value}; its samples: "
                        f"{', '.join(self.ids_of(step))}; try a lower --learning_rate"
                    )
            self.settled.append(Settled(step, loss / world_size, correct, result.samples))
        self.results = []

    def read(self) -> dict[str, float]:
        """Mean loss, accuracy, images per second and wait fraction since the last reading.

        There must be something to read.

        Raises:
            RunError: as `settle`.
        """
        self.settle()
        images = sum(step.samples for step in self.settled)
        own_images = sum(step.samples for step in self.settled[self.carried :])
        seconds = time.perf_counter() - self.started
        scalars = {
            "loss": math.fsum(step.loss for step in self.settled) / len(self.settled),
            "accuracy": sum(step.correct for step in self.settled) / images,
            "images_per_second": own_images / seconds,
            "wait_fraction": self.waited / seconds,
        }
        self.total_seconds += seconds
        self.total_waited += self.waited
        self.restart()
        return scalars

    def state_dict(self) -> dict[str, Any]:
        """The steps that are in no reading yet, as plain data.

        Raises:
            RunError: as `settle`.
        """
        self.settle()
        return {"settled": [list(step) for step in self.settled]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the steps of `state`; times start anew."""
        self.settled = [Settled(*step) for step in state["settled"]]
        self.carried = len(self.settled)
