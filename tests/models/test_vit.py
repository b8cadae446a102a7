"""The Vision Transformer: sizes, names, and numbers against references written here.

Shapes: B batch, N tokens, H heads, D width, C classes, G patches along a side.
"""

import math

import numpy as np
import pytest
import torch
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
from models.configs import (
    HEADS,
    POOLS,
    get_config,
    grid_side,
    model_names,
    num_prefix_tokens,
    num_tokens,
)
from models.losses import classification_loss
from models.vit import VisionTransformer
from utils.data.transforms import PatchDropout

# Formulas are compared in float64: in float32 a norm of nearly equal numbers blows up rounding.
SETTINGS = settings(max_examples=30)
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


# The part model has the last block and the last norm of the plain one, in another place.
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", model_names())
def test_parameter_count_of_a_registered_model(name, head):
    config, count = get_config(name, head=head), PARAMETERS[name]
    with torch.device("meta"):  # shapes without memory
        model = build_model(config, 1000)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({}, {"cls_token", "pos_embed"}),
        ({"head": "parts", "num_registers": 2}, {"cls_token", "pos_embed", "reg_token"}),
        ({"class_token": False, "pool": "map"}, {"pos_embed", "attn_pool.latent"}),
    ],
)
def test_names_without_weight_decay_are_parameters(fields, names):
    model = build_model(small_config(**fields), 5)
    assert model.no_weight_decay() == names


def test_the_layer_of_every_parameter():
    fields = {"pool": "map", "num_registers": 2, "pre_norm": True, "layer_scale": 0.1}
    model = build_model(small_config(**fields, depth=11), 5)
    names = dict(model.named_parameters())
    for i in range(11):  # block 10 is not taken for block 1
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


def by_numpy(
    model: VisionTransformer, config: ConfigDict, images: np.ndarray, kept: np.ndarray | None = None
) -> np.ndarray:
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
    if kept is not None:
        x = np.take_along_axis(x, kept[:, :, None], axis=1)
        assert x.shape[1] == kept.shape[1]
    if config.num_registers:
        x = np.concatenate([np.repeat(w["reg_token"], batch, axis=0), x], axis=1)
    if config.class_token:
        cls_token = w["cls_token"] + (w["pos_embed"][:, :1] if has_class_position else 0)
        x = np.concatenate([np.repeat(cls_token, batch, axis=0), x], axis=1)  # (B, N, D)
    assert kept is not None or x.shape[1] == num_tokens(config)
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
    mean = x[:, num_prefix_tokens(config) :].mean(axis=1)
    if not config.pool.startswith("map"):
        read = {"token": [x[:, 0]], "norm_avg": [mean], "token_avg": [x[:, 0], mean]}
        return linear(np.concatenate(read[config.pool], axis=1), "head")
    query = linear(np.repeat(w["attn_pool.latent"], batch, axis=0), "attn_pool.q")  # (B, 1, D)
    pooled = linear(
        attend(query, *np.split(linear(x, "attn_pool.kv"), 2, axis=2)), "attn_pool.proj"
    )
    pooled = (pooled + mlp(norm(pooled, "attn_pool.norm"), "attn_pool.mlp"))[:, 0]
    return linear(np.concatenate([pooled, *[mean] * (config.pool == "map_avg")], axis=1), "head")


@given(
    config=small_configs(),
    batch=st.integers(1, 3),
    classes=st.integers(1, 7),
    drops=st.booleans(),
    seed=SEEDS,
)
@SETTINGS
def test_forward_is_the_paper_s(config, batch, classes, drops, seed):
    """Of all patches, or of those that patch dropout leaves."""
    model = random_model(config, classes, seed).double()
    images, kept = random_images(config, batch, seed).double(), None
    if drops:
        patch_dropout = PatchDropout(0.5, grid_side(config) ** 2)
        kept = torch.stack([patch_dropout() for _ in images])
    with torch.no_grad():
        output = model(images, kept)
    assert output.logits.shape == (batch, classes)
    width = config.embed_dim * (2 if config.pool in ("token_avg", "map_avg") else 1)
    assert output.features.shape == (batch, width)
    assert output.parts is None
    expected = by_numpy(model, config, images.numpy(), None if kept is None else kept.numpy())
    np.testing.assert_allclose(output.logits.numpy(), expected, **EXACT)
    assert torch.equal(model.head(output.features), output.logits)


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({}, [1]),
        ({"pool": "avg"}, [5]),
        ({"pool": "map"}, [5]),
        ({"pool": "token_avg"}, [1, 5]),
        ({"head": "parts"}, [1]),
    ],
    ids=str,
)
def test_tokens_that_the_last_block_computes(fields, tokens):
    model = build_model(small_config(**fields), 5)  # 2 x 2 patches and the class token
    seen = []
    for block in (*model.blocks, *([model.part_block] if "head" in fields else [])):
        block.mlp.register_forward_hook(lambda mlp, inputs, output: seen.append(output.shape[1]))
    model(torch.zeros(1, 3, 32, 32))
    assert seen == [5, 5, *tokens]


