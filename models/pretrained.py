"""Weights from elsewhere into one of our models, with an account of what went where.

Three steps: `open_pretrained` reads a file and says what it is; `adapt_config` gives the config of
our model that these weights fit; `load_pretrained` copies them. D width, N positions.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from ml_collections import ConfigDict
from torch import Tensor

from models.configs import SIZE_FIELDS, complete_config, types_of_size
from models.layouts import Named, to_our_names
from models.profiles import (
    AUTO,
    PROFILES,
    Profile,
    ProfileError,
    complete,
    default_profile,
    read_sidecar,
)
from models.transfg import TransFG
from models.vit import Backbone
from models.weight_files import WeightsError, read_weight_file

HEAD_KEYS = ("head.bias", "head.weight")
POS_RESAMPLE = ("bicubic", "bilinear")
PART_INIT = ("pretrained", "random")


class Pretrained(NamedTuple):
    """Weights under our names, and what is known of their model."""

    layout: str
    tensors: dict[str, Tensor]  # float32, contiguous
    unused: tuple[str, ...]  # names in the file that have no place in our models
    sizes: dict[str, int]  # SIZE_FIELDS, and num_heads where it is known
    parts: dict[str, Any]  # config fields of what the model consists of, beside its sizes
    profile: Profile
    notes: tuple[str, ...]  # what was converted
    assumed: str  # what was taken for granted, in words; empty: nothing


class LoadReport(NamedTuple):
    """Keys by fate."""

    loaded: tuple[str, ...]  # taken over
    resized: dict[str, str]  # taken over in another size: from what to what
    new: tuple[str, ...]  # left at their initial values
    unused: tuple[str, ...]  # in the file and not needed

    def summary(self) -> dict[str, str]:
        """The fates in words, for a table."""
        resized = [f"{key} ({how})" for key, how in self.resized.items()]
        return {
            "loaded": f"{len(self.loaded)} tensors",
            "resized": ", ".join(resized) or "none",
            "new": _some(self.new),
            "unused": _some(self.unused),
        }


def _some(names: Sequence[str], most: int = 6) -> str:
    """Names, as many as fit a line."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "") or "none"


# --- What a file is -------------------------------------------------------------------------------


