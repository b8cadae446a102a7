"""The registry of model configs. Imports no torch, so that `--help` stays fast.

Sizes: Dosovitskiy et al. 2021 (arXiv 2010.11929), table 1 (B, L, H); Touvron et al. 2021
(arXiv 2012.12877), table 1 (Ti, S). `_16` is the patch side in pixels.
"""

from ml_collections import ConfigDict


def _vit(patch_size: int, embed_dim: int, depth: int, num_heads: int, mlp_dim: int) -> ConfigDict:
    config = ConfigDict()
    config.patch_size = patch_size  # side of a square patch, pixels
    config.embed_dim = embed_dim  # D, width of a token
    config.depth = depth  # number of blocks
    config.num_heads = num_heads  # H; D must be a multiple
    config.mlp_dim = mlp_dim  # hidden width of a block's MLP
    config.layer_norm_eps = 1e-6  # as Google's and timm's ViTs; torch's default is 1e-5
    config.pool = "token"  # what the head reads: "token" (class token) or "avg" (mean of patches)
    config.img_size = 224  # side of the square input, pixels
    return config.lock()


_CONFIGS = {
    # As small as it can be while every part is there: several blocks, several heads.
    "testing": _vit(patch_size=16, embed_dim=64, depth=3, num_heads=4, mlp_dim=128),
    "ViT-Ti_16": _vit(patch_size=16, embed_dim=192, depth=12, num_heads=3, mlp_dim=768),
    "ViT-S_16": _vit(patch_size=16, embed_dim=384, depth=12, num_heads=6, mlp_dim=1536),
    "ViT-S_32": _vit(patch_size=32, embed_dim=384, depth=12, num_heads=6, mlp_dim=1536),
    "ViT-B_16": _vit(patch_size=16, embed_dim=768, depth=12, num_heads=12, mlp_dim=3072),
    "ViT-B_32": _vit(patch_size=32, embed_dim=768, depth=12, num_heads=12, mlp_dim=3072),
    "ViT-L_16": _vit(patch_size=16, embed_dim=1024, depth=24, num_heads=16, mlp_dim=4096),
    "ViT-L_32": _vit(patch_size=32, embed_dim=1024, depth=24, num_heads=16, mlp_dim=4096),
    "ViT-H_14": _vit(patch_size=14, embed_dim=1280, depth=32, num_heads=16, mlp_dim=5120),
}


def model_names() -> tuple[str, ...]:
    """The registered model types, smallest first."""
    return tuple(_CONFIGS)


def patch_sizes() -> dict[str, int]:
    """Patch side in pixels of every model type: what `--img_size` must be a multiple of."""
    return {name: config.patch_size for name, config in _CONFIGS.items()}


def get_config(model_type: str, img_size: int | None = None) -> ConfigDict:
    """A fresh, locked copy of the config of `model_type`, at `img_size` pixels if given.

    Raises:
        ValueError: the model type is not registered.
    """
    if model_type not in _CONFIGS:
        raise ValueError(f"unknown model type {model_type!r}; known: {', '.join(_CONFIGS)}")
    # ConfigDict(other) would share nested dicts with the registry.
    config = _CONFIGS[model_type].copy_and_resolve_references()
    if img_size is not None:
        config.img_size = img_size
    return config.lock()


def num_tokens(config: ConfigDict) -> int:
    """N, the tokens of one image: its patches and the class token."""
    return (config.img_size // config.patch_size) ** 2 + 1
