"""A freshly built model."""

import math

import pytest
import torch
from ml_collections import ConfigDict
from small_models import small_config

from models.build import build_model
from models.configs import complete_config
from models.losses import classification_loss
from models.transfg import TransFG
from models.vit import VisionTransformer

# Every part that a model may have, at least once.
VARIANTS = {
    "token": {},
    "avg": {"pool": "avg"},
    "map": {"pool": "map", "class_token": False},
    "clip": {"pre_norm": True, "activation": "quick_gelu", "layer_norm_eps": 1e-5},
    "dinov2": {"num_registers": 4, "layer_scale": 1e-5},
    "no position of the class token": {"pos_class_token": False},
    "parts": {"head": "parts"},
    "overlap": {"head": "parts", "patch_stride": 12, "img_size": 64},
    "parts of all": {
        "head": "parts",
        "num_registers": 2,
        "layer_scale": 0.1,
        "pre_norm": True,
    },
}
variants = pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)


def build(seed: int, num_classes: int = 5, **fields: object) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_model(small_config(**fields), num_classes)


@pytest.mark.parametrize(("head", "kind"), [("token", VisionTransformer), ("parts", TransFG)])
def test_the_head_decides_which_model_it_is(head, kind):
    assert type(build(0, head=head)) is kind


@variants
@pytest.mark.parametrize("num_classes", [1, 2, 1000])
def test_the_first_loss_is_log_c(fields, num_classes):
    model = build(0, num_classes, **fields)
    side = small_config(**fields).img_size
    images, labels = torch.randn(4, 3, side, side), torch.arange(4) % num_classes
    output = model(images)
    assert not output.logits.any()
    assert output.features.std() > 0.1
    assert classification_loss(output, labels).item() == pytest.approx(math.log(num_classes))


@variants
@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_same_seed_same_weights(fields, seed):
    first, second = build(seed, **fields).state_dict(), build(seed, **fields).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


@variants
def test_another_seed_other_weights(fields):
    first, second = build(0, **fields).state_dict(), build(1, **fields).state_dict()
    same = {key for key in first if torch.equal(first[key], second[key])}
    # Only what starts at a constant.
    assert same == {
        key
        for key in first
        if key.startswith("cls_token")
        or key.rpartition(".")[0].endswith(("norm", "norm1", "norm2", "norm_pre", "head"))
        or key.endswith(".gamma")
        or (key.endswith("bias") and ".mlp." not in key)
    }


@variants
def test_no_two_weights_start_equal(fields):
    weights = [p for p in build(0, **fields).parameters() if p.ndim > 1 and p.any()]
    flat = [tuple(weight.flatten()[:8].tolist()) for weight in weights]
    assert len(set(flat)) == len(flat)


@pytest.mark.parametrize("head", ["token", "parts"])
def test_embeddings_start_as_google_s(head):
    model = build(0, embed_dim=256, img_size=64, num_registers=4, head=head)
    assert not model.cls_token.any()
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.pos_embed.mean().item() == pytest.approx(0, abs=0.002)
    assert model.reg_token.std().item() == pytest.approx(1e-6, rel=0.1)


@pytest.mark.parametrize("head", ["token", "parts"])
def test_every_block_starts_as_google_s(head):
    model = build(0, head=head)
    blocks = [*model.blocks, *([model.part_block] if head == "parts" else [])]
    assert len(blocks) == 3
    for block in blocks:
        bound = math.sqrt(6 / (64 + 64))
        for projection in block.attn.qkv.weight.split(64):
            assert 0.95 * bound < projection.abs().max() <= bound
        assert 0 < block.mlp.fc1.bias.std() < 2e-6


@variants
def test_every_parameter_is_float32_contiguous_on_the_cpu_and_trained(fields):
    model = build(0, **fields)
    for parameter in model.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.is_contiguous()  # MPS computes wrong with others (pytorch #192212)
        assert parameter.device.type == "cpu"
        assert parameter.requires_grad
    # Weights and nothing else are saved.
    assert model.state_dict().keys() == dict(model.named_parameters()).keys()
    assert all(buffer.dtype == torch.float32 for buffer in model.buffers())


@variants
def test_every_parameter_has_a_gradient(fields):
    model = build(0, **fields)
    torch.nn.init.normal_(model.head.weight)
    side = small_config(**fields).img_size
    classification_loss(model(torch.randn(2, 3, side, side)), torch.arange(2)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert [name for name, p in model.named_parameters() if not p.grad.any()] == []


@variants
def test_training_and_evaluation_compute_the_same(fields):
    model = build(0, **fields)
    torch.nn.init.normal_(model.head.weight)
    side = small_config(**fields).img_size
    images = torch.randn(2, 3, side, side)
    assert torch.equal(model.train()(images).logits, model.eval()(images).logits)


@variants
def test_the_plain_dict_of_a_config_builds_the_same_model(fields):
    plain = small_config(**fields).to_dict()  # what a checkpoint holds
    expected = build(0, **fields).state_dict()
    for config in (ConfigDict(plain), complete_config(plain)):
        torch.manual_seed(0)
        rebuilt = build_model(config, 5).state_dict()
        assert rebuilt.keys() == expected.keys()
        assert all(torch.equal(rebuilt[key], expected[key]) for key in expected)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_the_config_of_an_older_checkpoint_builds_the_same_model(pool):
    plain = {
        "patch_size": 16,
        "embed_dim": 64,
        "depth": 3,
        "num_heads": 4,
        "mlp_dim": 128,
        "layer_norm_eps": 1e-5,
        "pool": pool,
        "img_size": 32,
    }
    model = build(0, pool=pool, layer_norm_eps=1e-5)
    torch.nn.init.normal_(model.head.weight)
    rebuilt = build_model(complete_config(plain), 5)
    rebuilt.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(rebuilt(images).logits, model(images).logits)


# --- What it refuses ------------------------------------------------------------------------------


@pytest.mark.parametrize("num_classes", [0, -1])
def test_a_model_needs_a_class(num_classes):
    with pytest.raises(ValueError, match=f"num_classes must be at least 1, not {num_classes}"):
        build_model(small_config(), num_classes)


@pytest.mark.parametrize("head", ["token", "parts"])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pool": "max"}, "unknown pool 'max'; known: token, avg, map"),
        ({"activation": "relu"}, "unknown activation 'relu'; known: gelu, gelu_tanh, quick_gelu"),
        ({"num_heads": 5}, "embed_dim 64 is not a multiple of 5 heads"),
        ({"img_size": 40}, "img_size 40 is not a multiple of the patch, 16"),
        ({"patch_size": 15}, "img_size 32 is not a multiple of the patch, 15"),
        ({"patch_stride": 20}, "not 0 < stride 20 <= patch 16 <= img_size 32"),
        ({"patch_stride": 12, "img_size": 12}, "not 0 < stride 12 <= patch 16 <= img_size 12"),
        ({"class_token": False}, "needs a class token"),
    ],
)
def test_impossible_fields_are_refused(head, fields, message):
    with pytest.raises(ValueError, match=message):
        build_model(small_config(head=head, **fields), 5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"head": "both"}, "unknown head 'both'; known: token, parts"),
        ({"class_token": False}, "pool 'token' needs a class token"),
        ({"head": "parts", "class_token": False}, "part selection needs a class token"),
        ({"head": "parts", "depth": 1}, "part selection needs at least 2 blocks, not 1"),
    ],
)
def test_parts_of_a_model_that_contradict_each_other_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        build_model(small_config(**fields), 5)
