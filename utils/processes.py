"""The processes that run together: one, or as many as torchrun started.

Everything goes through `torch.distributed`, backend gloo, on the CPU. With one process nothing of
it is imported, and every method is the identity.
"""

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from utils.errors import (
    Alone,
    InputError,
    OutOfMemory,
    RunError,
    is_lost_loader,
    is_lost_process,
    is_out_of_memory,
    lost_process,
    one_line,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

T = TypeVar("T")
# (features (n, D), labels (n,)) of this process to those of all processes, with gradients
Gather = Callable[["Tensor", "Tensor"], tuple["Tensor", "Tensor"]]
BACKEND = "gloo"


@dataclass(frozen=True)
class Processes:
    """How many there are, and which of them this is."""

    world_size: int = 1
    rank: int = 0
    local_rank: int = 0  # on its machine

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.world_size > 1

    # --- Failing together -------------------------------------------------------------------------

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that every process runs: if it fails in one, it fails in all, with one message.

        Raises:
            InputError: it failed with that here or elsewhere.
            RunError: likewise, or with an OSError or no memory.
        """
        failure = None
        try:
            yield
        except (InputError, RunError, OSError, MemoryError, RuntimeError) as error:
            is_named = is_out_of_memory(error) or is_lost_loader(error)
            is_defect = isinstance(error, RuntimeError) and not is_named
            if not self.several or is_defect:
                raise
            failure = error
        if self.several:
            self.raise_first(failure)

    def raise_first(self, failure: Exception | None) -> None:
        """Raise the failure of the first process that has one, in all of them.

        Args:
            failure: of this process.
        """
        if failure is not None and not self.several:
            raise failure
        own = None
        if failure is not None:
            kind = OutOfMemory if is_out_of_memory(failure) else RunError
            kind = InputError if isinstance(failure, InputError) else kind
            own = kind, one_line(failure)
        failures = [each for each in self.all_objects(own) if each is not None]
        if failures:
            kind, message = failures[0]
            raise kind(message) from failure

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """A block that the others run after the one that writes has left it, well or not."""
        if not self.is_main:
            self.all_rows([0])
        try:
            yield
        finally:
            if self.is_main:
                self.all_rows([0])

    # --- Exchange ---------------------------------------------------------------------------------

    def all_objects(self, value: T) -> list[T]:
        """The values of all processes by rank, in all of them."""
        if not self.several:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def objects_for_main(self, value: T) -> list[T]:
        """The values of all processes by rank in the one that writes; elsewhere nothing."""
        if not self.several:
            return [value]
        import torch.distributed as dist

        values: list[Any] | None = [None] * self.world_size if self.is_main else None
        dist.gather_object(value, values)
        return values or []

    def from_main(self, value: T) -> T:
        """The value that the writing process has, in all of them."""
        if not self.several:
            return value
        import torch.distributed as dist

        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def all_rows(self, row: Sequence[int]) -> list[list[int]]:
        """Rows of as many integers of all processes by rank, in all of them."""
        if not self.several:
            return [list(row)]
        import torch
        import torch.distributed as dist

        rows = torch.empty(self.world_size * len(row), dtype=torch.int64)
        dist.all_gather_single(rows, torch.tensor(row, dtype=torch.int64))
        return rows.view(self.world_size, -1).tolist()

    def sum(self, values: "Tensor") -> "Tensor":
        """The sum over the processes, element by element and in the order of their ranks.

        gloo's own sum takes another order for each part of a tensor: a value's last bit would
        depend on what else is summed with it.
        """
        if not self.several:
            return values
        import torch
        import torch.distributed as dist

        of_all = [torch.empty_like(values) for _ in range(self.world_size)]
        dist.all_gather(of_all, values.contiguous())
        return sum(of_all[1:], of_all[0])

    # --- Training together ------------------------------------------------------------------------

    def wrap(self, model: "nn.Module") -> "nn.Module":
        """`model` as all processes train it: its gradients become the mean over the processes."""
        if not self.several:
            return model
        from torch.nn.parallel import DistributedDataParallel

        # The gradients live in the buffers that are exchanged: no second copy of them.
        return DistributedDataParallel(model, gradient_as_bucket_view=True)

    def settle_exchange(self, model: "nn.Module", images: "Tensor") -> None:
        """Have `model`, as `wrap` gives it, settle the parts in which gradients are exchanged.

        It does so by the order in which those of its first backward pass arrive, after that pass.
        A run that goes on would exchange those of its first step otherwise than one that was not
        interrupted; gloo's sum over three or more processes has other last bits then.

        Args:
            model: of several processes, in training mode; draws from the generators.
            images: any batch.
        """
        model(images).logits.sum().backward()
        model.zero_grad(set_to_none=True)

    def without_exchange(self, model: "nn.Module") -> AbstractContextManager:
        """Backward passes whose gradients stay here, to be exchanged with a later one's."""
        return model.no_sync() if self.several else nullcontext()

    def gather(self, counts: Sequence[int]) -> Gather | None:
        """Brings the samples of all processes together, with gradients; None for one process.

        Args:
            counts: samples that each process has.

        Returns:
            (features (n, D), labels (n,)) of this process to those of all, by rank. A process
            without samples passes on one that does not count.
        """
        if not self.several:
            return None
        import torch
        import torch.distributed as dist
        from torch.distributed._functional_collectives import all_gather_single

        most, own = max(counts), counts[self.rank]
        rows = torch.cat(
            [torch.arange(rank * most, rank * most + count) for rank, count in enumerate(counts)]
        )

        def of_all(values: "Tensor") -> "Tensor":
            padded = values.new_zeros(most, *values.shape[1:])
            padded = torch.cat([values[:own], padded[own:]])
            return all_gather_single(padded, 0, dist.group.WORLD)[rows]

        return lambda features, labels: (of_all(features), of_all(labels))


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """Join the processes that torchrun started, for the length of the block.

    Raises:
        Alone: the others cannot be reached.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Processes()
        return
    import torch.distributed as dist

    try:
        dist.init_process_group(BACKEND)
    except (RuntimeError, ValueError) as error:
        raise Alone(f"the other processes cannot be reached: {one_line(error)}") from error
    try:
        yield Processes(
            dist.get_world_size(), dist.get_rank(), int(os.environ.get("LOCAL_RANK", "0"))
        )
        dist.barrier()  # torchrun takes the first that ends for a reason to end the others
    except RuntimeError as error:
        if is_lost_process(error):
            raise Alone(lost_process(error)) from error
        raise
    finally:
        gc.collect()  # what still refers to the group would end its threads too late: an abort
        dist.destroy_process_group()
