"""Models as they are built: initial values, plans from flags and weights, what is refused."""

import math

import pytest
import torch
from ml_collections import FrozenConfigDict
from small_models import random_images, random_model, small_config

from models.build import ModelPlan, build_model, freeze, plan_model, rebuild_model
from models.configs import POOL_READS, POOLS, ModelConfigError
from models.losses import classification_loss
from models.pretrained.formats import WeightsError
from models.pretrained.profiles import GOOGLE
from models.pretrained.weights import Pretrained, own_pretrained
from models.transfg import TransFG
from models.vit import VisionTransformer

# Every part that a model may have, at least once.
VARIANTS = {
    "token": {},
    "avg": {"pool": "avg"},
    "map": {"pool": "map", "class_token": False},
    "token_avg": {"pool": "token_avg"},
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


@variants
def test_the_first_loss_is_log_c(fields):
    model = build(0, 1000, **fields)
    side = small_config(**fields).img_size
    output, labels = model(torch.randn(4, 3, side, side)), torch.arange(4)
    assert not output.logits.any()
    assert output.features.std() > 0.1
    assert classification_loss(output, labels).item() == pytest.approx(math.log(1000))


@variants
def test_the_seed_decides_the_weights(fields):
    first, second = build(0, **fields).state_dict(), build(1, **fields).state_dict()
    again = build(0, **fields).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
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


@pytest.mark.parametrize(("head", "kind"), [("token", VisionTransformer), ("parts", TransFG)])
def test_a_model_of_either_head_starts_as_google_s(head, kind):
    model = build(0, embed_dim=256, img_size=64, num_registers=4, head=head)
    assert type(model) is kind
    assert not model.cls_token.any()
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.pos_embed.mean().item() == pytest.approx(0, abs=0.002)
    assert model.reg_token.std().item() == pytest.approx(1e-6, rel=0.1)
    blocks = [*model.blocks, *([model.part_block] if head == "parts" else [])]
    assert len(blocks) == 3
    for block in blocks:
        bound = math.sqrt(6 / (256 + 256))
        for projection in block.attn.qkv.weight.split(256):
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
def test_every_parameter_has_a_gradient_and_evaluation_computes_the_same(fields):
    model = build(0, **fields)
    torch.nn.init.normal_(model.head.weight)
    images = random_images(small_config(**fields), 2, seed=0)
    output = model.train()(images)
    assert torch.equal(output.logits, model.eval()(images).logits)
    classification_loss(output, torch.arange(2)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert [name for name, p in model.named_parameters() if not p.grad.any()] == []


# --- Models of checkpoints ------------------------------------------------------------------------


@variants
def test_a_checkpoint_s_model_is_rebuilt(fields):
    model = random_model(small_config(**fields), 5, seed=1)
    plain = small_config(**fields).to_dict()  # what a checkpoint holds
    rebuilt = rebuild_model(plain, "abcde", model.state_dict())
    images = random_images(small_config(**fields), 2, seed=0)
    assert torch.equal(rebuilt(images).logits, model(images).logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 2}, "does not hold the weights of the model it describes"),
        ({"head": "parts"}, "does not hold the weights of the model it describes"),
        ({"img_size": 64}, "does not hold the weights of the model it describes"),
        # More than any memory holds.
        ({"mlp_dim": 65536, "img_size": 65536}, "does not hold the weights of the model it desc"),
        ({"num_heads": 0}, "has an unusable model config: num_heads is not an integer from 1 to"),
        ({"depth": "3"}, "has an unusable model config: depth is not an integer from 1 to 1000$"),
        ({"heads": 4}, "has an unusable model config: heads is unknown$"),
    ],
    ids=str,
)
def test_weights_of_another_model_and_an_unusable_config_are_refused(change, message):
    state_dict = random_model(small_config(), 5, seed=1).state_dict()
    with pytest.raises(WeightsError, match=f"^{message}"):
        rebuild_model({**small_config().to_dict(), **change}, "abcde", state_dict)


@pytest.mark.parametrize("classes", ["abcd", ""])
def test_weights_of_another_number_of_classes_are_refused(classes):
    state_dict = random_model(small_config(), 5, seed=1).state_dict()
    with pytest.raises(WeightsError, match=r"does not hold the weights|num_classes is 0, not"):
        rebuild_model(small_config().to_dict(), classes, state_dict)


# --- Plans ----------------------------------------------------------------------------------------

FLAGS = {
    "model_type": "testing",
    "img_size": 32,
    "head": "token",
    "slide_step": None,
    "dropout": 0.1,
    "drop_path": 0.2,
    "grad_checkpointing": True,
    "freeze": "none",
    "pretrained_profile": "auto",
    "pos_resample": "bicubic",
    "part_init": None,
}


def plan(weights: Pretrained | None, classes: str = "abcde", **flags: object) -> ModelPlan:
    return plan_model(FrozenConfigDict({**FLAGS, **flags}), weights, classes)


