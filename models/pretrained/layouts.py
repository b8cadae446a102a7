"""Rename the tensors of other libraries' weight files to the names that our models have (timm's).

A layout is recognised by the names in the file. They are not always those in memory: Hugging Face
renames on loading. Shapes: D width, H heads.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from models.pretrained.formats import WeightsError
from models.pretrained.profiles import GOOGLE, IMAGENET, Profile


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


def _apart(names: str, ours: str = "attn.qkv.") -> dict[str, str]:
    """Map the modules of query, key and value to the thirds of our stacked module."""
    return {names.format(which): f"{ours}|{n}" for n, which in enumerate(("query", "key", "value"))}


class Layout(NamedTuple):
    """The names that one library gives to its tensors."""

    name: str
    marker: str  # regex of a whole name, without prefix, that this layout alone has
    block: str  # regex of the start of a name in a block; its group is the number of the block
    # What is in a block, theirs to ours: modules end with the separator, tensors do not; "|" and a
    # number say which third of ours it is.
    in_block: Mapping[str, str]
    outside: Mapping[str, str]  # the same outside of the blocks
    strict: tuple[str, ...]  # starts of names: an unknown name that starts so is not of our ViTs
    profile: Profile  # what is assumed if no file beside the weights says it
    prefix: str = ""  # regex of what may stand before every name
    separator: str = "."  # between module and leaf
    leaves: Mapping[str, str] = _same("weight", "bias")
    # Name in the file and tensor, to the tensor in torch's arrangement.
    convert: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor

    def without_prefix(self, name: str) -> str:
        """Return `name` without what may stand before it."""
        return re.sub(f"^(?:{self.prefix})", "", name)

    def our_name(self, name: str) -> str | None:
        """Return our name of the tensor `name`, without prefix; None if our models lack it."""
        start, table = "", self.outside
        if block := re.match(self.block, name):
            number, table = block[1], self.in_block
            start = "part_block." if number is None else f"blocks.{number}."
            name = name.removeprefix(block[0])
        if name in table:
            return start + table[name]
        leaf = name.rpartition(self.separator)[2]
        module = name.removesuffix(leaf)
        if module not in table or leaf not in self.leaves:
            return None
        ours, bar, third = table[module].partition("|")
        return f"{start}{ours}{self.leaves[leaf]}{bar}{third}"


def _from_google(name: str, tensor: Tensor) -> Tensor:
    """Rearrange flax's kernels: inputs last, heads merged, convolutions HWIO to OIHW."""
    if name.endswith("kernel") and tensor.ndim > 1:
        if tensor.ndim == 4:
            return tensor.permute(3, 2, 0, 1)
        is_output = name.endswith("out/kernel")  # (H, D/H, D), the others (D, H, D/H)
        return (tensor.flatten(0, -2) if is_output else tensor.flatten(1)).T
    if name.endswith(("query/bias", "key/bias", "value/bias")):
        return tensor.flatten()
    return tensor


_GOOGLE_ATTENTION = "MultiHeadDotProductAttention_1"
_GOOGLE = Layout(
    name="google",
    marker=r"Transformer/encoderblock_\d+/.*",
    block=r"Transformer/encoderblock_(\d+)/",
    in_block={
        "LayerNorm_0/": "norm1.",
        "LayerNorm_2/": "norm2.",
        "MlpBlock_3/Dense_0/": "mlp.fc1.",
        "MlpBlock_3/Dense_1/": "mlp.fc2.",
        f"{_GOOGLE_ATTENTION}/out/": "attn.proj.",
        **_apart(f"{_GOOGLE_ATTENTION}/{{}}/"),
    },
    outside={
        "cls": "cls_token",
        "Transformer/posembed_input/pos_embedding": "pos_embed",
        "embedding/": "patch_embed.proj.",
        "Transformer/encoder_norm/": "norm.",
        "head/": "head.",
    },
    strict=("Transformer/encoderblock",),
    profile=GOOGLE,
    prefix="opt/target/",
    separator="/",
    leaves={"kernel": "weight", "scale": "weight", "bias": "bias"},
    convert=_from_google,
)

