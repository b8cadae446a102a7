"""Trade compute for memory: keep a function's inputs, compute it again in the backward pass.

Chen et al. 2016 (arXiv 1604.06174), known as activation or gradient checkpointing.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


class _MpsRandomState:
    """Run with the MPS generator in `state` and restore it afterwards; may be entered again."""

    def __init__(self, state: torch.Tensor) -> None:
        self.state = state

    def __enter__(self) -> None:
        self.before = torch.mps.get_rng_state()
        torch.mps.set_rng_state(self.state)

    def __exit__(self, *error: object) -> None:  # torch ends a second computation by raising
        torch.mps.set_rng_state(self.before)


def _replay_mps() -> tuple[AbstractContextManager, AbstractContextManager]:
    """Return contexts for the first and the second computation, so that both draw the same."""
    return nullcontext(), _MpsRandomState(torch.mps.get_rng_state())


def checkpointed(function: Callable[..., Any], *inputs: torch.Tensor | None) -> Any:  # noqa: ANN401
    """Return `function(*inputs)`, keeping only inputs and outputs for the backward pass.

    The second computation draws the same random numbers as the first. Calls may be nested.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)
    # torch replays the CPU's and CUDA's generators itself, but not that of MPS: it looks for
    # `torch.mps._initialized`, which torch 2.14 does not have.
    replay = {"context_fn": _replay_mps} if inputs[0].device.type == "mps" else {}
    return checkpoint(function, *inputs, use_reentrant=False, **replay)
