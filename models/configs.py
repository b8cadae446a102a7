"""The registry of model configs. Imports no torch, so that `--help` stays fast.

Sizes: Dosovitskiy et al. 2021 (arXiv 2010.11929), table 1 (B, L, H); Touvron et al. 2021
(arXiv 2012.12877), table 1 (Ti, S); Oquab et al. 2023 (arXiv 2304.07193), table 16 (patch 14).
`_16` is the patch side in pixels.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

HEADS = ("token", "parts")

# Every field of a model config that is no size, and what a plain ViT has there. A checkpoint that
# lacks a field was written before the field existed: its model had the value given here.
_DEFAULTS: dict[str, Any] = {
    "head": "token",  # "token": plain ViT; "parts": TransFG's part selection
    "patch_stride": None,  # pixels between patches; None: the patch side, so they do not overlap
    "pool": "token",  # what the head reads: "token" (class token), "avg" (mean of patches), "map"
    "layer_norm_eps": 1e-6,  # as Google's and timm's ViTs; torch's default is 1e-5
    "activation": "gelu",  # of the MLPs: "gelu", "gelu_tanh" or "quick_gelu"
    "class_token": True,  # whether there is one (SigLIP has none)
    "pos_class_token": True,  # whether the class token has a position embedding
    "num_registers": 0,  # register tokens (Darcet et al. 2023, arXiv 2309.16588)
    "pre_norm": False,  # a LayerNorm before the first block and no patch bias (CLIP)
    "layer_scale": None,  # initial value of LayerScale (DINOv2); None: there is none
    "dropout": 0.0,  # after the position embedding and each dense layer but query, key, value
    "drop_path": 0.0,  # stochastic depth of the last block, rising linearly from 0
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
    # As small as it can be while every part is there: several blocks, several heads.
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
# What makes two models the same size: weights of one fit the other.
SIZE_FIELDS = ("patch_size", "embed_dim", "depth", "mlp_dim")


def model_names() -> tuple[str, ...]:
    """The registered model types, smallest first."""
    return tuple(_SIZES)


def patch_sizes() -> dict[str, int]:
    """Patch side in pixels of every model type: what `--img_size` must be a multiple of."""
    return {name: config.patch_size for name, config in _SIZES.items()}


def complete_config(fields: Mapping[str, Any]) -> ConfigDict:
    """A config of all fields from the given ones, the rest as in a plain ViT.

    Raises:
        ValueError: a size is missing, or a field is unknown.
    """
    sizes = _SIZES["testing"].keys()
    wrong = [f"no {key}" for key in sorted(sizes - fields.keys())]
    wrong += [f"unknown {key}" for key in sorted(fields.keys() - sizes - _DEFAULTS.keys())]
    if wrong:
        raise ValueError(f"model config has {', '.join(wrong)}")
    values = {**_DEFAULTS, **fields}
    if values["patch_stride"] is None:
        values["patch_stride"] = values["patch_size"]
    config = ConfigDict()
    for key, value in values.items():
        # None alone has no type; an optional float must take one later.
        config[key] = value
    return config.lock()


def get_config(model_type: str, img_size: int | None = None, **fields: Any) -> ConfigDict:  # noqa: ANN401
    """A fresh, locked config of `model_type`, at `img_size` pixels and with other fields if given.

    Raises:
        ValueError: the model type is not registered, or a field is unknown.
    """
    if model_type not in _SIZES:
        raise ValueError(f"unknown model type {model_type!r}; known: {', '.join(_SIZES)}")
    size = {} if img_size is None else {"img_size": img_size}
    return complete_config({**_SIZES[model_type].to_dict(), **size, **fields})


def types_of_size(sizes: Mapping[str, int]) -> tuple[str, ...]:
    """The model types that have these values of `SIZE_FIELDS`."""
    return tuple(
        name for name, config in _SIZES.items() if all(config[k] == v for k, v in sizes.items())
    )


def grid_side(config: ConfigDict) -> int:
    """Patches along one side of the image; what no whole patch covers is not looked at."""
    return (config.img_size - config.patch_size) // config.patch_stride + 1


def num_prefix_tokens(config: ConfigDict) -> int:
    """Tokens before the patches: class token and registers."""
    return int(config.class_token) + config.num_registers


def num_tokens(config: ConfigDict) -> int:
    """N, the tokens of one image: its patches, the class token, the registers."""
    return grid_side(config) ** 2 + num_prefix_tokens(config)


def patch_centers(config: ConfigDict) -> np.ndarray:
    """(patches, 2) float32, x and y of each patch's center, in [0, 1] of the square input."""
    middle = np.arange(grid_side(config)) * config.patch_stride + config.patch_size / 2
    y, x = np.meshgrid(middle, middle, indexing="ij")
    return (np.stack((x.ravel(), y.ravel()), axis=1) / config.img_size).astype(np.float32)