def _as_float32(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Contiguous float32 tensors, and a note for each other type that there was.

    Contiguous: MPS computes wrong with permuted weights, silently (pytorch #192212).
    """
    counts: dict[str, int] = {}
    converted = {}
    for key, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise WeightsError(f"{key} is {str(tensor.dtype).removeprefix('torch.')}, no weight")
        if tensor.dtype != torch.float32:
            name = str(tensor.dtype).removeprefix("torch.")
            counts[name] = counts.get(name, 0) + 1
        converted[key] = tensor.to(torch.float32).contiguous()
    bad = [key for key, tensor in converted.items() if not tensor.isfinite().all()]
    if bad:
        raise WeightsError(f"not finite: {', '.join(bad)}; the file is damaged or overflowed")
    return converted, tuple(f"{n} tensors converted from {name}" for name, n in counts.items())


def _without_register_positions(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` with the positions of registers, where there are any, added to the registers."""
    positions, registers = tensors.get("pos_embed"), tensors.get("reg_token")
    if registers is None or positions is None or positions.ndim != 3 or registers.ndim != 3:
        return tensors
    n, r = positions.shape[1], registers.shape[1]
    if _is_square(n) or _is_square(n - 1) or not _is_square(max(0, n - 1 - r)):
        return tensors
    cls_position, theirs, patches = positions.split((1, r, n - 1 - r), dim=1)
    folded = {"reg_token": registers + theirs, "pos_embed": torch.cat((cls_position, patches), 1)}
    return {**tensors, **folded}


def _anatomy(tensors: Mapping[str, Tensor]) -> tuple[dict[str, int], dict[str, Any]]:
    """Sizes and parts of the model that `tensors` are of."""
    kernel = tensors.get("patch_embed.proj.weight")
    positions = tensors.get("pos_embed")
    fc1 = tensors.get("blocks.0.mlp.fc1.weight")
    if kernel is None or positions is None or fc1 is None:
        given = {"patch_embed.proj.weight": kernel, "pos_embed": positions,
                 "blocks.0.mlp.fc1.weight": fc1}  # fmt: skip
        raise WeightsError(f"missing {', '.join(k for k, v in given.items() if v is None)}")
    if kernel.ndim != 4 or kernel.shape[1] != 3 or positions.ndim != 3 or fc1.ndim != 2:
        raise WeightsError(
            f"patch_embed.proj.weight is {tuple(kernel.shape)}, pos_embed "
            f"{tuple(positions.shape)}: no ViT for RGB images"
        )
    indices = {int(key.split(".")[1]) for key in tensors if key.startswith("blocks.")}
    has_part_block = any(key.startswith("part_block.") for key in tensors)
    sizes = {
        "patch_size": kernel.shape[-1],
        "embed_dim": kernel.shape[0],
        "depth": 1 + max(indices) + has_part_block,
        "mlp_dim": fc1.shape[0],
    }
    has_class_token = "cls_token" in tensors
    registers = tensors.get("reg_token")
    pools = {"attn_pool.latent": "map", "fc_norm.weight": "avg"}
    parts = {
        "class_token": has_class_token,
        # Of a square grid, or of that and the class token; no number is both.
        "pos_class_token": has_class_token and not _is_square(positions.shape[1]),
        "num_registers": 0 if registers is None else registers.shape[1],
        "pre_norm": "norm_pre.weight" in tensors,
        "layer_scale": 1e-5 if "blocks.0.ls1.gamma" in tensors else None,
        "pool": next((pool for key, pool in pools.items() if key in tensors), "token"),
    }
    if parts["pool"] == "token" and not has_class_token:
        raise WeightsError("it has neither class token nor attention pooling nor fc_norm")
    return sizes, parts


def _is_square(number: int) -> bool:
    return math.isqrt(number) ** 2 == number


def _check_sidecar_sizes(said: Mapping[str, int], sizes: dict[str, int], folder: Path) -> None:
    differing = [
        f"{key} {value} where the weights have {sizes[key]}"
        for key, value in said.items() if key in sizes and sizes[key] != value
    ]  # fmt: skip
    if differing:
        raise ProfileError(
            f"{folder / 'config.json'} describes another model ({', '.join(differing)}); remove "
            "it, or name a --pretrained_profile"
        )


def _profile_of(
    named: Named, parts: Mapping[str, Any], sizes: dict[str, int], path: Path, wanted: str
) -> tuple[Profile, str]:
    """The profile of a foreign file, and what had to be assumed. Adds `num_heads` to `sizes`."""
    if named.num_heads is not None:
        sizes["num_heads"] = named.num_heads
    if wanted != AUTO:
        return PROFILES[wanted], ""
    said = read_sidecar(path.parent)
    _check_sidecar_sizes(said.sizes, sizes, path.parent)
    if "num_heads" in said.sizes:
        sizes["num_heads"] = said.sizes["num_heads"]
    default = default_profile(named.layout, parts["pre_norm"], parts["pool"] == "map")
    profile, assumed = complete(said, default)
    if not assumed:
        return profile, ""
    where = f"{' and '.join(said.sources)} do not say" if said.sources else "no file beside says"
    return profile, f"{where} {', '.join(assumed)}: assumed {profile.describe()}"


def open_pretrained(path: Path, profile: str = AUTO) -> Pretrained:
    """Read a weight file of any known layout.

    Args:
        path: `.npz`, safetensors or PyTorch file.
        profile: of `PROFILES`, or `auto`: from the files beside it, else the layout's default.

    Raises:
        WeightsError: it cannot be used; the message says why, in one line.
        ProfileError: a file beside it cannot be used.
        OSError: it cannot be read.
    """
    named = to_our_names(read_weight_file(path))
    tensors, notes = _as_float32(named.tensors)
    tensors = _without_register_positions(tensors)
    sizes, parts = _anatomy(tensors)
    known, assumed = _profile_of(named, parts, sizes, path, profile)
    return Pretrained(named.layout, tensors, named.unused, sizes, parts, known, notes, assumed)


def own_pretrained(
    state_dict: Mapping[str, Tensor],
    model_config: Mapping[str, Any],
    normalization: Mapping[str, Any],
) -> Pretrained:
    """The weights of one of our checkpoints, which says everything about itself.

    Raises:
        WeightsError: they are not the weights of any of our models.
    """
    tensors, notes = _as_float32(state_dict)
    sizes, parts = _anatomy(tensors)
    try:
        config = complete_config(model_config)
    except ValueError as error:
        raise WeightsError(str(error)) from error
    sizes["num_heads"] = config.num_heads
    profile = Profile(
        tuple(normalization["mean"]), tuple(normalization["std"]),
        config.layer_norm_eps, config.activation,
    )  # fmt: skip
    return Pretrained("ours", tensors, (), sizes, parts, profile, notes, "")


def adapt_config(config: ConfigDict, weights: Pretrained) -> ConfigDict:
    """`config` with the parts, eps and activation of the model that `weights` are of.

    Raises:
        WeightsError: the sizes differ; the message names a model type that fits, if there is one.
    """
    differing = [
        f"{key} {value}, not {config[key]}"
        for key, value in weights.sizes.items() if config[key] != value
    ]  # fmt: skip
    if differing:
        fitting = types_of_size({key: weights.sizes[key] for key in SIZE_FIELDS})
        advice = f"; use --model_type {fitting[0]}" if fitting else ", which no --model_type has"
        raise WeightsError(f"it has {', '.join(differing)}{advice}")
    if config.head == "parts" and not weights.parts["class_token"]:
        raise WeightsError("it has no class token, which --head parts needs")
    fields = {
        **config.to_dict(), **weights.parts,
        "layer_norm_eps": weights.profile.layer_norm_eps,
        "activation": weights.profile.activation,
    }  # fmt: skip
    if config.head == "parts":
        fields["pool"] = "token"  # what is read is the class token after the part block
    return complete_config(fields)


# --- Into a model ---------------------------------------------------------------------------------


def resample_positions(positions: Tensor, side: int, num_prefix: int, mode: str) -> Tensor:
    """Position embeddings of a square grid for another one.

    Args:
        positions: (1, prefix + old side squared, D), of the prefix tokens first.
        side: of the new grid, patches.
        num_prefix: tokens before the patches that have a position; theirs stay as they are.
        mode: `bicubic` (with antialias, as timm's `resample_abs_pos_embed`) or `bilinear` (corners
            aligned, which is what the paper's `scipy.ndimage.zoom(order=1)` computes).
    """
    prefix, grid = positions[:, :num_prefix], positions[:, num_prefix:]
    old = math.isqrt(grid.shape[1])
    grid = grid.unflatten(1, (old, old)).permute(0, 3, 1, 2)  # (1, D, old, old)
    options = {"antialias": True} if mode == "bicubic" else {"align_corners": True}
    grid = F.interpolate(grid, size=(side, side), mode=mode, **options)
    return torch.cat((prefix, grid.flatten(2).transpose(1, 2)), dim=1).contiguous()


def _rename_last_block(
    tensors: dict[str, Tensor], model: Backbone, part_init: str
) -> tuple[dict[str, Tensor], set[str]]:
    """The last block and final norm under the names that `model` has for them.

    Returns:
        The renamed tensors, and the names among them that are not to be loaded.
    """
    last = f"blocks.{model.depth - 1}."
    has_part_block = any(key.startswith("part_block.") for key in tensors)
    if not isinstance(model, TransFG):
        renames = {"part_block.": last, "part_norm.": "norm."} if has_part_block else {}
    elif has_part_block:
        renames = {}
    else:
        renames = {last: "part_block.", "norm.": "part_norm.", "fc_norm.": "part_norm."}
    renamed = {}
    for key, tensor in tensors.items():
        prefix = next((old for old in renames if key.startswith(old)), None)
        renamed[key if prefix is None else renames[prefix] + key.removeprefix(prefix)] = tensor
    is_random = isinstance(model, TransFG) and part_init == "random"
    return renamed, {key for key in renamed if is_random and key.startswith("part_block.")}


def load_pretrained(
    model: Backbone,
    weights: Pretrained,
    keep_head: bool = False,
    pos_resample: str = "bicubic",
    part_init: str = "pretrained",
) -> LoadReport:
    """Copy `weights` into `model`, whose config `adapt_config` gave.

    Args:
        model: on the CPU; its parameters are overwritten in place.
        weights: of the same sizes; positions may be of another grid.
        keep_head: the classes are the same, in the same order, so the head means the same.
        pos_resample: of `POS_RESAMPLE`.
        part_init: whether TransFG's part block starts from the last block ("pretrained") or stays
            as it was drawn ("random", as the paper's code has it).

    Raises:
        WeightsError: keys missing besides the head's, or shapes that differ; lists them.
    """
    own = model.state_dict()
    given, skipped = _rename_last_block(weights.tensors, model, part_init)
    skipped |= set() if keep_head else given.keys() & set(HEAD_KEYS)
    resized = {}
    positions, ours = given.get("pos_embed"), own["pos_embed"]
    num_prefix = int(model.pos_class_token)
    if positions is not None and positions.shape[1] != ours.shape[1]:
        old, new = (math.isqrt(p.shape[1] - num_prefix) for p in (positions, ours))
        if old**2 + num_prefix != positions.shape[1]:
            raise WeightsError(f"pos_embed is {tuple(positions.shape)}: no square grid of patches")
        given["pos_embed"] = resample_positions(positions, new, num_prefix, pos_resample)
        resized["pos_embed"] = f"{old}x{old} to {new}x{new} patches, {pos_resample}"
    taken = {key: given[key] for key in given.keys() & own.keys() - skipped}
    allowed = set() if keep_head else set(HEAD_KEYS)
    allowed |= {key for key in skipped if key in own}
    missing = sorted(own.keys() - taken.keys() - allowed)
    problems = [f"missing {key}" for key in missing]
    problems += [
        f"{key} is {tuple(tensor.shape)}, not {tuple(own[key].shape)}"
        for key, tensor in sorted(taken.items()) if tensor.shape != own[key].shape
    ]  # fmt: skip
    if problems:
        raise WeightsError(", ".join(problems))
    model.load_state_dict({**own, **taken})
    return LoadReport(
        loaded=tuple(sorted(taken.keys() - resized.keys())),
        resized=resized,
        new=tuple(sorted(own.keys() - taken.keys())),
        unused=tuple(sorted((given.keys() - taken.keys()) | set(weights.unused))),
    )
