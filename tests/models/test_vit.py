"""The Vision Transformer: sizes, names, and numbers against references written here.

Shapes: B batch, N tokens, H heads, D width, C classes.
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
from small_models import SEEDS, randomize, small_config, small_configs

from models.build import build_model
from models.configs import get_config, model_names
from models.losses import classification_loss
from models.vit import VisionTransformer

# Formulas are compared in float64: in float32 a norm of nearly equal numbers blows up rounding.
SETTINGS = settings(max_examples=30, deadline=None)
EXACT = {"atol": 1e-9, "rtol": 1e-9}


def random_model(config: ConfigDict, num_classes: int, seed: int) -> VisionTransformer:
    torch.manual_seed(seed)
    model = build_model(config, num_classes)
    randomize(model, seed)
    return model


def random_images(config: ConfigDict, batch: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, config.img_size, config.img_size, generator=generator)


# --- Sizes and names ------------------------------------------------------------------------------

# At 224 pixels and 1000 classes. From ViT-Ti on they are timm's, of the model with the same sizes.
PARAMETERS = {
    "testing": 227432,
    "ViT-Ti_16": 5717416,
    "ViT-S_16": 22050664,
    "ViT-S_32": 22878952,
    "ViT-B_16": 86567656,
    "ViT-B_32": 88224232,
    "ViT-L_16": 304326632,
    "ViT-L_32": 306535400,
    "ViT-H_14": 632045800,
}


def parameters_by_formula(config: ConfigDict, num_classes: int) -> int:
    d, m, patch = config.embed_dim, config.mlp_dim, config.patch_size
    tokens = 1 + (config.img_size // patch) ** 2
    embedding = (3 * patch**2 + 1) * d + d + tokens * d  # patches, class token, positions
    attention = (d + 1) * 3 * d + (d + 1) * d
    mlp = (d + 1) * m + (m + 1) * d
    block = 2 * d + attention + 2 * d + mlp
    return embedding + config.depth * block + 2 * d + (d + 1) * num_classes


def test_every_registered_model_is_counted():
    assert tuple(PARAMETERS) == model_names()


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameter_count(name, count):
    config = get_config(name)
    with torch.device("meta"):  # shapes without memory
        model = build_model(config, 1000)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert parameters_by_formula(config, 1000) == count


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


def test_names_without_weight_decay_are_parameters():
    model = build_model(small_config(), 5)
    assert model.no_weight_decay() == {"cls_token", "pos_embed"}
    assert model.no_weight_decay() <= dict(model.named_parameters()).keys()


# --- Numbers --------------------------------------------------------------------------------------


def by_numpy(model: VisionTransformer, config: ConfigDict, images: np.ndarray) -> np.ndarray:
    """Logits (B, C) in float64, from the state dict alone."""
    w = {key: value.double().numpy() for key, value in model.state_dict().items()}
    patch, grid = config.patch_size, config.img_size // config.patch_size

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        deviation = np.sqrt(x.var(axis=-1, keepdims=True) + config.layer_norm_eps)
        x = (x - x.mean(axis=-1, keepdims=True)) / deviation
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def heads(x: np.ndarray) -> np.ndarray:
        return x.reshape(*x.shape[:2], config.num_heads, -1).swapaxes(1, 2)  # (B, H, N, D/H)

    pixels = images.reshape(len(images), 3, grid, patch, grid, patch).transpose(0, 2, 4, 1, 3, 5)
    w["patch_embed.proj.weight"] = w["patch_embed.proj.weight"].reshape(config.embed_dim, -1)
    patches = linear(pixels.reshape(len(images), grid**2, -1), "patch_embed.proj")
    cls_token = np.broadcast_to(w["cls_token"], (len(images), 1, config.embed_dim))
    x = np.concatenate([cls_token, patches], axis=1) + w["pos_embed"]  # (B, N, D)
    for i in range(config.depth):
        block = f"blocks.{i}"
        q, k, v = map(heads, np.split(linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv"), 3, 2))
        scores = q @ k.swapaxes(-1, -2) / math.sqrt(config.embed_dim // config.num_heads)
        attended = (softmax(scores, axis=-1) @ v).swapaxes(1, 2).reshape(x.shape)
        x = x + linear(attended, f"{block}.attn.proj")
        hidden = linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")
        x = x + linear(hidden * (1 + erf(hidden / math.sqrt(2))) / 2, f"{block}.mlp.fc2")
    if config.pool == "avg":
        return linear(norm(x[:, 1:].mean(axis=1), "fc_norm"), "head")
    return linear(norm(x[:, 0], "norm"), "head")


@given(config=small_configs(), batch=st.integers(1, 3), classes=st.integers(1, 7), seed=SEEDS)
@SETTINGS
def test_forward_is_the_paper_s(config, batch, classes, seed):
    model = random_model(config, classes, seed).double()
    images = random_images(config, batch, seed).double()
    with torch.no_grad():
        output = model(images)
    assert output.logits.shape == (batch, classes)
    assert output.features.shape == (batch, config.embed_dim)
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
    patches = model.patch_embed.proj(images).flatten(2).mT
    x = torch.cat([model.cls_token.repeat(len(images), 1, 1), patches], dim=1) + model.pos_embed
    for block in model.blocks:
        x = x + block.attn(block.norm1(x))
        x = x + block.mlp(block.norm2(x))
    if model.pool == "avg":
        return model.head(model.fc_norm(x[:, 1:].mean(dim=1)))
    return model.head(model.norm(x)[:, 0])


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
    config = get_config(name, 64)
    config.depth = depth
    model, images = random_model(config, 10, seed), random_images(config, 2, seed)
    assert_shortcut_changes_nothing(model, images, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("pool", "tokens"), [("token", 1), ("avg", 5)])
def test_tokens_that_the_last_block_computes(pool, tokens):
    model = build_model(small_config(pool=pool), 5)  # 2 x 2 patches and the class token
    seen = []
    for block in model.blocks:
        block.mlp.register_forward_hook(lambda mlp, inputs, output: seen.append(output.shape[1]))
    model(torch.zeros(1, 3, 32, 32))
    assert seen == [5, 5, tokens]


# --- What it refuses ------------------------------------------------------------------------------


def test_an_image_of_the_wrong_size_is_refused():
    model = build_model(small_config(), 5)
    with pytest.raises(ValueError, match=r"images are \(64, 64\), built for 32"):
        model(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"pool": "max"}, "unknown pool 'max'; known: token, avg"),
        ({"num_heads": 5}, "embed_dim 64 is not a multiple of 5 heads"),
        ({"img_size": 40}, "img_size 40 is not a multiple of the patch, 16"),
        ({"patch_size": 15}, "img_size 32 is not a multiple of the patch, 15"),
    ],
)
def test_impossible_sizes_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        build_model(small_config(**sizes), 5)
