"""Exchange gradients among the processes that train one model."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils.processes import rank, world_size

# (features (n, D), labels (n,)) of this process to those of all processes, with gradients
Gather = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def exchange_gradients(model: nn.Module) -> nn.Module:
    """Return `model` as all processes train it: its gradients become the mean over the processes.

    In a run of one process it is `model` itself.
    """
    if world_size() == 1:
        return model
    # The gradients live in the buffers that are exchanged: no second copy of them.
    return DistributedDataParallel(model, gradient_as_bucket_view=True)


def warm_up_exchange(model: nn.Module, images: Tensor) -> None:
    """Have DDP decide now which gradients it exchanges together, not in the first training step.

    It decides by the order in which the gradients of the first backward pass arrive, after that
    pass. Otherwise the first step of a resumed run would exchange other groups of gradients than
    the same step of an uninterrupted run, and gloo's sum over three or more processes would have
    other last bits.

    Args:
        model: model of several processes in training mode; it draws from the random generators.
        images: any batch of model input.
    """
    model(images).logits.sum().backward()
    model.zero_grad(set_to_none=True)


def without_exchange(model: nn.Module) -> AbstractContextManager:
    """Return a context whose backward passes leave the exchange of gradients to a later one."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def gather_features(counts: Sequence[int]) -> Gather | None:
    """Return a function that gathers features and labels of all processes, by rank, with gradients.

    A process without samples passes on one sample that does not count. In a run of one process
    there is nothing to gather: None.

    Args:
        counts: number of samples of each process.
    """
    if world_size() == 1:
        return None
    from torch.distributed._functional_collectives import all_gather_single

    most, own = max(counts), counts[rank()]
    rows = torch.cat(
        [torch.arange(number * most, number * most + n) for number, n in enumerate(counts)]
    )

    def gather(values: Tensor) -> Tensor:
        padded = values.new_zeros(most, *values.shape[1:])
        padded = torch.cat([values[:own], padded[own:]])
        return all_gather_single(padded, 0, dist.group.WORLD)[rows]

    return lambda features, labels: (gather(features), gather(labels))