@pytest.mark.parametrize(("profile", "mean"), [("auto", 0.5), ("imagenet", 0.485)])
def test_a_plan_without_weights_is_of_random_ones(profile, mean):
    planned = plan(None, pretrained_profile=profile, slide_step=12, head="parts", freeze="backbone")
    expected = {"dropout": 0.1, "drop_path": 0.2, "patch_stride": 12, "head": "parts"}
    assert planned.config == small_config(**expected)
    assert planned.normalization["mean"][0] == mean
    torch.manual_seed(0)
    model, report = planned.build()
    assert report is None
    assert model.grad_checkpointing
    assert not model.blocks[0].norm1.weight.requires_grad
    fresh = build(0, **expected).state_dict()
    assert all(torch.equal(value, fresh[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("classes", ["abcde", "edcba", "cabed", "abcdx"])
def test_a_plan_with_weights_loads_them_and_the_head_of_the_same_classes(classes):
    """Whatever their order is."""
    keeps_head = sorted(classes) == [*"abcde"]
    config = small_config(layer_norm_eps=1e-3, num_registers=2)
    state_dict = random_model(config, 5, seed=1).state_dict()
    statistics = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    weights = own_pretrained(state_dict, config.to_dict(), statistics, "abcde")
    planned = plan(weights, classes)
    assert planned.config == small_config(
        layer_norm_eps=1e-3, num_registers=2, dropout=0.1, drop_path=0.2
    )
    assert planned.normalization == {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    model, report = planned.build()
    assert torch.equal(model.cls_token, state_dict["cls_token"])
    assert report.new == (() if keeps_head else ("head.bias", "head.weight"))
    if keeps_head:
        for number, name in enumerate(classes):
            before = "abcde".index(name)
            assert torch.equal(model.head.weight[number], state_dict["head.weight"][before])
            assert model.head.bias[number] == state_dict["head.bias"][before]


@pytest.mark.parametrize("pool", POOLS)
def test_a_checkpoint_says_what_its_head_reads_and_keeps_it(pool):
    """No tensor tells a head on the mean of the patches from one on the class token."""
    config = small_config(pool=pool, class_token="token" in pool)
    state_dict = random_model(config, 5, seed=1).state_dict()
    weights = own_pretrained(state_dict, config.to_dict(), GOOGLE.normalization, "abcde")
    model, report = plan(weights).build()
    assert report.new == ()
    assert model.read_kinds == POOL_READS[pool]
    assert torch.equal(model.head.weight, state_dict["head.weight"])


@pytest.mark.parametrize("pool", ["token", "norm_avg", "token_avg"])
def test_part_selection_keeps_a_head_of_the_class_token_alone(pool):
    config = small_config(pool=pool)
    state_dict = random_model(config, 5, seed=1).state_dict()
    weights = own_pretrained(state_dict, config.to_dict(), GOOGLE.normalization, "abcde")
    planned = plan(weights, head="parts")
    assert planned.keep_head == (pool == "token")
    says = [note for note in planned.weights.notes if "--head parts starts anew" in note]
    assert len(says) == (pool != "token")
    model, report = planned.build()
    assert (report.new == ()) == (pool == "token")
    assert isinstance(model, TransFG)


# --- Freezing -------------------------------------------------------------------------------------

EMBEDDINGS = ("cls_token", "pos_embed", "patch_embed.")


@pytest.mark.parametrize(
    ("head", "what", "frozen"),
    [
        ("token", "none", ()),
        ("token", "backbone", (*EMBEDDINGS, "blocks.", "norm.")),
        ("token", "1", (*EMBEDDINGS, "blocks.0.")),
        ("token", "3", (*EMBEDDINGS, "blocks.")),
        ("parts", "backbone", (*EMBEDDINGS, "blocks.")),
        ("parts", "2", (*EMBEDDINGS, "blocks.")),
        ("parts", "3", (*EMBEDDINGS, "blocks.", "part_block.")),
    ],
)
def test_what_is_frozen_needs_no_gradient(head, what, frozen):
    model = build(0, head=head)
    freeze(model, what)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith(frozen)


@pytest.mark.parametrize("pool", POOLS)
def test_a_frozen_backbone_leaves_nothing_for_the_backward_pass(pool):
    """So a step needs the memory of an evaluation."""
    model = random_model(small_config(pool=pool), 5, seed=0)
    freeze(model, "backbone")
    output = model(random_images(small_config(), 4, seed=0))
    assert output.logits.requires_grad
    assert not output.features.requires_grad


@pytest.mark.parametrize("what", ["0", "4", "-1", "head", ""])
def test_what_cannot_be_frozen_is_refused(what):
    with pytest.raises(ValueError, match=f"cannot freeze '{what}' of a model of 3 blocks"):
        freeze(build(0), what)


def test_a_model_needs_a_class():
    with pytest.raises(ModelConfigError, match="num_classes is 0, not at least 1"):
        build_model(small_config(), 0)