_POOL = ("q.", "kv.", "proj.", "norm.", "mlp.fc1.", "mlp.fc2.")
_TIMM = Layout(
    name="timm",
    marker=r"blocks\.0\.attn\.qkv\.weight",
    block=r"(?:part_block|blocks\.(\d+))\.",
    in_block=_same(
        *("norm1.", "norm2.", "attn.qkv.", "attn.proj.", "mlp.fc1.", "mlp.fc2."),
        *("ls1.gamma", "ls2.gamma"),
    ),
    outside={
        **_same("cls_token", "pos_embed", "reg_token", "attn_pool.latent"),
        **_same("patch_embed.proj.", "norm_pre.", "norm.", "fc_norm.", "part_norm.", "head."),
        **_same(*(f"attn_pool.{module}" for module in _POOL)),
        "register_tokens": "reg_token",  # facebookresearch/dinov2
    },
    strict=("blocks.", "part_block.", "attn_pool."),
    profile=IMAGENET,
)

_JEONSWORLD = Layout(
    name="jeonsworld",
    marker=r"transformer\.encoder\.layer\.\d+\.attention_norm\.weight",
    block=r"transformer\.encoder\.(?:part_layer|layer\.(\d+))\.",
    in_block={
        "attention_norm.": "norm1.",
        "ffn_norm.": "norm2.",
        "ffn.fc1.": "mlp.fc1.",
        "ffn.fc2.": "mlp.fc2.",
        "attn.out.": "attn.proj.",
        **_apart("attn.{}."),
    },
    outside={
        "transformer.embeddings.patch_embeddings.": "patch_embed.proj.",
        "transformer.embeddings.cls_token": "cls_token",
        "transformer.embeddings.position_embeddings": "pos_embed",
        "transformer.encoder.encoder_norm.": "norm.",
        "head.": "head.",
    },
    strict=("transformer.encoder.layer.",),
    profile=GOOGLE,
)
_TRANSFG = _JEONSWORLD._replace(
    name="transfg",
    marker=r"transformer\.encoder\.part_layer\..*",
    outside={
        **{k: v for k, v in _JEONSWORLD.outside.items() if v not in ("norm.", "head.")},
        "transformer.encoder.part_norm.": "part_norm.",
        "part_head.": "head.",
    },
    strict=("transformer.encoder.layer.", "transformer.encoder.part_layer."),
    profile=IMAGENET,
)

_HF_VIT = Layout(
    name="hf-vit",
    marker=r"encoder\.layer\.\d+\.intermediate\.dense\.weight",
    block=r"encoder\.layer\.(\d+)\.",
    in_block={
        "layernorm_before.": "norm1.",
        "layernorm_after.": "norm2.",
        "intermediate.dense.": "mlp.fc1.",
        "output.dense.": "mlp.fc2.",
        "attention.output.dense.": "attn.proj.",
        **_apart("attention.attention.{}."),
    },
    outside={
        "embeddings.cls_token": "cls_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.register_tokens": "reg_token",
        "embeddings.patch_embeddings.projection.": "patch_embed.proj.",
        "layernorm.": "norm.",
        "classifier.": "head.",
    },
    strict=("encoder.layer.",),
    profile=GOOGLE._replace(layer_norm_eps=1e-12),  # as ViTConfig and ViTImageProcessor
    prefix=r"vit\.|dinov2\.|dinov2_with_registers\.",
)
_HF_DINOV2 = _HF_VIT._replace(
    name="hf-dinov2",
    marker=r"encoder\.layer\.\d+\.layer_scale1\.lambda1",
    in_block={
        **_same("norm1.", "norm2.", "mlp.fc1.", "mlp.fc2."),
        "layer_scale1.lambda1": "ls1.gamma",
        "layer_scale2.lambda1": "ls2.gamma",
        "attention.output.dense.": "attn.proj.",
        **_apart("attention.attention.{}."),
    },
    profile=IMAGENET,
)

