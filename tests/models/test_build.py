"""A freshly built model."""

import math

import pytest
import torch
from ml_collections import ConfigDict
from small_models import small_config

from models.build import build_model
from models.losses import classification_loss


def build(seed: int, num_classes: int = 5, **sizes: int | str) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_model(small_config(**sizes), num_classes)


@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("num_classes", [1, 2, 10, 1000])
def test_the_first_loss_is_log_c(pool, num_classes):
    model = build(0, num_classes, pool=pool)
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4) % num_classes
    output = model(images)
    assert not output.logits.any()
    assert output.features.std() > 0.1
    assert classification_loss(output, labels).item() == pytest.approx(math.log(num_classes))


@pytest.mark.parametrize("seed", [0, 42, 2**32 - 1])
def test_same_seed_same_weights(seed):
    first, second = build(seed).state_dict(), build(seed).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_another_seed_other_weights():
    first, second = build(0).state_dict(), build(1).state_dict()
    same = {key for key in first if torch.equal(first[key], second[key])}
    # Only what starts at a constant.
    assert same == {
        key
        for key in first
        if key.startswith(("cls_token", "head.", "norm."))
        or ".norm" in key
        or (key.endswith("bias") and ".mlp." not in key)
    }


def test_no_two_weights_start_equal():
    weights = [p for p in build(0).parameters() if p.ndim > 1 and p.any()]
    flat = [tuple(weight.flatten()[:8].tolist()) for weight in weights]
    assert len(set(flat)) == len(flat)


def test_embeddings_start_as_google_s():
    model = build(0, embed_dim=256, img_size=64)
    assert not model.cls_token.any()
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.pos_embed.mean().item() == pytest.approx(0, abs=0.002)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_every_parameter_is_float32_contiguous_on_the_cpu_and_trained(pool):
    model = build(0, pool=pool)
    for parameter in model.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.is_contiguous()  # MPS computes wrong with others (pytorch #192212)
        assert parameter.device.type == "cpu"
        assert parameter.requires_grad
    assert not list(model.buffers())


def test_training_and_evaluation_compute_the_same():
    model, images = build(0), torch.randn(2, 3, 32, 32)
    torch.nn.init.normal_(model.head.weight)
    assert torch.equal(model.train()(images).logits, model.eval()(images).logits)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_the_plain_dict_of_a_config_builds_the_same_model(pool):
    plain = small_config(pool=pool).to_dict()  # what a checkpoint holds
    torch.manual_seed(0)
    rebuilt = build_model(ConfigDict(plain), 5).state_dict()
    expected = build(0, pool=pool).state_dict()
    assert rebuilt.keys() == expected.keys()
    assert all(torch.equal(rebuilt[key], expected[key]) for key in expected)


@pytest.mark.parametrize("num_classes", [0, -1])
def test_a_model_needs_a_class(num_classes):
    with pytest.raises(ValueError, match=f"num_classes must be at least 1, not {num_classes}"):
        build_model(small_config(), num_classes)
