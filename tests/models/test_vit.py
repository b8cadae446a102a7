"""The Vision Transformer: sizes, names, and numbers against references written here.

Shapes: B batch, N tokens, H heads, D width, C classes, G patches along a side.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from scipy.special import erf, softmax
from small_models import (
    SEEDS,
    Operators,
    kept_bytes,
    loss_and_gradients,
    random_images,
    random_model,
    small_config,
    small_configs,
)

from models.build import build_model
from models.configs import HEADS, get_config, grid_side, model_names, num_prefix_tokens, num_tokens
from models.losses import classification_loss
from models.vit import POOLS, VisionTransformer

# Formulas are compared in float64: in float32 a norm of nearly equal numbers blows up rounding.
SETTINGS = settings(max_examples=30, deadline=None)
EXACT = {"atol": 1e-9, "rtol": 1e-9}


# --- Sizes and names ------------------------------------------------------------------------------

# At 224 pixels and 1000 classes. From ViT-Ti on they are timm's, of the model with the same sizes.
PARAMETERS = {
    "testing": 227432,
    "ViT-Ti_16": 5717416,
    "ViT-S_14": 22004584,
    "ViT-S_16": 22050664,
    "ViT-S_32": 22878952,
    "ViT-B_14": 86475496,
    "ViT-B_16": 86567656,
    "ViT-B_32": 88224232,
    "ViT-L_14": 304203752,
    "ViT-L_16": 304326632,
    "ViT-L_32": 306535400,
    "ViT-H_14": 632045800,
}


def parameters_by_formula(config: ConfigDict, num_classes: int) -> int:
    d, m, patch = config.embed_dim, config.mlp_dim, config.patch_size
    positions = grid_side(config) ** 2 + (config.class_token and config.pos_class_token)
    embedding = 3 * patch**2 * d + (2 * d if config.pre_norm else d)  # a norm or a bias
    embedding += (config.class_token + config.num_registers + positions) * d
    attention = (d + 1) * 3 * d + (d + 1) * d
    mlp = (d + 1) * m + (m + 1) * d
    block = 2 * d + attention + 2 * d + mlp + (0 if config.layer_scale is None else 2 * d)
    pool = d + attention + 2 * d + mlp if config.pool == "map" else 0
    return embedding + config.depth * block + pool + 2 * d + (d + 1) * num_classes


def test_every_registered_model_is_counted():
    assert tuple(PARAMETERS) == model_names()


# The part model has the last block and the last norm of the plain one, in another place.
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameter_count(name, count, head):
    config = get_config(name, head=head)
    with torch.device("meta"):  # shapes without memory
        model = build_model(config, 1000)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert parameters_by_formula(config, 1000) == count


@given(config=small_configs(), classes=st.integers(1, 7))
@SETTINGS
def test_parameter_count_of_any_config(config, classes):
    model = build_model(config, classes)
    assert sum(p.numel() for p in model.parameters()) == parameters_by_formula(config, classes)


def test_overlapping_patches_cost_positions_alone():
    # 448 pixels, patch 16, stride 12: 37 x 37 patches instead of 28 x 28.
    apart, overlapping = (
        {name: tuple(value.shape) for name, value in model.state_dict().items()}
        for model in (build_model(small_config(img_size=448, patch_stride=s), 5) for s in (16, 12))
    )
    assert overlapping.pop("pos_embed") == (1, 1370, 64)
    assert apart.pop("pos_embed") == (1, 785, 64)
    assert overlapping == apart


def timm_names(depth: int, norm: str = "norm") -> list[str]:
    """State-dict keys of timm's `vit_base_patch16_224`, at any depth."""
    layers = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    modules = ["patch_embed.proj"]
    modules += [f"blocks.{i}.{layer}" for i in range(depth) for layer in layers]
    modules += [norm, "head"]
    parameters = [f"{module}.{kind}" for module in modules for kind in ("weight", "bias")]
    return ["cls_token", "pos_embed", *parameters]


