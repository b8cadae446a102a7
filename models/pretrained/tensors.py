"""Bring the tensors of a weight file into our form, and refuse those that no ViT has."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from models.pretrained.choice import NEEDED
from models.pretrained.formats import WeightsError


def as_float32(
    tensors: Mapping[str, Tensor], names: Mapping[str, str] | None = None
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return contiguous float32 tensors, and a note for each other type that there was.

    Contiguous: MPS computes wrong with permuted weights, silently (pytorch #192212).

    Args:
        tensors: tensors by our names.
        names: our names to those in the file; None: the same.
    """
    counts: dict[str, int] = {}
    converted = {}
    names = {key: key for key in tensors} if names is None else names
    for key, tensor in tensors.items():
        name = str(tensor.dtype).removeprefix("torch.")
        if tensor.layout != torch.strided or tensor.is_meta:
            raise WeightsError(f"{names[key]} is not a plain tensor")
        if not tensor.is_floating_point() or tensor.dtype == torch.float4_e2m1fn_x2:
            raise WeightsError(f"{names[key]} is {name}, not a floating-point type")
        if tensor.nbytes > tensor.untyped_storage().nbytes():  # few bytes can be shown as terabytes
            raise WeightsError(f"{names[key]} shows the same numbers many times; save a copy of it")
        if tensor.dtype != torch.float32:
            counts[name] = counts.get(name, 0) + 1
        converted[key] = tensor.to(torch.float32).contiguous()
    bad = [names[key] for key, tensor in converted.items() if not tensor.isfinite().all()]
    if bad:
        raise WeightsError(f"not finite: {', '.join(bad)}; the file is damaged or overflowed")
    return converted, tuple(
        f"{n} tensor{'s' * (n > 1)} converted from {name}" for name, n in counts.items()
    )


def is_square(number: int) -> bool:
    """Return whether a number is the square of a whole number."""
    return math.isqrt(number) ** 2 == number


def check_embeddings(tensors: Mapping[str, Tensor], names: Mapping[str, str] | None = None) -> None:
    """Check the tensors that the architecture is read from.

    Raises:
        WeightsError: one is missing, or is not of a ViT for RGB images.
    """
    needed = dict(zip(NEEDED, (4, 3, 2), strict=True))
    names = {key: key for key in needed} if names is None else names
    missing = [names[key] for key in needed if key not in tensors]
    if missing:
        raise WeightsError(f"missing {', '.join(missing)}")
    dimensions = {**needed, "reg_token": 3}
    is_odd = any(key in tensors and tensors[key].ndim != n for key, n in dimensions.items())
    kernel, positions = tensors["patch_embed.proj.weight"], tensors["pos_embed"]
    if is_odd or kernel.shape[1] != 3 or not positions.numel():
        raise WeightsError(
            f"{names['patch_embed.proj.weight']} is {tuple(kernel.shape)}, {names['pos_embed']} "
            f"{tuple(positions.shape)}: not a ViT for RGB images"
        )


def without_register_positions(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the position embeddings of registers, if they have any, to the registers."""
    positions, registers = tensors["pos_embed"], tensors.get("reg_token")
    if registers is None:
        return tensors
    n, r = positions.shape[1], registers.shape[1]
    if is_square(n) or is_square(n - 1) or not is_square(max(0, n - 1 - r)):
        return tensors
    class_position, theirs, patches = positions.split((1, r, n - 1 - r), dim=1)
    if theirs.shape != registers.shape:
        return tensors  # loading lists what does not fit
    pos_embed = torch.cat((class_position, patches), dim=1)
    return {**tensors, "reg_token": registers + theirs, "pos_embed": pos_embed}
