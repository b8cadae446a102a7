"""Sum what training steps report until it is read: loss, accuracy, speed, waiting."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from utils.errors import RunError
from utils.processes import sum_by_rank, world_size
from utils.schema import is_count, is_finite, list_of


class StepResult(NamedTuple):
    """Of one optimizer step, on the device: reading it is for the caller to time."""

    # Scalar; its mean over the processes is the mean over the step's samples.
    loss: Tensor
    correct: Tensor  # samples of this process whose top-1 was right, scalar int64
    grad_norm: Tensor  # before it was clipped, scalar
    samples: int  # of all processes


class Settled(NamedTuple):
    """One step of all processes, as plain numbers."""

    step: int
    loss: float
    correct: float
    samples: int


def _is_settled(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == len(Settled._fields)
        and is_count(value[0])
        and is_count(value[3])
        and value[3] > 0
        and all(map(is_finite, value))
    )


class TrainMeter:
    """Sums over the steps since the last reading; the device is read only when asked."""

    STATE: ClassVar = {"settled": list_of(_is_settled)}

    def __init__(self, step: int, ids_of: Callable[[int], Sequence[str]]) -> None:
        """Start counting.

        Args:
            step: number of optimizer steps done.
            ids_of: function from a step to the ids of its samples.
        """
        self.step = step
        self.ids_of = ids_of
        self.total_seconds = self.total_waited = 0.0  # of all readings
        self.restart()

    def restart(self) -> None:
        """Forget what was added, and start the clock again."""
        self.results: list[tuple[int, StepResult]] = []  # on the device
        self.settled: list[Settled] = []
        self.carried = 0  # how many of `settled` an earlier session counted
        self.waited = 0.0
        self.start_clock()

    def start_clock(self) -> None:
        """Start the clock again, and keep what was added."""
        self.started = time.perf_counter()

    def __bool__(self) -> bool:
        """Return whether there is something to read."""
        return bool(self.results or self.settled)

    def add(self, result: StepResult | None, waited: float) -> None:
        """Count one more step.

        Args:
            result: result of the step; None if every image was bad.
            waited: seconds of waiting for the images of the step.
        """
        self.step += 1
        if result is not None:
            self.results.append((self.step, result))
        self.waited += waited

    @property
    def wait_fraction(self) -> float:
        """Share of the seconds of all readings that training waited for images."""
        return self.total_waited / self.total_seconds if self.total_seconds else 0.0

    def settle(self) -> None:
        """Turn all steps that were added into plain numbers: read the device once.

        Raises:
            RunError: a loss or a gradient is not finite; names the first such step, its samples.
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
        rows = sum_by_rank(columns).tolist()
        for (step, result), (loss, correct, norm) in zip(self.results, rows, strict=True):
            for what, value in (("loss", loss), ("gradient", norm)):
                if not math.isfinite(value):
                    raise RunError(
                        f"the {what} of step {step} is {value}; its samples: "
                        f"{', '.join(self.ids_of(step))}; try a lower --learning_rate"
                    )
            self.settled.append(Settled(step, loss / world_size(), correct, result.samples))
        self.results = []

    def read(self) -> dict[str, float]:
        """Return mean loss, accuracy, images per second and wait fraction since the last reading.

        There must be something to read.

        Raises:
            RunError: a loss or a gradient is not finite.
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
        """Return the steps that are in no reading yet, as plain data.

        It exchanges: all processes call it together.

        Raises:
            RunError: a loss or a gradient is not finite.
        """
        self.settle()
        return {"settled": [list(step) for step in self.settled]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the steps of `state`; times start anew."""
        self.settled = [Settled(*step) for step in state["settled"]]
        self.carried = len(self.settled)
