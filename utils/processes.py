"""Exchange values with the other processes of a run, and fail together with them.

torchrun starts the processes and says in the environment how many there are and which of them this
one is. They exchange through torch's process group, by its gloo backend on the CPU. A run of one
process imports nothing of torch here, and every exchange returns what this process has.
"""

import gc
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from utils.errors import (
    Alone,
    InputError,
    LoadingFailed,
    OutOfMemory,
    RunError,
    is_lost_loader,
    is_lost_process,
    is_out_of_memory,
    lost_process,
    one_line,
    remedy_of_shortage,
)

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
P = ParamSpec("P")
BACKEND = "gloo"
_hosts: list[str] = []  # by rank, as long as the processes are joined


def world_size() -> int:
    """Return the number of processes that run together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return the rank of this process: its number among them, counted from 0."""
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def is_main() -> bool:
    """Return whether this is the main process, which alone writes files and log lines."""
    return rank() == 0


def hosts() -> list[str]:
    """Return the names of the machines that the processes run on, by rank."""
    return list(_hosts) or [platform.node()]


@contextmanager
def joined_processes() -> Iterator[None]:
    """Join the processes that torchrun started, for the length of the block.

    Raises:
        Alone: the other processes cannot be reached, or one of them is gone at the end.
    """
    if world_size() == 1:
        yield
        return
    import torch.distributed as dist

    try:
        dist.init_process_group(BACKEND)
    except (RuntimeError, ValueError) as error:
        raise Alone(f"the other processes cannot be reached: {one_line(error)}") from error
    try:
        _hosts[:] = gather_objects(platform.node())
        yield
        dist.barrier()  # torchrun takes the first that ends for a reason to end the others
    except RuntimeError as error:
        if is_lost_process(error):
            raise Alone(lost_process(error)) from error
        raise
    finally:
        _hosts.clear()
        gc.collect()  # what still refers to the group would end its threads too late: an abort
        dist.destroy_process_group()


# --- Failing together -----------------------------------------------------------------------------


@contextmanager
def failing_together() -> Iterator[None]:
    """Let a block that every process runs fail in all if it fails in one, with one message.

    The block must not exchange anything: where one process fails and another waits for it in an
    exchange, both would wait until the exchange gives up, and the failure would be lost.

    Raises:
        InputError: the block raised it, here or elsewhere.
        RunError: the block raised it, an OSError or a MemoryError, here or elsewhere.
    """
    failure = None
    try:
        yield
    except (InputError, RunError, OSError, MemoryError, RuntimeError) as error:
        is_named = is_out_of_memory(error) or is_lost_loader(error)
        is_defect = isinstance(error, RuntimeError) and not is_named
        if world_size() == 1 or is_defect:
            raise
        failure = error
    raise_first_failure(failure)


def is_common_shortage(failure: Exception) -> bool:
    """Return whether the machine has run short of something, and all processes end by that."""
    is_shortage = is_out_of_memory(failure) or bool(remedy_of_shortage(failure))
    is_shared = isinstance(failure, RunError) and not isinstance(failure, Alone)
    return is_shortage and (is_shared or world_size() == 1)


def raise_first_failure(failure: Exception | None) -> None:
    """Raise, in all processes, the failure of the first process that has one.

    Args:
        failure: failure of this process, if any.
    """
    if world_size() == 1:
        if failure is not None:
            raise failure
        return
    own = None
    if failure is not None:
        kind = OutOfMemory if is_out_of_memory(failure) else RunError
        kind = type(failure) if isinstance(failure, InputError | LoadingFailed) else kind
        own = kind, one_line(failure)
    failures = [each for each in gather_objects(own) if each is not None]
    if failures:
        kind, message = failures[0]
        raise kind(message) from failure


def on_main(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `function` in the main process alone, and return its value in all processes.

    Raises:
        InputError: `function` raised it.
        RunError: `function` raised it, an OSError or a MemoryError.
    """
    value: Any = None
    with failing_together():
        if is_main():
            value = function(*args, **kwargs)
    return from_main(value)


def on_each_machine(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `function` in one process of each machine; return its value in all processes there.

    Raises:
        InputError: `function` raised it.
        RunError: `function` raised it, an OSError or a MemoryError.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0")) if world_size() > 1 else 0
    value: Any = None
    with failing_together():
        if local_rank == 0:
            value = function(*args, **kwargs)
    return gather_objects(value)[rank() - local_rank]  # torchrun counts machine by machine


@contextmanager
def main_first() -> Iterator[None]:
    """Have the other processes enter the block after the main process has left it, well or not."""
    if not is_main():
        gather_rows([0])
    try:
        yield
    finally:
        if is_main():
            gather_rows([0])


# --- Exchange -------------------------------------------------------------------------------------


def gather_objects(value: T) -> list[T]:
    """Return the values of all processes by rank, in all of them."""
    if world_size() == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def gather_objects_on_main(value: T) -> list[T]:
    """Return the values of all processes by rank in the main process, and nothing elsewhere."""
    if world_size() == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] | None = [None] * world_size() if is_main() else None
    dist.gather_object(value, values)
    return values or []


def from_main(value: T) -> T:
    """Return the value of the main process, in all processes."""
    if world_size() == 1:
        return value
    import torch.distributed as dist

    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def gather_rows(row: Sequence[int]) -> list[list[int]]:
    """Return the rows of all processes by rank, in all of them; each has as many integers."""
    if world_size() == 1:
        return [list(row)]
    import torch
    import torch.distributed as dist

    rows = torch.empty(world_size() * len(row), dtype=torch.int64)
    dist.all_gather_single(rows, torch.tensor(row, dtype=torch.int64))
    return rows.view(world_size(), -1).tolist()


def sum_by_rank(values: "Tensor") -> "Tensor":
    """Return the sum of a tensor over the processes, element by element in the order of the ranks.

    gloo's own sum takes another order for each part of a tensor: a value's last bit would depend on
    what else is summed with it.
    """
    if world_size() == 1:
        return values
    import torch
    import torch.distributed as dist

    by_rank = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(by_rank, values.contiguous())
    return sum(by_rank[1:], by_rank[0])
