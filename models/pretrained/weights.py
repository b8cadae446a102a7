"""Say what a weight file holds, and which of our models it fits.

`open_pretrained` reads a file and says what it is, `adapt_config` gives the config of our model
that these weights fit, and `models.pretrained.load` copies them into it.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from torch import Tensor

from models.configs import ModelConfigError, complete_config, types_of_size
from models.pretrained.choice import Named, to_our_names
from models.pretrained.formats import WeightsError, read_weight_file
from models.pretrained.profiles import AUTO, PROFILES, Profile, default_profile
from models.pretrained.profiles import ProfileError as ProfileError
from models.pretrained.sidecar import Sidecar, complete, public_profile, sidecar_of
from models.pretrained.tensors import (
    as_float32,
    check_embeddings,
    is_square,
    without_register_positions,
)


class Pretrained(NamedTuple):
    """Weights under our names, and what is known of their model."""

    layout: str
    tensors: dict[str, Tensor]  # float32, contiguous
    unused: tuple[str, ...]  # names in the file that have no place in our models
    sizes: dict[str, int]  # SIZE_FIELDS, and num_heads if known
    architecture: dict[str, Any]  # other fields of the model config that the tensors decide
    profile: Profile
    notes: tuple[str, ...] = ()  # what was converted
    assumed: str = ""  # what nothing says and was assumed, in words
    classes: tuple[str, ...] | None = None  # class names of the head; None: unknown
    names: Mapping[str, str] | None = None  # our names to those in the file; None: the same

    def name_in_file(self, key: str) -> str:
        """Return the name in the file of the tensor that is `key` for us, also of a missing one."""
        return key if self.names is None else self.names[key]


def _architecture(
    tensors: Mapping[str, Tensor], pool: str | None = None
) -> tuple[dict[str, int], dict[str, Any]]:
    """Read the sizes and the other config fields of the model that `tensors` are of.

    `pool` is what its head reads, if that is known.
    """
    kernel, registers = tensors["patch_embed.proj.weight"], tensors.get("reg_token")
    indices = [int(match[1]) for key in tensors if (match := re.match(r"blocks\.(\d+)\.", key))]
    has_part_block = any(key.startswith("part_block.") for key in tensors)
    sizes = {
        "patch_size": kernel.shape[-1],
        "embed_dim": kernel.shape[0],
        "depth": 1 + max(indices) + has_part_block,
        "mlp_dim": tensors["blocks.0.mlp.fc1.weight"].shape[0],
    }
    has_class_token = "cls_token" in tensors
    architecture = {
        "class_token": has_class_token,
        # Positions of a square grid alone, or with the class token's; no number is both.
        "pos_class_token": has_class_token and not is_square(tensors["pos_embed"].shape[1]),
        "num_registers": 0 if registers is None else registers.shape[1],
        "pre_norm": "norm_pre.weight" in tensors,
        "layer_scale": 1e-5 if "blocks.0.ls1.gamma" in tensors else None,
        "pool": pool or _pool_of(tensors, has_class_token),
    }
    return sizes, architecture


def _pool_of(tensors: Mapping[str, Tensor], has_class_token: bool) -> str:
    """Return what the head of foreign weights reads, or would read."""
    if "fc_norm.weight" in tensors:
        return "avg"
    if not has_class_token and "attn_pool.latent" not in tensors:
        raise WeightsError("it has neither class token nor attention pooling nor fc_norm")
    pool = "map" if "attn_pool.latent" in tensors else "token"
    head, width = tensors.get("head.weight"), tensors["patch_embed.proj.weight"].shape[0]
    reads_both = head is not None and head.ndim == 2 and head.shape[1] == 2 * width
    return f"{pool}_avg" if reads_both else pool


def _profile_of(
    named: Named, architecture: Mapping[str, Any], said: Sidecar
) -> tuple[Profile, str]:
    """Return the profile of a foreign file and, in words, what had to be assumed."""
    is_map = architecture["pool"] == "map"
    profile, assumed = complete(
        said, default_profile(named.layout, named.profile, architecture["pre_norm"], is_map)
    )
    if not assumed:
        return profile, ""
    verbs = ("no file beside says", "{} does not say", "{} do not say")
    silent = verbs[len(said.sources)].format(" and ".join(said.sources))
    return profile, f"{silent} {', '.join(assumed)}: assumed {profile.describe()}"


def open_pretrained(
    path: Path, profile: str = AUTO, key: str | None = None, public: Profile | None = None
) -> Pretrained:
    """Read a weight file of any known layout.

    Args:
        path: `.npz`, safetensors or PyTorch file.
        profile: name in `PROFILES`, or "auto": from the files beside it, else the layout's default.
        key: place of the model in the file; None: there is one, or one that goes before the others.
        public: profile that is known of these public weights; None: nothing is. A named profile
            then decides mean and standard deviation only.

    Raises:
        WeightsError: the file cannot be used; the message says why, in one line.
        ProfileError: a file beside it cannot be used.
        OSError: the file cannot be read.
    """
    named = to_our_names(read_weight_file(path), key)
    tensors, notes = as_float32(named.tensors, named.names)
    check_embeddings(tensors, named.names)
    tensors = without_register_positions(tensors)
    sizes, architecture = _architecture(tensors)
    if architecture["pre_norm"] and architecture["pool"] == "map":
        raise WeightsError("it is a Perception Encoder, whose rotary positions we do not have")
    if named.num_heads is not None:
        sizes["num_heads"] = named.num_heads
    known, assumed = PROFILES.get(profile), ""
    if public is not None:
        known = public_profile(sidecar_of(path, sizes), public, profile)
    elif known is None:
        known, assumed = _profile_of(named, architecture, sidecar_of(path, sizes))
    return Pretrained(
        *(named.layout, tensors, named.unused, sizes, architecture, known),
        notes=(*named.notes, *notes),
        assumed=assumed,
        names=named.names,
    )


def _config_of(fields: Mapping[str, Any]) -> ConfigDict:
    try:
        return complete_config(fields)
    except ModelConfigError as error:
        raise WeightsError(f"it has an unusable {error}") from error


def own_pretrained(
    state_dict: Mapping[str, Tensor],
    model_config: Mapping[str, Any],
    normalization: Mapping[str, Any],
    classes: Sequence[str] | None = None,
) -> Pretrained:
    """Return the weights of one of our checkpoints, which says everything about itself.

    Raises:
        WeightsError: they are not the weights of any of our models.
    """
    tensors, notes = as_float32(state_dict)
    check_embeddings(tensors)
    config = _config_of(model_config)
    sizes, architecture = _architecture(tensors, config.pool)
    if any(config[key] != value for key, value in sizes.items()):
        raise WeightsError("it does not hold the weights of the model that it describes")
    sizes["num_heads"] = config.num_heads
    mean, std = (tuple(normalization[key]) for key in ("mean", "std"))
    profile = Profile(mean, std, config.layer_norm_eps, config.activation)
    return Pretrained(
        "ours",
        tensors,
        (),
        sizes,
        architecture,
        profile,
        notes,
        classes=None if classes is None else tuple(classes),
    )


def adapt_config(config: ConfigDict, weights: Pretrained) -> ConfigDict:
    """Return `config` with the architecture, eps and activation of the weights' model.

    Raises:
        WeightsError: the sizes differ (the message names a model type that fits, if there is one),
            or part selection lacks a class token.
    """
    differing = [
        f"{key} {value}, not {config[key]}"
        for key, value in weights.sizes.items()
        if config[key] != value
    ]
    if differing:
        fitting = types_of_size(weights.sizes)
        advice = f"; use --model_type {fitting[0]}" if fitting else ", which no --model_type has"
        raise WeightsError(f"it has {', '.join(differing)}{advice}")
    fields = {
        **config.to_dict(),
        **weights.architecture,
        "layer_norm_eps": weights.profile.layer_norm_eps,
        "activation": weights.profile.activation,
    }
    if config.head == "parts":
        if not weights.architecture["class_token"]:
            raise WeightsError("it has no class token, which --head parts needs")
        fields["pool"] = "token"  # the head reads the class token after the part block
    return _config_of(fields)
