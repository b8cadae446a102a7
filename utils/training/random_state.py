"""The states of all random number generators of a process, as tensors and plain data."""

import random
from typing import Any

import numpy as np
import torch


def rng_state(device: torch.device) -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's generators, and of `device`'s own."""
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
    """Put all generators back to `state`; a device that it does not know keeps its own."""
    version, key, gauss = state["python"]
    random.setstate((version, tuple(key), gauss))
    name, words, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, words.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