_TORCHVISION = Layout(
    name="torchvision",
    marker=r"encoder\.layers\.encoder_layer_\d+\.self_attention\.in_proj_weight",
    block=r"encoder\.layers\.encoder_layer_(\d+)\.",
    in_block={
        "ln_1.": "norm1.",
        "ln_2.": "norm2.",
        "self_attention.in_proj_weight": "attn.qkv.weight",
        "self_attention.in_proj_bias": "attn.qkv.bias",
        "self_attention.out_proj.": "attn.proj.",
        "mlp.0.": "mlp.fc1.",
        "mlp.3.": "mlp.fc2.",
        "mlp.linear_1.": "mlp.fc1.",  # before torchvision 0.13
        "mlp.linear_2.": "mlp.fc2.",
    },
    outside={
        "class_token": "cls_token",
        "encoder.pos_embedding": "pos_embed",
        "conv_proj.": "patch_embed.proj.",
        "encoder.ln.": "norm.",
        "heads.head.": "head.",
    },
    strict=("encoder.layers.",),
    profile=IMAGENET,
)

# The first whose marker is among the names counts: TransFG's names are jeonsworld's and more.
LAYOUTS = (_GOOGLE, _TIMM, _TRANSFG, _JEONSWORLD, _HF_VIT, _HF_DINOV2, _TORCHVISION)


class Named(NamedTuple):
    """The tensors of a file under our names."""

    layout: str
    profile: Profile  # usual for the layout
    tensors: dict[str, Tensor]  # shapes as in our models, types as in the file
    unused: tuple[str, ...]  # names in the file that have no place in our models
    num_heads: int | None  # None: the layout does not say it


def _recognise(names: Mapping[str, Tensor]) -> Layout:
    for layout in LAYOUTS:
        if any(re.fullmatch(layout.marker, layout.without_prefix(name)) for name in names):
            return layout
    known = ", ".join(layout.name for layout in LAYOUTS)
    some = ", ".join(sorted(names)[:3])
    raise WeightsError(f"its layout is none of {known}; it holds {some}, ...")


def to_our_names(tensors: Mapping[str, Tensor]) -> Named:
    """Recognise the layout and rename the tensors; separate query, key and value are stacked.

    Raises:
        WeightsError: an unknown layout, a distilled DeiT, or a tensor in a block that no ViT of
            ours has.
    """
    layout = _recognise(tensors)
    if any(name.endswith(("dist_token", "distillation_token")) for name in tensors):
        raise WeightsError("it is a distilled DeiT, with two class tokens; use one without")
    ours: dict[str, Tensor] = {}
    thirds: dict[str, dict[int, Tensor]] = {}
    unused, strange = [], []
    for name, tensor in tensors.items():
        bare = layout.without_prefix(name)
        key = layout.our_name(bare)
        if key is None:
            (strange if bare.startswith(layout.strict) else unused).append(name)
            continue
        key, _, third = key.partition("|")
        if third:
            thirds.setdefault(key, {})[int(third)] = layout.convert(name, tensor)
        else:
            ours[key] = layout.convert(name, tensor)
    if strange:
        raise WeightsError(f"{', '.join(sorted(strange)[:3])}: not part of a {layout.name} ViT")
    for key, parts in thirds.items():
        shapes = {tuple(part.shape) for part in parts.values()}
        # Where they do not stack, the key is missing, and loading says so.
        if len(parts) == 3 and len(shapes) == 1 and () not in shapes:
            ours[key] = torch.cat([parts[n] for n in range(3)])
    # Only flax keeps the heads apart: (H, D/H).
    biases = [t for name, t in tensors.items() if name.endswith(f"{_GOOGLE_ATTENTION}/query/bias")]
    num_heads = biases[0].shape[0] if biases and biases[0].ndim == 2 else None
    return Named(layout.name, layout.profile, ours, tuple(sorted(unused)), num_heads)
