"""Rename the tensors of other libraries' weight files to the names that our models have (timm's).

A layout is recognised by the names in the file. They are not always those in memory: Hugging Face
renames on loading. Shapes: D width, H heads.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from models.pretrained.profiles import CLIP, GOOGLE, IMAGENET, Profile


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


def _apart(names: str, ours: str = "attn.qkv.") -> dict[str, str]:
    """Map the modules of query, key and value to the thirds of our stacked module."""
    return {names.format(which): f"{ours}|{n}" for n, which in enumerate(("query", "key", "value"))}


# What wrappers (torch.compile, DataParallel, FSDP, activation checkpointing) put into names.
_WRAPPERS = "_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module"
_WRAPPED = rf"(?:(?:{_WRAPPERS})\.)*"
_NUMBER = r"\d{1,6}"  # of a block


class Layout(NamedTuple):
    """The names that one library gives to its tensors."""

    name: str
    marker: str  # regex of a whole name, without prefix, that this layout alone has
    block: str  # start of a name in a block, {} standing for the block's number
    # What is in a block, theirs to ours: modules end with the separator, tensors do not; "|" and a
    # number say which third of ours it is.
    in_block: Mapping[str, str]
    outside: Mapping[str, str]  # the same outside of the blocks
    strict: tuple[str, ...]  # starts of names: an unknown name that starts so is not of our ViTs
    profile: Profile  # what is assumed if no file beside the weights says it
    part_block: str = ""  # start of a name in TransFG's part block
    root: str = ""  # regex of the module that holds all but the head, if there is one
    separator: str = "."  # between module and leaf
    leaves: Mapping[str, str] = _same("weight", "bias")
    # Name in the file and tensor, to the tensor in torch's arrangement.
    convert: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor

    def marked(self) -> re.Pattern[str]:
        """Return the pattern of a name that marks this layout: after a prefix, and a root."""
        marker = self.marker.replace(r"\.", rf"\.{_WRAPPED}")
        root = rf"((?:(?:{self.root})\.{_WRAPPED})?)" if self.root else "()"
        return re.compile(rf"((?:.*?[./])??){root}(?:{marker})", re.DOTALL)

    def bare(self, name: str) -> str:
        """Return `name`, its prefix taken off, without wrappers and root."""
        name = re.sub(rf"(?<![^.])(?:{_WRAPPERS})\.", "", name)
        return re.sub(rf"^(?:{self.root})\.", "", name) if self.root else name

    def our_name(self, name: str) -> str | None:
        """Return our name of the tensor with the bare `name`; None if our models lack it."""
        start, table = "", self.outside
        number = re.match(re.escape(self.block).replace(r"\{\}", f"({_NUMBER})"), name)
        if number:
            start, table = f"blocks.{number[1]}.", self.in_block
            name = name.removeprefix(number[0])
        elif self.part_block and name.startswith(self.part_block):
            start, table = "part_block.", self.in_block
            name = name.removeprefix(self.part_block)
        if name in table:
            return start + table[name]
        leaf = name.rpartition(self.separator)[2]
        module = name.removesuffix(leaf)
        if module not in table or leaf not in self.leaves:
            return None
        ours, bar, third = table[module].partition("|")
        return f"{start}{ours}{self.leaves[leaf]}{bar}{third}"

    def their_names(self, ours: str) -> list[str]:
        """Return the bare names of the tensors that make our tensor `ours`; empty: it has none."""
        start, rest, table = "", ours, self.outside
        if number := re.match(r"blocks\.(\d+)\.", ours):
            start, rest, table = self.block.format(number[1]), ours[number.end() :], self.in_block
        elif self.part_block and ours.startswith("part_block."):
            start, rest = self.part_block, ours.removeprefix("part_block.")
            table = self.in_block
        names: dict[str, str] = {}  # by third; of several spellings the first
        for theirs, mine in table.items():
            module, _, third = mine.partition("|")
            if mine == rest:
                names.setdefault(third, start + theirs)
            leaves = [name for name, leaf in self.leaves.items() if rest == module + leaf]
            if leaves:  # flax has kernels, and scales in norms
                names.setdefault(third, start + theirs + leaves[-1 if "norm" in module else 0])
        return list(names.values())


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
    block="Transformer/encoderblock_{}/",
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
    separator="/",
    leaves={"kernel": "weight", "scale": "weight", "bias": "bias"},
    convert=_from_google,
)

_POOL = ("q.", "kv.", "proj.", "norm.", "mlp.fc1.", "mlp.fc2.")
_TIMM = Layout(
    name="timm",
    marker=r"blocks\.(?:\d+\.)?0\.attn\.qkv\.weight",
    block="blocks.{}.",
    part_block="part_block.",
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
    block="transformer.encoder.layer.{}.",
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
    part_block="transformer.encoder.part_layer.",
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
    block="encoder.layer.{}.",
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
    root="vit|deit|dinov2|dinov2_with_registers",
)
# Names in memory since transformers 5, whose `save_pretrained` writes the older ones.
_QKV_5 = {f"attention.{n}_proj.": f"attn.qkv.|{i}" for i, n in enumerate("qkv")}
_HF_VIT_5 = _HF_VIT._replace(
    name="hf-vit-5",
    marker=r"layers\.\d+\.layernorm_before\.weight",
    block="layers.{}.",
    in_block={
        "layernorm_before.": "norm1.",
        "layernorm_after.": "norm2.",
        **_same("mlp.fc1.", "mlp.fc2."),
        "attention.o_proj.": "attn.proj.",
        **_QKV_5,
    },
    strict=("layers.",),
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
_HF_DINOV2_5 = _HF_DINOV2._replace(
    name="hf-dinov2-5",
    marker=r"encoder\.layer\.\d+\.attention\.o_proj\.weight",
    in_block={
        **{k: v for k, v in _HF_DINOV2.in_block.items() if not k.startswith("attention.")},
        "attention.o_proj.": "attn.proj.",
        **_QKV_5,
    },
)

_TORCHVISION = Layout(
    name="torchvision",
    marker=r"encoder\.layers\.encoder_layer_\d+\.self_attention\.in_proj_weight",
    block="encoder.layers.encoder_layer_{}.",
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


def _from_open_clip(name: str, tensor: Tensor) -> Tensor:
    """Put the dimensions before tokens and positions that it leaves out."""
    if name in ("class_embedding", "positional_embedding"):
        return tensor.reshape(1, -1, tensor.shape[-1]) if tensor.ndim in (1, 2) else tensor
    return tensor


_OPEN_CLIP = Layout(  # the image tower; a text tower beside it is unused
    name="open-clip",
    marker=r"ln_pre\.weight",
    block="transformer.resblocks.{}.",
    in_block={
        "ln_1.": "norm1.",
        "ln_2.": "norm2.",
        "attn.in_proj_weight": "attn.qkv.weight",
        "attn.in_proj_bias": "attn.qkv.bias",
        "attn.out_proj.": "attn.proj.",
        "mlp.c_fc.": "mlp.fc1.",
        "mlp.c_proj.": "mlp.fc2.",
        "ls_1.gamma": "ls1.gamma",
        "ls_2.gamma": "ls2.gamma",
    },
    outside={
        "class_embedding": "cls_token",
        "positional_embedding": "pos_embed",
        "conv1.": "patch_embed.proj.",
        "ln_pre.": "norm_pre.",
        "ln_post.": "norm.",
    },
    strict=("transformer.resblocks.", "attn_pool."),  # CoCa pools by attention before the norm
    profile=CLIP,
    convert=_from_open_clip,
)

# The first whose marker is among the names counts: TransFG's names are jeonsworld's and more, and
# Hugging Face's DINOv2 in memory has layer scales too.
LAYOUTS = (
    *(_GOOGLE, _TIMM, _TRANSFG, _JEONSWORLD),
    *(_HF_VIT, _HF_VIT_5, _HF_DINOV2_5, _HF_DINOV2, _TORCHVISION, _OPEN_CLIP),
)
