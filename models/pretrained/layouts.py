"""What the zoos call their tensors, and what they are called here (timm's names).

A layout is recognised by the names in the file. Names in the file, not in memory: Hugging Face
renames on loading. D width, H heads.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from models.pretrained.formats import WeightsError

_LEAF = r"(?P<leaf>weight|bias)"
_I = r"(?P<i>\d+)"


class Layout(NamedTuple):
    """One zoo's naming."""

    name: str
    marker: str  # regex of a name that this layout alone has
    # Regex of a whole name, and ours: {i} the block, {leaf} weight or bias. A number after "|" says
    # which third of our stacked tensor it is (query, key, value).
    names: tuple[tuple[str, str], ...]
    blocks: str  # regex of the start of a name in a block: an unknown one there is no ViT of ours
    # Name in the file and tensor, to the tensor in torch's arrangement.
    convert: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor


def _in_blocks(block: str, table: Mapping[str, str], ours: str = "blocks.{i}") -> tuple:
    """Rows of `Layout.names` for the parts of a block, theirs to ours."""
    return tuple((f"{block}{theirs}", f"{ours}.{part}") for theirs, part in table.items())


def _from_google(name: str, tensor: Tensor) -> Tensor:
    """Flax's kernels to torch's: inputs last, heads merged, convolutions HWIO to OIHW."""
    if name.endswith("kernel") and tensor.ndim > 1:
        if tensor.ndim == 4:
            return tensor.permute(3, 2, 0, 1)
        is_output = name.endswith("out/kernel")  # (H, D/H, D), the others (D, H, D/H)
        return (tensor.flatten(0, -2) if is_output else tensor.flatten(1)).T
    if name.endswith(("query/bias", "key/bias", "value/bias")):
        return tensor.flatten()
    return tensor


_GOOGLE_BLOCK = rf"Transformer/encoderblock_{_I}/"
_GOOGLE_MHA = "MultiHeadDotProductAttention_1"
_QKV = ("query", "key", "value")


def _google_names() -> tuple[tuple[str, str], ...]:
    leaves = {"kernel": "weight", "scale": "weight", "bias": "bias"}
    modules = {
        "LayerNorm_0": "norm1",
        "LayerNorm_2": "norm2",
        "MlpBlock_3/Dense_0": "mlp.fc1",
        "MlpBlock_3/Dense_1": "mlp.fc2",
        f"{_GOOGLE_MHA}/out": "attn.proj",
    }
    rows = [
        (f"{_GOOGLE_BLOCK}{theirs}/{leaf}", f"blocks.{{i}}.{ours}.{our_leaf}")
        for theirs, ours in modules.items()
        for leaf, our_leaf in leaves.items()
    ]
    rows += [
        (f"{_GOOGLE_BLOCK}{_GOOGLE_MHA}/{which}/{leaf}", f"blocks.{{i}}.attn.qkv.{our_leaf}|{n}")
        for n, which in enumerate(_QKV)
        for leaf, our_leaf in leaves.items()
    ]
    rows += [
        (f"{theirs}/{leaf}", f"{ours}.{our_leaf}")
        for theirs, ours in {
            "embedding": "patch_embed.proj",
            "Transformer/encoder_norm": "norm",
            "head": "head",
        }.items()
        for leaf, our_leaf in leaves.items()
    ]
    rows += [("cls", "cls_token"), ("Transformer/posembed_input/pos_embedding", "pos_embed")]
    return tuple((f"(?:opt/target/)?{theirs}", ours) for theirs, ours in rows)


_GOOGLE = Layout(
    name="google",
    marker=r"(opt/target/)?Transformer/encoderblock_\d+/.*",
    names=_google_names(),
    blocks=r"(opt/target/)?Transformer/encoderblock",
    convert=_from_google,
)

_OURS_IN_BLOCK = {
    rf"(?P<part>norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.{_LEAF}": "{part}.{leaf}",
    r"(?P<scale>ls[12])\.gamma": "{scale}.gamma",
}
_TIMM = Layout(
    name="timm",
    marker=r"blocks\.0\.attn\.qkv\.weight",
    names=(
        *_in_blocks(rf"blocks\.{_I}\.", _OURS_IN_BLOCK),
        *_in_blocks(r"part_block\.", _OURS_IN_BLOCK, "part_block"),
        (r"(?P<token>cls_token|pos_embed|reg_token)", "{token}"),
        ("register_tokens", "reg_token"),  # facebookresearch/dinov2
        (
            rf"(?P<part>patch_embed\.proj|norm_pre|norm|fc_norm|part_norm|head)\.{_LEAF}",
            "{part}.{leaf}",
        ),
        (r"attn_pool\.latent", "attn_pool.latent"),
        (
            rf"attn_pool\.(?P<part>q|kv|proj|norm|mlp\.fc1|mlp\.fc2)\.{_LEAF}",
            "attn_pool.{part}.{leaf}",
        ),
    ),
    blocks=r"blocks\.|part_block\.|attn_pool\.",
)