@pytest.mark.parametrize("name", PARAMETERS)
def test_state_dict_keys_are_timm_s(name):
    config = get_config(name)
    with torch.device("meta"):
        state_dict = build_model(config, 1000).state_dict()
    assert sorted(state_dict) == sorted(timm_names(config.depth))


def test_shapes_of_vit_base_are_timm_s():
    with torch.device("meta"):
        state_dict = build_model(get_config("ViT-B_16"), 1000).state_dict()
    shapes = {
        "cls_token": (1, 1, 768),
        "pos_embed": (1, 197, 768),
        "patch_embed.proj.weight": (768, 3, 16, 16),
        "blocks.11.attn.qkv.weight": (2304, 768),
        "blocks.11.mlp.fc1.weight": (3072, 768),
        "blocks.11.mlp.fc2.weight": (768, 3072),
        "head.weight": (1000, 768),
    }
    assert {key: tuple(state_dict[key].shape) for key in shapes} == shapes


def test_averaging_renames_the_last_norm_as_timm_does():
    config = small_config(pool="avg")
    state_dict = build_model(config, 5).state_dict()
    assert sorted(state_dict) == sorted(timm_names(config.depth, norm="fc_norm"))


def new_names(**fields) -> tuple[set[str], set[str]]:
    """The parameters that fields of a config add to a plain model, and those that they remove."""
    plain, other = (
        dict(build_model(config, 5).named_parameters()).keys()
        for config in (small_config(), small_config(**fields))
    )
    return other - plain, plain - other


@pytest.mark.parametrize(
    ("fields", "added", "removed"),
    [
        ({"num_registers": 4}, {"reg_token"}, set()),
        (
            {"pre_norm": True},
            {"norm_pre.weight", "norm_pre.bias"},
            {"patch_embed.proj.bias"},
        ),
        (
            {"layer_scale": 1e-5},
            {f"blocks.{i}.ls{n}.gamma" for i in range(3) for n in (1, 2)},
            set(),
        ),
        (
            {"class_token": False, "pool": "avg"},
            {"fc_norm.weight", "fc_norm.bias"},
            {"cls_token", "norm.weight", "norm.bias"},
        ),
        (
            {
                "pos_class_token": False,
                "patch_stride": 12,
                "activation": "quick_gelu",
                "dropout": 0.1,
                "drop_path": 0.1,
                "layer_norm_eps": 1e-5,
            },
            set(),
            set(),
        ),
        (
            {"pool": "map"},
            {"attn_pool.latent"}
            | {
                f"attn_pool.{layer}.{kind}"
                for layer in ("q", "kv", "proj", "norm", "mlp.fc1", "mlp.fc2")
                for kind in ("weight", "bias")
            },
            set(),
        ),
    ],
)
def test_a_part_s_parameters_have_timm_s_names(fields, added, removed):
    assert new_names(**fields) == (added, removed)


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({}, {"cls_token", "pos_embed"}),
        ({"class_token": False, "pool": "avg"}, {"pos_embed"}),
        ({"num_registers": 2}, {"cls_token", "pos_embed", "reg_token"}),
        ({"pool": "map"}, {"cls_token", "pos_embed", "attn_pool.latent"}),
    ],
)
def test_names_without_weight_decay_are_parameters(fields, names):
    model = build_model(small_config(**fields), 5)
    assert model.no_weight_decay() == names
    assert model.no_weight_decay() <= dict(model.named_parameters()).keys()


def test_the_layer_of_every_parameter():
    fields = {"pool": "map", "num_registers": 2, "pre_norm": True, "layer_scale": 0.1}
    model = build_model(small_config(**fields, depth=11), 5)
    names = dict(model.named_parameters())
    for i in range(11):  # 10 is no block of 1
        block = {name for name in names if name.startswith(f"blocks.{i}.")}
        assert len(block) == 14
        assert {model.layer_of(name) for name in block} == {i + 1}
    first = {name for name in names if model.layer_of(name) == 0}
    assert first == {
        "patch_embed.proj.weight",
        "cls_token",
        "reg_token",
        "pos_embed",
        "norm_pre.weight",
        "norm_pre.bias",
    }
    last = {name for name in names if model.layer_of(name) == 12}
    assert {name.partition(".")[0] for name in last} == {"norm", "attn_pool", "head"}
    assert len(last) == len(names) - len(first) - 11 * 14


