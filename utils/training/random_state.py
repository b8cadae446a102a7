"""Save and restore the random number generators of every process of a run."""

import random
from typing import Any, ClassVar

import numpy as np
import torch

from utils.processes import gather_objects_on_main, rank, world_size
from utils.schema import list_of


def rng_state(device: torch.device) -> dict[str, Any]:
    """Return the states of Python's, NumPy's, torch's and the device's generators."""
    version, key, gauss = random.getstate()
    # A tensor, since NumPy's arrays are no plain data. NumPy's global generator: libraries use it.
    name, words, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    state = {
        "python": [version, list(key), gauss],
        "numpy": [name, torch.from_numpy(words.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    """Set all generators to `state`; a device that it does not name keeps its own."""
    version, key, gauss = state["python"]
    random.setstate((version, tuple(key), gauss))
    name, words, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, words.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def _is_state(value: object) -> bool:
    """Return whether `value` is a state of the generators that every machine has; tries it."""
    try:
        version, key, gauss = value["python"]
        random.Random().setstate((version, tuple(key), gauss))
        name, words, position, has_gauss, cached = value["numpy"]
        words = words.numpy().astype(np.uint32)
        np.random.RandomState().set_state((name, words, position, has_gauss, cached))
        torch.Generator().set_state(value["torch"])
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError, OverflowError):
        return False
    return all(isinstance(value.get(key, value["torch"]), torch.Tensor) for key in ("mps", "cuda"))


class RandomState:
    """The generators of all processes as one part of a snapshot."""

    STATE: ClassVar = {"ranks": list_of(_is_state)}

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def state_dict(self) -> dict[str, Any]:
        """Return the states by rank, in the main process; all processes call it together."""
        return {"ranks": gather_objects_on_main(rng_state(self.device))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set this process's generators.

        Another number of processes draws other numbers: its generators stay as they are.
        """
        if len(state["ranks"]) == world_size():
            set_rng_state(state["ranks"][rank()], self.device)