_JEONSWORLD_IN_BLOCK = {
    rf"attention_norm\.{_LEAF}": "norm1.{leaf}",
    rf"ffn_norm\.{_LEAF}": "norm2.{leaf}",
    rf"ffn\.(?P<fc>fc[12])\.{_LEAF}": "mlp.{fc}.{leaf}",
    rf"attn\.out\.{_LEAF}": "attn.proj.{leaf}",
    **{rf"attn\.{which}\.{_LEAF}": f"attn.qkv.{{leaf}}|{n}" for n, which in enumerate(_QKV)},
}
_JEONSWORLD_NAMES = (
    *_in_blocks(rf"transformer\.encoder\.layer\.{_I}\.", _JEONSWORLD_IN_BLOCK),
    (rf"transformer\.embeddings\.patch_embeddings\.{_LEAF}", "patch_embed.proj.{leaf}"),
    (r"transformer\.embeddings\.cls_token", "cls_token"),
    (r"transformer\.embeddings\.position_embeddings", "pos_embed"),
)
_TRANSFG = Layout(
    name="transfg",
    marker=r"transformer\.encoder\.part_layer\..*",
    names=(
        *_JEONSWORLD_NAMES,
        *_in_blocks(r"transformer\.encoder\.part_layer\.", _JEONSWORLD_IN_BLOCK, "part_block"),
        (rf"transformer\.encoder\.part_norm\.{_LEAF}", "part_norm.{leaf}"),
        (rf"part_head\.{_LEAF}", "head.{leaf}"),
    ),
    blocks=r"transformer\.encoder\.(layer|part_layer)\.",
)
_JEONSWORLD = Layout(
    name="jeonsworld",
    marker=r"transformer\.encoder\.layer\.\d+\.attention_norm\.weight",
    names=(
        *_JEONSWORLD_NAMES,
        (rf"transformer\.encoder\.encoder_norm\.{_LEAF}", "norm.{leaf}"),
        (rf"head\.{_LEAF}", "head.{leaf}"),
    ),
    blocks=r"transformer\.encoder\.layer\.",
)

_HF = r"(?:vit\.|dinov2\.|dinov2_with_registers\.)?"
_HF_BLOCK = rf"{_HF}encoder\.layer\.{_I}\."
_HF_NAMES = (
    (rf"{_HF}embeddings\.cls_token", "cls_token"),
    (rf"{_HF}embeddings\.position_embeddings", "pos_embed"),
    (rf"{_HF}embeddings\.register_tokens", "reg_token"),
    (rf"{_HF}embeddings\.patch_embeddings\.projection\.{_LEAF}", "patch_embed.proj.{leaf}"),
    (rf"{_HF}layernorm\.{_LEAF}", "norm.{leaf}"),
    (rf"classifier\.{_LEAF}", "head.{leaf}"),
)
_HF_ATTENTION = {
    **{
        rf"attention\.attention\.{which}\.{_LEAF}": f"attn.qkv.{{leaf}}|{n}"
        for n, which in enumerate(_QKV)
    },
    rf"attention\.output\.dense\.{_LEAF}": "attn.proj.{leaf}",
}
_HF_VIT = Layout(
    name="hf-vit",
    marker=rf"{_HF}encoder\.layer\.\d+\.intermediate\.dense\.weight",
    names=(
        *_in_blocks(
            _HF_BLOCK,
            {
                **_HF_ATTENTION,
                rf"layernorm_before\.{_LEAF}": "norm1.{leaf}",
                rf"layernorm_after\.{_LEAF}": "norm2.{leaf}",
                rf"intermediate\.dense\.{_LEAF}": "mlp.fc1.{leaf}",
                rf"output\.dense\.{_LEAF}": "mlp.fc2.{leaf}",
            },
        ),
        *_HF_NAMES,
    ),
    blocks=rf"{_HF}encoder\.layer\.",
)
_HF_DINOV2 = Layout(
    name="hf-dinov2",
    marker=rf"{_HF}encoder\.layer\.\d+\.layer_scale1\.lambda1",
    names=(
        *_in_blocks(
            _HF_BLOCK,
            {
                **_HF_ATTENTION,
                rf"(?P<part>norm[12]|mlp\.fc[12])\.{_LEAF}": "{part}.{leaf}",
                r"layer_scale(?P<n>[12])\.lambda1": "ls{n}.gamma",
            },
        ),
        *_HF_NAMES,
    ),
    blocks=rf"{_HF}encoder\.layer\.",
)

