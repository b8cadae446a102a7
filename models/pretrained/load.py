"""Load weights into one of our models, and account for each tensor.

Shapes: D width.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.pretrained.formats import WeightsError
from models.pretrained.weights import Pretrained
from models.transfg import TransFG
from models.vit import Backbone

HEAD_KEYS = ("head.bias", "head.weight")
POS_RESAMPLE = ("bicubic", "bilinear")
PART_INIT = ("pretrained", "random")


class LoadReport(NamedTuple):
    """The fate of each tensor."""

    loaded: tuple[str, ...]  # copied as they are, by our names
    resized: dict[str, str]  # copied in another size: from what to what, by the file's names
    new: tuple[str, ...]  # left at their initial values, by our names
    unused: tuple[str, ...]  # in the file and not needed, by the file's names

    def summary(self) -> dict[str, str]:
        """Return the report in words, a row for each outcome."""
        resized = [f"{key} ({how})" for key, how in self.resized.items()]
        return {
            "loaded": f"{len(self.loaded)} tensors",
            "resized": ", ".join(resized) or "none",
            "new": _some(self.new),
            "unused": _some(self.unused),
        }


def _some(names: Sequence[str], most: int = 6) -> str:
    """Return as many of the names as fit a line."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "") or "none"


def resample_positions(positions: Tensor, side: int, num_prefix: int, mode: str) -> Tensor:
    """Resample the position embeddings of a square grid of patches to another grid.

    Args:
        positions: (1, prefix + old side squared, D), the prefix tokens first.
        side: patches along a side of the new grid.
        num_prefix: number of tokens before the patches that have a position; theirs are kept.
        mode: "bicubic" (with antialias, as timm's `resample_abs_pos_embed`) or "bilinear" (corners
            aligned, which is what the `scipy.ndimage.zoom(order=1)` of ViT-pytorch computes).

    Returns:
        (1, prefix + side squared, D), contiguous.
    """
    prefix, grid = positions[:, :num_prefix], positions[:, num_prefix:]
    old = math.isqrt(grid.shape[1])
    grid = grid.unflatten(1, (old, old)).permute(0, 3, 1, 2)  # (1, D, old, old)
    options = {"antialias": True} if mode == "bicubic" else {"align_corners": True}
    grid = F.interpolate(grid, size=(side, side), mode=mode, **options)
    return torch.cat((prefix, grid.flatten(2).transpose(1, 2)), dim=1).contiguous()


def _fit_positions(positions: Tensor, model: Backbone, mode: str, name: str) -> tuple[Tensor, str]:
    """Return positions for the grid of `model`, and from what to what they were resampled.

    `name` is theirs in the file, for the error.
    """
    num_prefix = int(model.pos_class_token)
    old, new = (math.isqrt(p.shape[1] - num_prefix) for p in (positions, model.pos_embed))
    if old**2 + num_prefix != positions.shape[1]:
        raise WeightsError(f"{name} is {tuple(positions.shape)}: not a square grid of patches")
    resampled = resample_positions(positions, new, num_prefix, mode)
    return resampled, f"{old}x{old} to {new}x{new} patches, {mode}"


def _last_block_renamed(tensors: dict[str, Tensor], model: Backbone) -> dict[str, str]:
    """Return new starts of names by old: those that `model` has for last block and final norm."""
    last = f"blocks.{model.depth - 1}."
    has_part_block = any(key.startswith("part_block.") for key in tensors)
    renames = {}
    if isinstance(model, TransFG) and not has_part_block:
        renames = {last: "part_block.", "norm.": "part_norm.", "fc_norm.": "part_norm."}
    elif has_part_block and not isinstance(model, TransFG):
        renames = {"part_block.": last, "part_norm.": "norm."}
    return renames


def _renamed(key: str, renames: Mapping[str, str]) -> str:
    old = next((old for old in renames if key.startswith(old)), "")
    return renames.get(old, "") + key.removeprefix(old)


def load_pretrained(
    model: Backbone,
    weights: Pretrained,
    keep_head: bool = False,
    pos_resample: str = "bicubic",
    part_init: str = "pretrained",
) -> LoadReport:
    """Copy `weights` into `model`, whose config comes from `adapt_config`.

    Args:
        model: model on the CPU; its parameters are overwritten in place.
        weights: weights of the same sizes; their positions may be of another grid.
        keep_head: whether the head is copied too, because the classes are the same.
        pos_resample: one of `POS_RESAMPLE`.
        part_init: whether TransFG's part block starts from the last block ("pretrained") or keeps
            its initial values ("random", as in the paper's code).

    Raises:
        WeightsError: keys but the head's are missing, or shapes differ; lists them all.
    """
    own = model.state_dict()
    renames = _last_block_renamed(weights.tensors, model)
    before = {_renamed(key, renames): key for key in weights.tensors}
    back = {new: old for old, new in reversed(renames.items())}

    def in_file(key: str) -> str:
        return weights.name_in_file(before.get(key) or _renamed(key, back))

    given = {key: weights.tensors[old] for key, old in before.items()}
    skipped = set() if keep_head else set(HEAD_KEYS)
    if part_init == "random" and isinstance(model, TransFG):
        skipped |= {key for key in given if key.startswith("part_block.")}
    resized = {}
    if "pos_embed" in given and given["pos_embed"].shape[1] != own["pos_embed"].shape[1]:
        name = in_file("pos_embed")
        given["pos_embed"], how = _fit_positions(given["pos_embed"], model, pos_resample, name)
        resized[name] = how
    taken = {key: given[key] for key in given.keys() & own.keys() - skipped}
    problems = [f"missing {in_file(key)}" for key in sorted(own.keys() - taken.keys() - skipped)]
    problems += [
        f"{in_file(key)} is {tuple(tensor.shape)}, not {tuple(own[key].shape)}"
        for key, tensor in sorted(taken.items())
        if tensor.shape != own[key].shape
    ]
    if problems:
        raise WeightsError(", ".join(problems))
    model.load_state_dict({**own, **taken})
    return LoadReport(
        loaded=tuple(sorted(key for key in taken if in_file(key) not in resized)),
        resized=resized,
        new=tuple(sorted(own.keys() - taken.keys())),
        unused=tuple(sorted({*map(in_file, given.keys() - taken.keys()), *weights.unused})),
    )