@pytest.mark.parametrize("pool", POOLS)
def test_features_are_what_the_head_reads(pool):
    """To the last bit in batches of the same size, so that a run on features equals one on images.
    In others, products of other shapes may take other kernels; which ones differs by machine."""
    config = small_config(pool=pool, num_registers=1)
    model = random_model(config, 5, seed=0).eval()
    images = random_images(config, 32, seed=0)
    with torch.no_grad():
        features = model.all_features(images)
        read = [features[:, model.feature_kinds.index(kind)] for kind in model.read_kinds]
        read = torch.cat(read, dim=1)
        for size in (3, 4, 12, 32):
            outputs = [model.train()(part) for part in images.split(size)]
            seen = torch.cat([output.features for output in outputs])
            exact = {"rtol": 0, "atol": 0} if size == len(images) else {}
            torch.testing.assert_close(seen, read, **exact)
            on_features = [model(part).logits for part in read.split(size)]
            for output, logits in zip(outputs, on_features, strict=True):
                torch.testing.assert_close(output.logits, logits, **exact)


# --- Dropout, stochastic depth, activation checkpointing ------------------------------------------


@pytest.mark.parametrize(
    ("head", "depth", "expected"),
    [
        ("token", 5, [0, 0.1, 0.2, 0.3, 0.4]),
        ("token", 1, [0]),
        ("parts", 5, [0, 0.1, 0.2, 0.3, 0.4]),
        ("parts", 2, [0, 0.4]),
    ],
)
def test_drop_path_rises_linearly_from_0_up_to_the_last_block(head, depth, expected):
    model = build_model(small_config(head=head, depth=depth, drop_path=0.4), 5)
    blocks = [*model.blocks, *([model.part_block] if head == "parts" else [])]
    assert [getattr(block.drop_path, "p", 0.0) for block in blocks] == pytest.approx(expected)


def test_dropout_is_after_the_positions_too():
    model = random_model(small_config(dropout=0.5, embed_dim=256, img_size=64), 5, seed=0)
    seen = []
    model.norm_pre.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(torch.randn(4, 3, 64, 64))
    dropped = seen[0] == 0
    assert dropped.double().mean().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("kind", [*({"pool": pool} for pool in POOLS), {"head": "parts"}], ids=str)
@pytest.mark.parametrize("field", ["dropout", "drop_path"])
def test_randomness_is_for_training_alone(field, kind):
    config = small_config(**kind, **{field: 0.5})
    model, images = random_model(config, 5, seed=0), random_images(config, 4, seed=0)
    plain = random_model(small_config(**kind), 5, seed=0)
    with torch.no_grad():
        expected = plain.eval()(images).logits
        assert torch.equal(model.eval()(images).logits, expected)
        first, second = model.train()(images).logits, model(images).logits
    assert not torch.allclose(first, second)
    assert not torch.allclose(first, expected)


@pytest.mark.parametrize("randomness", [{}, {"dropout": 0.2, "drop_path": 0.5}], ids=str)
@pytest.mark.parametrize("pool", POOLS)
def test_activation_checkpointing_changes_no_bit_and_keeps_less_memory(pool, randomness):
    config = small_config(pool=pool, depth=6, num_registers=1, layer_scale=0.5, **randomness)
    model, images = random_model(config, 5, seed=0), random_images(config, 4, seed=0)
    labels = torch.arange(4)
    plain, kept = loss_and_gradients(model, images, labels), kept_bytes(lambda: model(images))
    model.grad_checkpointing = True
    checkpointed = loss_and_gradients(model, images, labels)
    torch.testing.assert_close(checkpointed, plain, rtol=0, atol=0)
    assert kept_bytes(lambda: model(images)) < kept / 2


@pytest.mark.parametrize("pool", POOLS)
def test_no_value_is_read_and_nothing_is_indexed(pool):
    config = small_config(pool=pool, num_registers=1)
    model, images = random_model(config, 5, seed=0), random_images(config, 3, seed=0)
    with Operators() as operators:
        classification_loss(model(images), torch.arange(3)).backward()
    assert "convolution_backward" in operators.names
    assert operators.unwanted == set()
