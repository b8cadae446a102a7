"""Play a Mac's GPU on a CPU: every tensor on it says `mps:0`, and the CPU computes.

It refuses what MPS refuses (float64, tensors of two devices in one operation, `.numpy()`), what
corrupts data there (`non_blocking` copies), and records every operator and every read, that is
every value that a program waits for. Autograd and the optimizers take the routes they take on MPS:
no foreach kernels, attention by its mathematical formula. What is drawn on it at random comes from
a generator of its own, as on MPS, which torch's checkpointing does not know of.

What it cannot show: whether the Metal kernels compute the right thing.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

MPS = torch.device("mps", 0)
CPU = torch.device("cpu")
REFUSED_DTYPES = (torch.float64, torch.complex128)
# Operators whose result the program needs on the CPU before it can go on, by torch's own tags.
SYNC_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


def _refuse_non_blocking(non_blocking: bool) -> None:
    if non_blocking:
        raise RuntimeError("a non_blocking copy can corrupt data on MPS (pytorch #189690)")


class MpsTensor(Tensor):
    """A tensor on the pretended device. Its memory is `_held`, on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor, mps: "PretendedMps") -> "MpsTensor":
        # For C++ it is a CPU tensor: autograd has no queue for a device that this torch lacks.
        wrapper = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=CPU,
        )
        wrapper._held, wrapper._mps = held, mps
        return wrapper

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} on the pretended device, outside of its `with` block")

    @property
    def device(self) -> torch.device:
        return MPS

    is_mps = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        if device is None or device.type == "mps":
            return self if dtype in (None, self.dtype) else super().to(dtype)
        _refuse_non_blocking(non_blocking)
        return self.cpu() if dtype is None else self.cpu().to(dtype)

    def cpu(self) -> Tensor:
        if self.requires_grad:
            raise NotImplementedError("a copy to the CPU that gradients flow through")
        self._mps.reads["cpu"] += 1
        return self._held.clone()

    def tolist(self) -> Any:
        self._mps.reads["tolist"] += 1
        return self._held.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert mps:0 device type tensor to numpy")

    __array__ = numpy


class PretendedMps(TorchDispatchMode):
    """The device while its `with` block lasts.

    Attributes:
        operators: number of calls of each operator on the device.
        reads: number of reads of the device, by the way of reading.
        dtypes: dtypes of the tensors that were on the device.
        generator: random generator of the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[torch._ops.OpOverload] = Counter()
        self.reads: Counter[str] = Counter()
        self.dtypes: set[torch.dtype] = set()
        self.generator = torch.Generator()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        given = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        on_device = [tensor for tensor in given if isinstance(tensor, MpsTensor)]
        device = kwargs.get("device")
        goes_there = device is not None and torch.device(device).type == "mps"
        if not on_device and not goes_there:
            return func(*args, **kwargs)

        self.operators[func] += 1
        if any(argument.name == "generator" for argument in func._schema.arguments):
            kwargs["generator"] = self.generator
        is_copy = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        if goes_there:
            kwargs["device"] = CPU
        if is_copy:
            _refuse_non_blocking(kwargs.get("non_blocking", False))
        if func is torch.ops.aten.copy_.default and not isinstance(args[0], MpsTensor):
            self.reads["copy_"] += 1
        self._check_one_device(func, is_copy, given, on_device)
        if SYNC_TAGS & set(func.tags) and self._waits(func, args):
            self.reads[func.overloadpacket.__name__] += 1

        # An operator that works in place hands back its argument; so must we.
        arguments = {id(t._held) if isinstance(t, MpsTensor) else id(t): t for t in given}
        args, kwargs = tree_map_only(MpsTensor, lambda tensor: tensor._held, (args, kwargs))
        results = func(*args, **kwargs)

        def wrap(result: Tensor) -> Tensor:
            known = id(result) in arguments
            return arguments[id(result)] if known else self._put(func, result)

        return tree_map_only(Tensor, wrap, results)

    def _check_one_device(self, func, is_copy, given, on_device) -> None:
        # As MPS, let scalars of the CPU through: they become constants.
        strangers = [t for t in given if not isinstance(t, MpsTensor) and t.ndim > 0]
        if on_device and strangers and not is_copy:
            raise RuntimeError(f"{func}: expected all tensors on mps:0, found some on cpu")

    def _waits(self, func, args) -> bool:
        if func is not torch.ops.aten.index.Tensor:
            return True
        # Only a mask makes the size of the result depend on values.
        return any(index is not None and index.dtype == torch.bool for index in args[1])

    def _put(self, func, held: Tensor) -> MpsTensor:
        if held.dtype in REFUSED_DTYPES:
            raise TypeError(f"{func}: MPS doesn't support {held.dtype}")
        self.dtypes.add(held.dtype)
        return MpsTensor(held, self)


class _NumberedDevice(TorchFunctionMode):
    """Write `mps` as `mps:0`: this torch has no MPS that it could ask for the current device."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        def number(device: torch.device | str) -> torch.device | str:
            return MPS if str(device) == "mps" else device

        kwargs = dict(kwargs or {})
        if kwargs.get("device") is not None:
            kwargs["device"] = number(kwargs["device"])
        if func is Tensor.to:
            args = (args[0], *map(number, args[1:]))
        return func(*args, **kwargs)


def _grouped_on_mps(grouped: Callable[..., dict]) -> Callable[..., dict]:
    """Group tensors by device as C++ does, but by the device that they say they are on."""

    def group(tensors: list[list[Tensor | None]], with_indices: bool = False) -> dict:
        first = next(tensor for tensor in tensors[0] if tensor is not None)
        by_device = grouped(tensors, with_indices)
        return {(first.device, dtype): group for (_, dtype), group in by_device.items()}

    return group


@contextmanager
def pretended_mps() -> Iterator[PretendedMps]:
    """Offer the pretended device, and have `torch.backends.mps` call it available."""
    grouped = torch._C._group_tensors_by_device_and_dtype
    device = PretendedMps()
    with (
        mock.patch.object(torch.backends.mps, "is_available", return_value=True),
        mock.patch.object(torch.backends.mps, "get_name", return_value="Pretended M1"),
        # With it, torch.mps.get_rng_state and set_rng_state do as on a Mac.
        mock.patch.object(torch.mps, "_default_mps_generator", device.generator),
        mock.patch.object(torch.mps, "manual_seed", device.generator.manual_seed),
        # `module.to` puts the new tensor in the parameter's place; it cannot write into its memory.
        mock.patch.object(torch.__future__, "_swap_module_params_on_conversion", True),
        mock.patch.object(torch._C, "_group_tensors_by_device_and_dtype", _grouped_on_mps(grouped)),
        attention_as_on_mps(),
        _NumberedDevice(),
        device,
    ):
        yield device


def attention_as_on_mps() -> Any:
    """Return a context in which attention avoids the kernel that only CPUs have."""
    return sdpa_kernel(SDPBackend.MATH)
