"""What the zoos call their tensors, and what becomes of each."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.pretrained.choice import Named, to_our_names
from models.pretrained.formats import WeightsError
from models.pretrained.layouts import LAYOUTS

SETTINGS = settings(max_examples=50)

# A name that only this layout has, and others of it with ours. "|" and a number: that third.
GOOGLE = "Transformer/encoderblock_11"
JEONSWORLD = "transformer.encoder.layer.11"
HF = "encoder.layer.11"
TORCHVISION = "encoder.layers.encoder_layer_11"
# That every name of a layout is known is proven with files of the libraries in test_parity.py.
EXAMPLES = {
    "open-clip": (
        "visual.ln_pre.weight",
        {
            "visual.conv1.weight": "patch_embed.proj.weight",
            "visual.transformer.resblocks.11.attn.in_proj_bias": "blocks.11.attn.qkv.bias",
            "visual.transformer.resblocks.11.mlp.c_proj.weight": "blocks.11.mlp.fc2.weight",
        },
    ),
    "google": (
        "Transformer/encoderblock_0/LayerNorm_0/scale",
        {
            "Transformer/encoder_norm/scale": "norm.weight",
            f"{GOOGLE}/MlpBlock_3/Dense_1/bias": "blocks.11.mlp.fc2.bias",
        },
    ),
    "timm": (
        "blocks.0.attn.qkv.weight",
        {
            "blocks.11.attn.qkv.bias": "blocks.11.attn.qkv.bias",
            "part_block.ls2.gamma": "part_block.ls2.gamma",
            "part_norm.weight": "part_norm.weight",
            "register_tokens": "reg_token",
        },
    ),
    "jeonsworld": (
        "transformer.encoder.layer.0.attention_norm.weight",
        {
            "transformer.embeddings.cls_token": "cls_token",
            f"{JEONSWORLD}.ffn.fc1.bias": "blocks.11.mlp.fc1.bias",
        },
    ),
    "transfg": (
        "transformer.encoder.part_layer.attention_norm.weight",
        {
            "transformer.encoder.part_layer.ffn.fc2.weight": "part_block.mlp.fc2.weight",
            f"{JEONSWORLD}.ffn_norm.weight": "blocks.11.norm2.weight",
        },
    ),
    "hf-vit": (
        "vit.encoder.layer.0.intermediate.dense.weight",
        {
            "embeddings.position_embeddings": "pos_embed",
            f"vit.{HF}.layernorm_after.bias": "blocks.11.norm2.bias",
            f"{HF}.attention.output.dense.weight": "blocks.11.attn.proj.weight",
        },
    ),
    "hf-dinov2": (
        "encoder.layer.0.layer_scale1.lambda1",
        {
            "dinov2_with_registers.embeddings.register_tokens": "reg_token",
            f"dinov2.{HF}.norm1.weight": "blocks.11.norm1.weight",
        },
    ),
    "hf-vit-5": (
        "layers.0.layernorm_before.weight",
        {
            "vit.embeddings.position_embeddings": "pos_embed",
            "vit.layers.11.mlp.fc1.bias": "blocks.11.mlp.fc1.bias",
            "layers.11.attention.o_proj.weight": "blocks.11.attn.proj.weight",
        },
    ),
    "hf-dinov2-5": (
        "encoder.layer.0.attention.o_proj.weight",
        {
            "embeddings.register_tokens": "reg_token",
            f"dinov2.{HF}.layer_scale2.lambda1": "blocks.11.ls2.gamma",
        },
    ),
    "torchvision": (
        "encoder.layers.encoder_layer_0.self_attention.in_proj_weight",
        {
            "encoder.ln.bias": "norm.bias",
            f"{TORCHVISION}.mlp.linear_2.bias": "blocks.11.mlp.fc2.bias",
        },
    ),
}
every_layout = pytest.mark.parametrize("layout", EXAMPLES)


def named(layout: str, tensors: dict[str, Tensor]) -> Named:
    """`tensors` under our names, in a file that is of `layout` by one more tensor."""
    return to_our_names({EXAMPLES[layout][0]: torch.zeros(1), **tensors})


def test_every_layout_has_examples():
    assert {layout.name for layout in LAYOUTS} == set(EXAMPLES)


@every_layout
def test_a_layout_is_known_by_one_name(layout):
    marker, _ = EXAMPLES[layout]
    result = to_our_names({"something": torch.zeros(1), marker: torch.zeros(1)})
    assert result.layout == layout
    assert len(result.tensors) == 1
    assert result.unused == ("something",)


@pytest.mark.parametrize(
    ("layout", "theirs", "ours"),
    [(layout, *pair) for layout, (_, names) in EXAMPLES.items() for pair in names.items()],
)
def test_a_name_becomes_ours(layout, theirs, ours):
    value = torch.arange(3.0)
    result = named(layout, {theirs: value})
    assert result.layout == layout
    assert torch.equal(result.tensors[ours], value)
    assert result.unused == ()
    if layout == "google":  # as flax saves it with an optimizer
        marker = EXAMPLES[layout][0]
        result = to_our_names({f"opt/target/{name}": value for name in (marker, theirs)})
        assert torch.equal(result.tensors[ours], value)


@every_layout
def test_what_is_in_no_block_and_unknown_is_unused(layout):
    extra = ("zebra", "pre_logits.fc.weight", "mask_token", "position_ids", "decoder.0.weight")
    result = named(layout, {key: torch.zeros(1) for key in extra})
    assert result.unused == tuple(sorted(extra))


@pytest.mark.parametrize(
    "names",
    [
        ["conv1.weight", "layer1.0.conv1.weight", "fc.bias"],
        ["encoder.weight", "blocks.1.attn.qkv.weight", "blocks.0.attn.qkv.weights"],
        ["text_model.embeddings.position_embedding.weight"],
    ],
)
def test_an_unknown_layout_names_the_known_and_some_of_its_names(names):
    known = ", ".join(layout.name for layout in LAYOUTS)
    held = ", ".join(sorted(names)[:3])
    message = rf"^its layout is none of {known}; it holds {held}, \.\.\.$"
    with pytest.raises(WeightsError, match=message):
        to_our_names({name: torch.zeros(1) for name in names})


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("google", f"{GOOGLE}/MultiHeadDotProductAttention_1/gate/kernel"),
        ("timm", "blocks.0.attn.q_norm.weight"),  # query and key normalised
        ("timm", "blocks.0.gamma_1"),  # the first DeiT III files
        ("timm", "blocks.0.mlp.w12.weight"),  # SwiGLU of DINOv2 giant
        ("timm", "blocks.0.attn.relative_position_bias_table"),  # BEiT
        ("timm", "part_block.attn.q_norm.weight"),
        ("timm", "attn_pool.q_norm.weight"),
        ("jeonsworld", f"{JEONSWORLD}.attn.scale"),
        ("transfg", "transformer.encoder.part_layer.gate.weight"),
        ("hf-vit", f"vit.{HF}.attention.attention.relative_position_bias.table"),
        ("hf-dinov2", f"{HF}.mlp.weights_in.weight"),  # SwiGLU
        ("torchvision", f"{TORCHVISION}.self_attention.bias_k"),
        ("open-clip", "visual.transformer.resblocks.0.attn.ln_q.weight"),
        ("open-clip", "visual.attn_pool.query"),  # CoCa
    ],
)
def test_an_unknown_part_of_a_block_is_refused(layout, name):
    message = f"^{name}: not part of a {layout} ViT$"
    with pytest.raises(WeightsError, match=message):
        named(layout, {name: torch.zeros(1)})


def test_three_unknown_parts_are_named_and_no_more():
    message = r"^blocks\.0\.gamma_1, blocks\.1\.gamma_1, blocks\.2\.gamma_1: not part of a timm"
    with pytest.raises(WeightsError, match=message):
        named("timm", {f"blocks.{i}.gamma_1": torch.zeros(1) for i in (4, 3, 2, 1, 0)})


@pytest.mark.parametrize(
    ("layout", "name"), [("timm", "dist_token"), ("hf-vit", "embeddings.distillation_token")]
)
def test_a_distilled_deit_is_refused(layout, name):
    message = "^it is a distilled DeiT, with two class tokens; use one without$"
    with pytest.raises(WeightsError, match=message):
        named(layout, {name: torch.zeros(1)})


# --- Query, key and value -------------------------------------------------------------------------

# Where a layout has them apart, with our name of the three stacked.
APART = {
    "google": (f"{GOOGLE}/MultiHeadDotProductAttention_1/{{}}/bias", "blocks.11.attn.qkv.bias"),
    "jeonsworld": (f"{JEONSWORLD}.attn.{{}}.weight", "blocks.11.attn.qkv.weight"),
    "transfg": ("transformer.encoder.part_layer.attn.{}.bias", "part_block.attn.qkv.bias"),
    "hf-vit": (f"vit.{HF}.attention.attention.{{}}.weight", "blocks.11.attn.qkv.weight"),
    "hf-dinov2": (f"{HF}.attention.attention.{{}}.bias", "blocks.11.attn.qkv.bias"),
}
QKV = ("query", "key", "value")


def thirds(layout: str) -> dict[str, Tensor]:
    theirs, _ = APART[layout]
    shape = (2, 2) if theirs.endswith("weight") or layout == "google" else (4,)
    return {theirs.format(which): torch.full(shape, i) for i, which in enumerate(QKV)}


@given(layout=st.sampled_from(sorted(APART)), data=st.data())
@SETTINGS
def test_they_are_stacked_in_this_order_whatever_the_file_s(layout, data):
    separate = thirds(layout)
    shuffled = data.draw(st.permutations(sorted(separate)))
    result = named(layout, {key: separate[key] for key in shuffled})
    stacked = result.tensors[APART[layout][1]]
    expected = [value.flatten() if layout == "google" else value for value in separate.values()]
    assert torch.equal(stacked, torch.cat(expected))
    assert result.unused == ()


@pytest.mark.parametrize("odd", [None, torch.zeros(3, 2), torch.zeros(()), torch.zeros(2, 2, 2)])
@pytest.mark.parametrize("layout", APART)
def test_without_one_of_them_or_of_different_shapes_they_make_no_stack(layout, odd):
    theirs, ours = APART[layout]
    for which in QKV:
        separate = {**thirds(layout), theirs.format(which): odd}
        present = {name: value for name, value in separate.items() if value is not None}
        assert ours not in named(layout, present).tensors


def test_single_numbers_make_no_stack():
    separate = {key: torch.tensor(1.0) for key in thirds("jeonsworld")}
    assert named("jeonsworld", separate).tensors.keys() == {"blocks.0.norm1.weight"}


# --- Flax's arrangement ---------------------------------------------------------------------------


def test_a_convolution_and_a_dense_layer_of_flax():
    kernel = torch.arange(2 * 2 * 3 * 5.0).view(2, 2, 3, 5)  # height, width, in, out
    dense = torch.arange(6.0).view(2, 3)  # in, out
    weights = named("google", {"embedding/kernel": kernel, "head/kernel": dense}).tensors
    assert torch.equal(weights["patch_embed.proj.weight"], kernel.permute(3, 2, 0, 1))
    assert torch.equal(weights["head.weight"], dense.T)


def test_the_heads_of_flax_are_merged_and_counted():
    width, heads = 6, 3
    generator = torch.Generator().manual_seed(0)
    attention = f"{GOOGLE}/MultiHeadDotProductAttention_1"
    kernels = [torch.randn(width, heads, 2, generator=generator) for _ in QKV]
    biases = [torch.randn(heads, 2, generator=generator) for _ in QKV]
    out = torch.randn(heads, 2, width, generator=generator)
    result = named(
        "google",
        {f"{attention}/{which}/kernel": k for which, k in zip(QKV, kernels, strict=True)}
        | {f"{attention}/{which}/bias": b for which, b in zip(QKV, biases, strict=True)}
        | {f"{attention}/out/kernel": out},
    )
    assert result.num_heads == heads
    x = torch.randn(4, width, generator=generator)
    weight, bias = (result.tensors[f"blocks.11.attn.qkv.{leaf}"] for leaf in ("weight", "bias"))
    projected = (x @ weight.T + bias).view(4, 3, heads, 2)  # query, key, value by heads
    expected = [torch.einsum("nd,dhe->nhe", x, k) + b for k, b in zip(kernels, biases, strict=True)]
    torch.testing.assert_close(projected, torch.stack(expected, dim=1))
    attended = torch.randn(4, heads, 2, generator=generator)
    torch.testing.assert_close(
        attended.flatten(1) @ result.tensors["blocks.11.attn.proj.weight"].T,
        torch.einsum("nhe,hed->nd", attended, out),
    )


def test_no_other_layout_and_no_flat_bias_says_how_many_heads():
    assert all(named(layout, {}).num_heads is None for layout in EXAMPLES)
    name = f"{GOOGLE}/MultiHeadDotProductAttention_1/query/bias"
    assert named("google", {name: torch.zeros(6)}).num_heads is None


# --- Whatever a file holds ------------------------------------------------------------------------

ANY_SHAPE = st.lists(st.integers(0, 3), max_size=5).map(tuple)


@st.composite
def files(draw) -> dict[str, Tensor]:
    """Some names of one layout, with tensors of any shapes."""
    layout = draw(st.sampled_from(sorted(EXAMPLES)))
    marker, names = EXAMPLES[layout]
    names = [*names, *(thirds(layout) if layout in APART else ()), "zebra"]
    chosen = [marker, *draw(st.lists(st.sampled_from(names), unique=True))]
    return {name: torch.zeros(draw(ANY_SHAPE)) for name in chosen}


@given(tensors=files())
@settings(SETTINGS, max_examples=100)
def test_tensors_of_any_shape_are_renamed(tensors):
    result = to_our_names(tensors)
    assert len(result.tensors) + len(result.unused) <= len(tensors)
    assert "zebra" not in tensors or "zebra" in result.unused
    total = sum(tensor.numel() for tensor in result.tensors.values())
    assert total <= sum(tensor.numel() for tensor in tensors.values())