@pytest.mark.parametrize("pool", POOLS)
def test_the_backbone_is_all_but_the_head(pool):
    model = build_model(small_config(pool=pool), 5)
    rest = {name for name, _ in model.named_parameters() if not model.is_backbone(name)}
    assert rest == {"head.weight", "head.bias"}


# --- Numbers --------------------------------------------------------------------------------------


ACTIVATIONS = {
    "gelu": lambda x: x * (1 + erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
}


def by_numpy(model: VisionTransformer, config: ConfigDict, images: np.ndarray) -> np.ndarray:
    """Logits (B, C) in float64, from the state dict alone."""
    w = {key: value.double().numpy() for key, value in model.state_dict().items()}
    batch, patch, stride, grid = (
        len(images),
        config.patch_size,
        config.patch_stride,
        grid_side(config),
    )

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        deviation = np.sqrt(x.var(axis=-1, keepdims=True) + config.layer_norm_eps)
        x = (x - x.mean(axis=-1, keepdims=True)) / deviation
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def heads(x: np.ndarray) -> np.ndarray:
        return x.reshape(*x.shape[:2], config.num_heads, -1).swapaxes(1, 2)  # (B, H, N, D/H)

    def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        scores = heads(q) @ heads(k).swapaxes(-1, -2) / math.sqrt(q.shape[-1] // config.num_heads)
        return (softmax(scores, axis=-1) @ heads(v)).swapaxes(1, 2).reshape(q.shape)

    def mlp(x: np.ndarray, name: str) -> np.ndarray:
        return linear(ACTIVATIONS[config.activation](linear(x, f"{name}.fc1")), f"{name}.fc2")

    windows = np.lib.stride_tricks.sliding_window_view(images, (patch, patch), axis=(2, 3))
    pixels = windows[:, :, ::stride, ::stride].transpose(0, 2, 3, 1, 4, 5)  # (B, G, G, 3, ...)
    w["patch_embed.proj.weight"] = w["patch_embed.proj.weight"].reshape(config.embed_dim, -1)
    x = linear(pixels.reshape(batch, grid**2, -1), "patch_embed.proj")
    has_class_position = config.class_token and config.pos_class_token
    x = x + w["pos_embed"][:, int(has_class_position) :]
    if config.num_registers:
        x = np.concatenate([np.repeat(w["reg_token"], batch, axis=0), x], axis=1)
    if config.class_token:
        cls_token = w["cls_token"] + (w["pos_embed"][:, :1] if has_class_position else 0)
        x = np.concatenate([np.repeat(cls_token, batch, axis=0), x], axis=1)  # (B, N, D)
    assert x.shape[1] == num_tokens(config)
    if config.pre_norm:
        x = norm(x, "norm_pre")
    for i in range(config.depth):
        block = f"blocks.{i}"
        q, k, v = np.split(linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv"), 3, axis=2)
        attended = linear(attend(q, k, v), f"{block}.attn.proj")
        x = x + attended * w.get(f"{block}.ls1.gamma", 1)
        x = x + mlp(norm(x, f"{block}.norm2"), f"{block}.mlp") * w.get(f"{block}.ls2.gamma", 1)
    if config.pool == "avg":
        return linear(norm(x[:, num_prefix_tokens(config) :].mean(axis=1), "fc_norm"), "head")
    x = norm(x, "norm")
    if config.pool == "token":
        return linear(x[:, 0], "head")
    query = linear(np.repeat(w["attn_pool.latent"], batch, axis=0), "attn_pool.q")  # (B, 1, D)
    pooled = linear(
        attend(query, *np.split(linear(x, "attn_pool.kv"), 2, axis=2)), "attn_pool.proj"
    )
    return linear((pooled + mlp(norm(pooled, "attn_pool.norm"), "attn_pool.mlp"))[:, 0], "head")


@given(config=small_configs(), batch=st.integers(1, 3), classes=st.integers(1, 7), seed=SEEDS)
@SETTINGS
def test_forward_is_the_paper_s(config, batch, classes, seed):
    model = random_model(config, classes, seed).double()
    images = random_images(config, batch, seed).double()
    with torch.no_grad():
        output = model(images)
    assert output.logits.shape == (batch, classes)
    assert output.features.shape == (batch, config.embed_dim)
    assert output.parts is None
    expected = by_numpy(model, config, images.numpy())
    np.testing.assert_allclose(output.logits.numpy(), expected, **EXACT)
    assert torch.equal(model.head(output.features), output.logits)


# Of weights and pixels by a formula, so that no random generator takes part.
GOLDEN = {
    "token": [0.10138549, 0.30178287, 0.31140687],
    "avg": [-0.22707568, -0.17172765, 0.00690127],
}


@pytest.mark.parametrize(("pool", "logits"), GOLDEN.items())
def test_golden_logits(pool, logits):
    config = small_config(pool=pool)
    model = build_model(config, 3)
    with torch.no_grad():
        for i, (_, parameter) in enumerate(sorted(model.named_parameters())):
            angles = 0.7 * torch.arange(parameter.numel(), dtype=torch.float64) + i
            parameter.copy_(0.1 * torch.sin(angles).view(parameter.shape))
        pixels = torch.arange(3 * 32 * 32, dtype=torch.float64).view(1, 3, 32, 32)
        images = torch.cos(0.3 * pixels)
        assert model(images.float()).logits[0].tolist() == pytest.approx(logits, abs=1e-5)
    assert by_numpy(model, config, images.numpy())[0].tolist() == pytest.approx(logits, abs=1e-6)


# --- The last block -------------------------------------------------------------------------------


def every_block_in_full(model: VisionTransformer, images: torch.Tensor) -> torch.Tensor:
    """Logits without the shortcut: all tokens through all blocks."""
    seen = []
    embed = model.norm_pre.register_forward_hook(lambda module, inputs, out: seen.append(out))
    model(images)
    embed.remove()
    x = seen[0]
    for block in model.blocks:
        x = x + block.ls1(block.attn(block.norm1(x)))
        x = x + block.ls2(block.mlp(block.norm2(x)))
    if model.pool == "avg":
        return model.head(model.fc_norm(x[:, model.num_prefix_tokens :].mean(dim=1)))
    x = model.norm(x)
    return model.head(model.attn_pool(x) if model.pool == "map" else x[:, 0])


def assert_shortcut_changes_nothing(
    model: VisionTransformer, images: torch.Tensor, **tolerance: float
) -> None:
    labels = torch.arange(len(images))
    output, full = model(images), every_block_in_full(model, images)
    torch.testing.assert_close(output.logits, full, **tolerance)
    parameters = dict(model.named_parameters())
    losses = classification_loss(output, labels), F.cross_entropy(full, labels)
    ours, reference = (torch.autograd.grad(loss, tuple(parameters.values())) for loss in losses)
    torch.testing.assert_close(
        dict(zip(parameters, ours, strict=True)),
        dict(zip(parameters, reference, strict=True)),
        **tolerance,
    )


@given(config=small_configs(), batch=st.integers(1, 3), seed=SEEDS)
@SETTINGS
def test_the_last_block_s_shortcut_changes_nothing(config, batch, seed):
    model = random_model(config, 5, seed).double()
    images = random_images(config, batch, seed).double()
    assert_shortcut_changes_nothing(model, images, **EXACT)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("name", ["testing", "ViT-Ti_16"])
def test_the_shortcut_in_float32_at_real_widths(name, depth, seed):
    config = get_config(name, 64, depth=depth)
    model, images = random_model(config, 10, seed), random_images(config, 2, seed)
    assert_shortcut_changes_nothing(model, images, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("pool", "tokens"), [("token", 1), ("avg", 5), ("map", 5)])
def test_tokens_that_the_last_block_computes(pool, tokens):
    model = build_model(small_config(pool=pool), 5)  # 2 x 2 patches and the class token
    seen = []
    for block in model.blocks:
        block.mlp.register_forward_hook(lambda mlp, inputs, output: seen.append(output.shape[1]))
    model(torch.zeros(1, 3, 32, 32))
    assert seen == [5, 5, tokens]


# --- Dropout, stochastic depth, recomputation -----------------------------------------------------


def test_drop_path_rises_linearly_from_0():
    for depth, expected in ((5, [0, 0.1, 0.2, 0.3, 0.4]), (2, [0, 0.4]), (1, [0])):
        model = build_model(small_config(depth=depth, drop_path=0.4), 5)
        rates = [getattr(block.drop_path, "p", 0.0) for block in model.blocks]
        assert rates == pytest.approx(expected)


def test_dropout_is_after_the_positions_too():
    model = random_model(small_config(dropout=0.5, embed_dim=256, img_size=64), 5, seed=0)
    seen = []
    model.norm_pre.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(torch.randn(4, 3, 64, 64))
    dropped = seen[0] == 0
    assert dropped.double().mean().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("field", ["dropout", "drop_path"])
def test_randomness_is_for_training_alone(field, pool):
    config = small_config(pool=pool, **{field: 0.5})
    model, images = random_model(config, 5, seed=0), random_images(config, 4, seed=0)
    plain = random_model(small_config(pool=pool), 5, seed=0)
    with torch.no_grad():
        expected = plain.eval()(images).logits
        assert torch.equal(model.eval()(images).logits, expected)
        first, second = model.train()(images).logits, model(images).logits
    assert not torch.allclose(first, second)
    assert not torch.allclose(first, expected)


RANDOMNESS = {"none": {}, "random": {"dropout": 0.2, "drop_path": 0.5}}


@pytest.mark.parametrize("randomness", RANDOMNESS.values(), ids=RANDOMNESS)
@pytest.mark.parametrize("pool", POOLS)
def test_recomputation_changes_no_bit(pool, randomness):
    config = small_config(pool=pool, num_registers=1, layer_scale=0.5, **randomness)
    model, images = random_model(config, 5, seed=0), random_images(config, 4, seed=0)
    labels = torch.arange(4)
    kept = loss_and_gradients(model, images, labels)
    model.grad_checkpointing = True
    recomputed = loss_and_gradients(model, images, labels)
    torch.testing.assert_close(recomputed, kept, rtol=0, atol=0)


@pytest.mark.parametrize("pool", POOLS)
def test_recomputation_keeps_less_memory(pool):
    config = small_config(pool=pool, depth=6)
    model, images = random_model(config, 5, seed=0), random_images(config, 4, seed=0)
    kept = kept_bytes(lambda: model(images))
    model.grad_checkpointing = True
    assert kept_bytes(lambda: model(images)) < kept / 2


@pytest.mark.parametrize("pool", POOLS)
def test_no_value_is_read_and_nothing_is_indexed(pool):
    config = small_config(pool=pool, num_registers=1)
    model, images = random_model(config, 5, seed=0), random_images(config, 3, seed=0)
    with Operators() as operators:
        classification_loss(model(images), torch.arange(3)).backward()
    assert "convolution_backward" in operators.names
    assert operators.unwanted == set()


# --- What it refuses ------------------------------------------------------------------------------


def test_an_image_of_the_wrong_size_is_refused():
    model = build_model(small_config(), 5)
    with pytest.raises(ValueError, match=r"images are \(64, 64\), built for 32"):
        model(torch.zeros(1, 3, 64, 64))
