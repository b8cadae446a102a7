"""Trade compute for memory: keep a function's inputs, compute it again in the backward pass.

Chen et al. 2016 (arXiv 1604.06174).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


class _MpsRandomState:
    """Run with the MPS generator in `state`, and put it back as it was. Can be entered again."""

    def __init__(self, state: torch.Tensor) -> None:
        self.state = state

    def __enter__(self) -> None:
        self.before = torch.mps.get_rng_state()
        torch.mps.set_rng_state(self.state)

    def __exit__(self, *error: object) -> None:  # torch ends a recomputation early by raising
        torch.mps.set_rng_state(self.before)


def _replay_mps() -> tuple[AbstractContextManager, AbstractContextManager]:
    """Contexts for the first and the second computation: both draw the same on MPS."""
    return nullcontext(), _MpsRandomState(torch.mps.get_rng_state())


def recomputed(function: Callable[..., Any], *inputs: torch.Tensor) -> Any:  # noqa: ANN401
    """`function(*inputs)`, of which only inputs and outputs are kept for the backward pass.

    What it draws at random is drawn again the same. May be nested.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)
    # torch replays the CPU's and CUDA's generators itself, but not that of MPS: it looks for
    # `torch.mps._initialized`, which torch 2.14 does not have.
    replay = {"context_fn": _replay_mps} if inputs[0].device.type == "mps" else {}
    return checkpoint(function, *inputs, use_reentrant=False, **replay)
