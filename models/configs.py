"""Register the model configs; importing them needs no torch, so that `--help` stays fast.

Sizes: Dosovitskiy et al. 2021 (arXiv 2010.11929), table 1 (B, L, H); Touvron et al. 2021
(arXiv 2012.12877), table 1 (Ti, S); Oquab et al. 2023 (arXiv 2304.07193), table 16 (patch 14).
`_16` is the patch side in pixels.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

HEADS = ("token", "parts")

# Every field of a model config that is not a size, with the value of a plain ViT. A checkpoint that
# lacks a field was written before the field existed: its model had the value given here.
_DEFAULTS: dict[str, Any] = {
    "head": "token",  # "token": plain ViT; "parts": TransFG's part selection
    "patch_stride": None,  # pixels between patches; None: the patch side, so they do not overlap
    "pool": "token",  # what the head reads: class token, "avg" (mean of patches), "map" (attention)
    "layer_norm_eps": 1e-6,  # as Google's and timm's ViTs; torch's default is 1e-5
    "activation": "gelu",  # in the MLPs: "gelu", "gelu_tanh" or "quick_gelu"
    "class_token": True,  # SigLIP has none
    "pos_class_token": True,  # whether the class token has a position embedding
    "num_registers": 0,  # register tokens (Darcet et al. 2023, arXiv 2309.16588)
    "pre_norm": False,  # a LayerNorm before the first block and no patch bias (CLIP)
    "layer_scale": None,  # initial value of LayerScale (DINOv2); None: without
    "dropout": 0.0,  # rate after the position embedding and each dense layer but query, key, value
    "drop_path": 0.0,  # stochastic depth's rate in the last block, rising linearly from 0
}


def _vit(patch_size: int, embed_dim: int, depth: int, num_heads: int, mlp_dim: int) -> ConfigDict:
    return ConfigDict(
        {
            "patch_size": patch_size,  # side of a square patch, pixels
            "embed_dim": embed_dim,  # D, width of a token
            "depth": depth,  # number of blocks, TransFG's part block included
            "num_heads": num_heads,  # H; D must be a multiple
            "mlp_dim": mlp_dim,  # hidden width of a block's MLP
            "img_size": 224,  # side of the square input, pixels
        }
    )


_SIZES = {
    # As small as it can be with several blocks and several heads.
    "testing": _vit(patch_size=16, embed_dim=64, depth=3, num_heads=4, mlp_dim=128),
    "ViT-Ti_16": _vit(patch_size=16, embed_dim=192, depth=12, num_heads=3, mlp_dim=768),
    "ViT-S_14": _vit(patch_size=14, embed_dim=384, depth=12, num_heads=6, mlp_dim=1536),
    "ViT-S_16": _vit(patch_size=16, embed_dim=384, depth=12, num_heads=6, mlp_dim=1536),
    "ViT-S_32": _vit(patch_size=32, embed_dim=384, depth=12, num_heads=6, mlp_dim=1536),
    "ViT-B_14": _vit(patch_size=14, embed_dim=768, depth=12, num_heads=12, mlp_dim=3072),
    "ViT-B_16": _vit(patch_size=16, embed_dim=768, depth=12, num_heads=12, mlp_dim=3072),
    "ViT-B_32": _vit(patch_size=32, embed_dim=768, depth=12, num_heads=12, mlp_dim=3072),
    "ViT-L_14": _vit(patch_size=14, embed_dim=1024, depth=24, num_heads=16, mlp_dim=4096),
    "ViT-L_16": _vit(patch_size=16, embed_dim=1024, depth=24, num_heads=16, mlp_dim=4096),
    "ViT-L_32": _vit(patch_size=32, embed_dim=1024, depth=24, num_heads=16, mlp_dim=4096),
    "ViT-H_14": _vit(patch_size=14, embed_dim=1280, depth=32, num_heads=16, mlp_dim=5120),
}
# The fields that make two models the same size, so that weights of one fit the other.
SIZE_FIELDS = ("patch_size", "embed_dim", "depth", "mlp_dim")


def model_names() -> tuple[str, ...]:
    """Return the registered model types, smallest first."""
    return tuple(_SIZES)


def patch_sizes() -> dict[str, int]:
    """Return the patch side of every model type, in pixels; `--img_size` is a multiple of it."""
    return {name: config.patch_size for name, config in _SIZES.items()}


def complete_config(fields: Mapping[str, Any]) -> ConfigDict:
    """Return a locked config with `fields`, and a plain ViT's values for the fields left out.

    This is the one check of a model config, also of one that a checkpoint holds.

    Raises:
        ValueError: a size is missing, a field is unknown, or a value has another type than usual.
    """
    sizes = _SIZES["testing"].to_dict()
    wrong = [f"no {key}" for key in sorted(sizes.keys() - fields.keys())]
    wrong += [f"unknown {key}" for key in sorted(fields.keys() - sizes.keys() - _DEFAULTS.keys())]
    if wrong:
        raise ValueError(f"model config has {', '.join(wrong)}")
    values = {**_DEFAULTS, **fields}
    if values["patch_stride"] is None:
        values["patch_stride"] = values["patch_size"]
    usual = {**sizes, **_DEFAULTS, "patch_stride": 1, "layer_scale": values["layer_scale"] and 1.0}
    wrong = [key for key, value in values.items() if type(value) is not type(usual[key])]
    if wrong:
        raise ValueError(f"model config has a wrong type of {', '.join(wrong)}")
    config = ConfigDict()
    for key, value in values.items():
        config[key] = value  # one by one: an optional float keeps no type while it is None
    return config.lock()


def get_config(model_type: str, img_size: int | None = None, **fields: Any) -> ConfigDict:  # noqa: ANN401
    """Return a new, locked config of `model_type`.

    Args:
        model_type: registered model type.
        img_size: side of the square input in pixels; None: 224.
        fields: values of other fields.

    Raises:
        ValueError: the model type is not registered, or a field is unknown.
    """
    if model_type not in _SIZES:
        raise ValueError(f"unknown model type {model_type!r}; known: {', '.join(_SIZES)}")
    size = {} if img_size is None else {"img_size": img_size}
    return complete_config({**_SIZES[model_type].to_dict(), **size, **fields})


def types_of_size(sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Return the model types that have these values of `SIZE_FIELDS`."""
    return tuple(
        name for name, config in _SIZES.items() if all(config[k] == v for k, v in sizes.items())
    )


def grid_side(config: ConfigDict) -> int:
    """Return the number of patches along one side of the image; a rest at the edge is not used."""
    return (config.img_size - config.patch_size) // config.patch_stride + 1


def num_prefix_tokens(config: ConfigDict) -> int:
    """Return the number of tokens before the patches: class token and registers."""
    return int(config.class_token) + config.num_registers


def num_tokens(config: ConfigDict) -> int:
    """Return N, the number of tokens of one image: patches, class token and registers."""
    return grid_side(config) ** 2 + num_prefix_tokens(config)


def patch_centers(config: ConfigDict) -> np.ndarray:
    """Return x and y of each patch's center in [0, 1] of the input square, (patches, 2) float32."""
    middle = np.arange(grid_side(config)) * config.patch_stride + config.patch_size / 2
    y, x = np.meshgrid(middle, middle, indexing="ij")
    return (np.stack((x.ravel(), y.ravel()), axis=1) / config.img_size).astype(np.float32)