_TORCHVISION = Layout(
    name="torchvision",
    marker=r"encoder\.layers\.encoder_layer_\d+\.self_attention\.in_proj_weight",
    names=(
        *_in_blocks(
            rf"encoder\.layers\.encoder_layer_{_I}\.",
            {
                rf"ln_(?P<n>[12])\.{_LEAF}": "norm{n}.{leaf}",
                rf"self_attention\.in_proj_{_LEAF}": "attn.qkv.{leaf}",
                rf"self_attention\.out_proj\.{_LEAF}": "attn.proj.{leaf}",
                rf"mlp\.(?:0|linear_1)\.{_LEAF}": "mlp.fc1.{leaf}",
                rf"mlp\.(?:3|linear_2)\.{_LEAF}": "mlp.fc2.{leaf}",
            },
        ),
        ("class_token", "cls_token"),
        (r"encoder\.pos_embedding", "pos_embed"),
        (rf"conv_proj\.{_LEAF}", "patch_embed.proj.{leaf}"),
        (rf"encoder\.ln\.{_LEAF}", "norm.{leaf}"),
        (rf"heads\.head\.{_LEAF}", "head.{leaf}"),
    ),
    blocks=r"encoder\.layers\.",
)

# The first whose marker is among the names: TransFG's names are jeonsworld's and more.
LAYOUTS = (_GOOGLE, _TIMM, _TRANSFG, _JEONSWORLD, _HF_VIT, _HF_DINOV2, _TORCHVISION)


class Named(NamedTuple):
    """The tensors of a file under our names."""

    layout: str
    tensors: dict[str, Tensor]  # shapes as in our models, types as in the file
    unused: tuple[str, ...]  # names in the file that have no place in our models
    num_heads: int | None  # where the layout says it


def _our_name(layout: Layout, name: str) -> str | None:
    for pattern, ours in layout.names:
        match = re.fullmatch(pattern, name)
        if match:
            return ours.format(**match.groupdict())
    return None


def _recognise(names: Mapping[str, Tensor]) -> Layout:
    for layout in LAYOUTS:
        if any(re.fullmatch(layout.marker, name) for name in names):
            return layout
    known = ", ".join(layout.name for layout in LAYOUTS)
    some = ", ".join(sorted(names)[:3])
    raise WeightsError(f"its layout is none of {known}; it holds {some}, ...")


def to_our_names(tensors: Mapping[str, Tensor]) -> Named:
    """Recognise the layout and rename; separate query, key and value are stacked.

    Raises:
        WeightsError: an unknown layout, a distilled DeiT, an unknown part of a block, or tensors
            that do not stack.
    """
    layout = _recognise(tensors)
    if any(name.endswith(("dist_token", "distillation_token")) for name in tensors):
        raise WeightsError("it is a distilled DeiT, with two class tokens; use one without")
    ours: dict[str, Tensor] = {}
    thirds: dict[str, dict[int, Tensor]] = {}
    unused, strange = [], []
    for name, tensor in tensors.items():
        key = _our_name(layout, name)
        if key is None:
            (strange if re.match(layout.blocks, name) else unused).append(name)
            continue
        converted = layout.convert(name, tensor)
        key, _, third = key.partition("|")
        if third:
            thirds.setdefault(key, {})[int(third)] = converted
        else:
            ours[key] = converted
    if strange:
        raise WeightsError(f"{', '.join(sorted(strange)[:3])}: no part of a {layout.name} ViT")
    for key, parts in thirds.items():
        shapes = {tuple(part.shape) for part in parts.values()}
        # Else the key is missing, and said to be.
        if len(parts) == 3 and len(shapes) == 1 and () not in shapes:
            ours[key] = torch.cat([parts[n] for n in range(3)])
    # Flax alone keeps the heads apart: (H, D/H).
    biases = [t for name, t in tensors.items() if name.endswith(f"{_GOOGLE_MHA}/query/bias")]
    num_heads = biases[0].shape[0] if biases and biases[0].ndim == 2 else None
    return Named(layout.name, ours, tuple(sorted(unused)), num_heads)
