"""Register the model configs; importing them needs no torch, so that `--help` stays fast.

Sizes: Dosovitskiy et al. 2021 (arXiv 2010.11929), table 1 (B, L, H); Touvron et al. 2021
(arXiv 2012.12877), table 1 (Ti, S); Oquab et al. 2023 (arXiv 2304.07193), table 16 (patch 14).
`_16` is the patch side in pixels.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

HEADS = ("token", "parts")
# What of an image the head reads, by pool, concatenated in this order. "token": class token, "map":
# attention pooling, "mean": mean of the patch tokens, all after the final norm and without
# registers; "avg": norm of the mean of the patch tokens. "token_avg" is Hugging Face's
# Dinov2ForImageClassification.
POOL_READS = {
    "token": ("token",),
    "avg": ("avg",),
    "map": ("map",),
    "norm_avg": ("mean",),
    "token_avg": ("token", "mean"),
    "map_avg": ("map", "mean"),
}
POOLS = tuple(POOL_READS)
ACTIVATION_NAMES = ("gelu", "gelu_tanh", "quick_gelu")


class ModelConfigError(ValueError):
    """A model config that no model can have; the message is one line and lists what is wrong."""


_REQUIRED = object()


class _Field(NamedTuple):
    """The values that a field of a model config may have."""

    kind: type
    # The least and the most of a number, the choices of a text.
    allowed: tuple[Any, ...] = ()
    default: Any = _REQUIRED  # None: the field may be None

    def allows(self, value: object) -> bool:
        """Return whether the field may have this value."""
        if value is None:
            return self.default is None
        if type(value) is not self.kind:
            return False
        if self.kind is str:
            return value in self.allowed
        return self.kind is bool or self.allowed[0] <= value <= self.allowed[1]

    def describe(self) -> str:
        """Return the allowed values in words."""
        if self.kind is bool:
            return "true or false"
        if self.kind is str:
            return f"one of {', '.join(self.allowed)}"
        noun = "an integer" if self.kind is int else "a number"
        return "{} from {:g} to {:g}".format(noun, *self.allowed)


_SIZE = _Field(int, (1, 2**16))
_SHARE = (0.0, 1.0)

# A checkpoint that lacks a field with a default was written before the field existed: its model had
# the default, which is a plain ViT's value.
_FIELDS = {
    "patch_size": _SIZE,  # side of a square patch, pixels
    "embed_dim": _SIZE,  # D, width of a token
    "depth": _Field(int, (1, 1000)),  # number of blocks, TransFG's part block included
    "num_heads": _SIZE,  # H; D must be a multiple
    "mlp_dim": _SIZE,  # hidden width of a block's MLP
    "img_size": _SIZE,  # side of the square input, pixels
    "head": _Field(str, HEADS, "token"),  # "token": plain ViT; "parts": TransFG's part selection
    # Pixels between patches; None: the patch side, so they do not overlap.
    "patch_stride": _Field(int, (1, 2**16), None),
    "pool": _Field(str, POOLS, "token"),  # what the head reads
    "layer_norm_eps": _Field(float, _SHARE, 1e-6),  # as Google's and timm's ViTs; torch's is 1e-5
    "activation": _Field(str, ACTIVATION_NAMES, "gelu"),  # in the MLPs
    "class_token": _Field(bool, default=True),  # SigLIP has none
    "pos_class_token": _Field(bool, default=True),  # whether the class token has a position
    # Register tokens (Darcet et al. 2023, arXiv 2309.16588).
    "num_registers": _Field(int, (0, 2**16), 0),
    # A LayerNorm before the first block and no patch bias (CLIP).
    "pre_norm": _Field(bool, default=False),
    "layer_scale": _Field(float, _SHARE, None),  # initial LayerScale (DINOv2); None: without
    # Rate after the position embedding and each dense layer but query, key, value.
    "dropout": _Field(float, _SHARE, 0.0),
    # Stochastic depth's rate in the last block, rising linearly from 0.
    "drop_path": _Field(float, _SHARE, 0.0),
}


def _vit(patch_size: int, embed_dim: int, depth: int, num_heads: int, mlp_dim: int) -> dict:
    return {
        "patch_size": patch_size,
        "embed_dim": embed_dim,
        "depth": depth,
        "num_heads": num_heads,
        "mlp_dim": mlp_dim,
        "img_size": 224,
    }


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


def _contradictions(values: Mapping[str, Any]) -> list[str]:
    """Return in words which allowed values do not go together."""
    width, heads = values["embed_dim"], values["num_heads"]
    size, patch, stride = (values[key] for key in ("img_size", "patch_size", "patch_stride"))
    has_parts = values["head"] == "parts"
    reader = "part selection" if has_parts else f"pool {values['pool']}"
    needs_class_token = has_parts or "token" in POOL_READS[values["pool"]]
    problems = {
        f"embed_dim {width} is not a multiple of num_heads {heads}": width % heads,
        f"patch_stride {stride} is over patch_size {patch}": stride > patch,
        f"img_size {size} is under patch_size {patch}": size < patch,
        f"img_size {size} is not a multiple of patch_size {patch}": stride == patch
        and size % patch,
        "part selection needs at least 2 blocks": has_parts and values["depth"] < 2,
        f"{reader} needs a class token": needs_class_token and not values["class_token"],
    }
    return [problem for problem, is_there in problems.items() if is_there]


def complete_config(fields: Mapping[str, Any]) -> ConfigDict:
    """Return a locked config with `fields`, and a plain ViT's values for the fields left out.

    This is the one check of a model config, also of one that a checkpoint holds.

    Raises:
        ModelConfigError: a size is missing, a field is unknown, a value has a wrong type or is out
            of range, or two values contradict each other.
    """
    defaults = {key: field.default for key, field in _FIELDS.items()}
    values = {key: value for key, value in defaults.items() if value is not _REQUIRED}
    values.update(fields)
    problems = [f"{key} is missing" for key in _FIELDS if key not in values]
    problems += [
        f"{key:.40} is unknown" if isinstance(key, str) else "a field's name is not text"
        for key in values
        if key not in _FIELDS
    ]
    problems += [
        f"{key} is not {field.describe()}"
        for key, field in _FIELDS.items()
        if key in values and not field.allows(values[key])
    ]
    if not problems:
        if values["patch_stride"] is None:
            values["patch_stride"] = values["patch_size"]
        problems = _contradictions(values)
    if problems:
        raise ModelConfigError(f"model config: {', '.join(problems)}")
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
        ModelConfigError: the model type is not registered, or the config is not one of a model.
    """
    if model_type not in _SIZES:
        raise ModelConfigError(f"unknown model type {model_type!r}; known: {', '.join(_SIZES)}")
    size = {} if img_size is None else {"img_size": img_size}
    return complete_config({**_SIZES[model_type], **size, **fields})


def types_of_size(sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Return the model types that have these values of `SIZE_FIELDS`."""
    return tuple(
        name for name, known in _SIZES.items() if all(known[k] == v for k, v in sizes.items())
    )


def feature_kinds(config: ConfigDict) -> tuple[str, ...]:
    """Return the kinds of `POOL_READS` that a model without its head offers, in order."""
    if config.head == "parts":
        return ("parts",)
    if config.pool == "avg":
        return ("avg",)
    if "map" in POOL_READS[config.pool]:
        return ("map", "mean")
    return ("token", "mean") if config.class_token else ("mean",)


def grid_side(config: ConfigDict) -> int:
    """Return the number of patches along one side of the image; a rest at the edge is not used."""
    return (config.img_size - config.patch_size) // config.patch_stride + 1


def num_prefix_tokens(config: ConfigDict) -> int:
    """Return the number of tokens before the patches: class token and registers."""
    return int(config.class_token) + config.num_registers


def num_tokens(config: ConfigDict) -> int:
    """Return N, the number of tokens of one image: patches, class token and registers."""
    return grid_side(config) ** 2 + num_prefix_tokens(config)
