"""Weights from elsewhere: what is taken, what is new, what is refused."""

import re
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from paper_transfg import in_their_names
from small_models import SEEDS, random_images, random_model, small_config, small_configs
from torch import Tensor

from models.configs import SIZE_FIELDS, get_config
from models.pretrained.formats import WeightsError
from models.pretrained.load import HEAD_KEYS, PART_INIT, POS_RESAMPLE, LoadReport, load_pretrained
from models.pretrained.weights import Pretrained, adapt_config, open_pretrained, own_pretrained
from models.vit import Backbone

SETTINGS = settings(max_examples=25)
NORMALIZATION = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}


def model_of(num_classes: int = 5, seed: int = 0, **fields: object) -> Backbone:
    return random_model(small_config(**fields), num_classes, seed)


def weights_of(num_classes: int = 5, **fields: object) -> Pretrained:
    """As from one of our checkpoints."""
    config = small_config(**fields)
    state_dict = random_model(config, num_classes, seed=1).state_dict()
    return own_pretrained(state_dict, config.to_dict(), NORMALIZATION)


def without(weights: Pretrained, *keys: str) -> Pretrained:
    left = {key: value for key, value in weights.tensors.items() if key not in keys}
    return weights._replace(tensors=left)


def snapshot(model: torch.nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_equal(given_tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    torch.testing.assert_close(given_tensors, expected, rtol=0, atol=0)


# --- What is taken --------------------------------------------------------------------------------


@pytest.mark.parametrize("num_classes", [5, 3])
@pytest.mark.parametrize("head", ["token", "parts"])
def test_a_new_head_keeps_its_initial_values(head, num_classes):
    model, weights = model_of(num_classes, head=head), weights_of(num_classes=5, head=head)
    before = snapshot(model)
    report = load_pretrained(model, weights)
    backbone = tuple(sorted(weights.tensors.keys() - set(HEAD_KEYS)))
    assert report == LoadReport(loaded=backbone, resized={}, new=HEAD_KEYS, unused=HEAD_KEYS)
    expected = {**before, **{key: weights.tensors[key] for key in backbone}}
    assert_equal({**model.state_dict()}, expected)


@pytest.mark.parametrize("keep_head", [True, False])
@pytest.mark.parametrize("img_size", [32, 64])
def test_every_key_has_one_fate(keep_head, img_size):
    model, weights = model_of(img_size=img_size), weights_of()
    extra = {"blocks.3.norm1.weight": torch.zeros(64), "part_norm.bias": torch.zeros(64)}
    weights = weights._replace(tensors={**weights.tensors, **extra}, unused=("zebra", "mask_token"))
    report = load_pretrained(model, weights, keep_head)
    fates = [*report.loaded, *report.resized, *report.new]
    assert sorted(fates) == sorted(model.state_dict())
    unused = ("blocks.3.norm1.weight", "mask_token", "part_norm.bias", "zebra")
    assert report.unused == tuple(sorted((*unused, *(() if keep_head else HEAD_KEYS))))
    assert report.new == (() if keep_head else HEAD_KEYS)


@pytest.mark.parametrize("img_size", [32, 64])
@pytest.mark.parametrize("head", ["token", "parts"])
def test_parameters_are_written_in_place_and_share_nothing_with_the_weights(img_size, head):
    model, weights = model_of(img_size=img_size, head=head), weights_of()
    storages = {name: (p, p.data_ptr()) for name, p in model.named_parameters()}
    before = {key: value.clone() for key, value in weights.tensors.items()}
    load_pretrained(model, weights, keep_head=True)
    assert_equal(weights.tensors, before)
    for name, parameter in model.named_parameters():
        assert parameter is storages[name][0]
        assert parameter.data_ptr() == storages[name][1]
        assert parameter.requires_grad
    taken = snapshot(model)
    for value in weights.tensors.values():
        value.zero_()
    assert_equal({**model.state_dict()}, taken)


# --- Of any of our models -------------------------------------------------------------------------


@given(config=small_configs(), head=st.sampled_from(("token", "parts")), seed=SEEDS)
@SETTINGS
def test_any_of_our_models_is_recognised_by_its_weights(config, head, seed):
    if head == "parts":
        assume(config.depth > 1 and config.class_token and config.pool == "token")
        config = config.copy_and_resolve_references()
        config.head = head
    model = random_model(config, 3, seed).eval()
    weights = own_pretrained(model.state_dict(), config.to_dict(), NORMALIZATION)
    assert weights.sizes == {key: config[key] for key in (*SIZE_FIELDS, "num_heads")}
    asked = small_config(
        head=head, patch_stride=config.patch_stride, img_size=config.img_size, **weights.sizes
    )
    adapted = adapt_config(asked, weights)
    again = random_model(adapted, 3, seed=seed + 1).eval()
    load_pretrained(again, weights, keep_head=True)
    images = random_images(config, 2, seed)
    with torch.no_grad():
        assert torch.equal(again(images).logits, model(images).logits)


def test_our_checkpoint_says_its_heads_and_profile():
    weights = weights_of(activation="quick_gelu", num_heads=2, layer_norm_eps=1e-3)
    assert weights.layout == "ours"
    assert weights.sizes["num_heads"] == 2
    assert weights.profile == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 1e-3, "quick_gelu")
    assert (weights.unused, weights.notes, weights.assumed) == ((), (), "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 0}, "^it has an unusable model config: num_heads is not an integer from 1"),
        ({"layer_norm_eps": float("nan")}, "^it has an unusable model config: layer_norm_eps is"),
    ],
)
def test_a_checkpoint_of_an_unusable_config_is_refused(change, message):
    fields = {**small_config().to_dict(), **change}
    with pytest.raises(WeightsError, match=message):
        own_pretrained(weights_of().tensors, fields, NORMALIZATION)


# --- Plain model and part model -------------------------------------------------------------------


def part_keys(model: Backbone) -> set[str]:
    return {key for key in model.state_dict() if key.startswith("part_block.")}


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_the_part_block_starts_from_the_last_block(pool):
    model, weights = model_of(head="parts"), weights_of(pool=pool)
    report = load_pretrained(model, weights)
    assert report.new == HEAD_KEYS
    norm = "norm" if pool == "token" else "fc_norm"
    after = model.state_dict()
    for key, value in weights.tensors.items():
        if key not in HEAD_KEYS:
            ours = key.replace("blocks.2.", "part_block.").replace(f"{norm}.", "part_norm.")
            assert torch.equal(after[ours if key.startswith(("blocks.2.", norm)) else key], value)


@pytest.mark.parametrize("source", ["token", "parts"])
def test_the_part_block_may_stay_random(source):
    model, weights = model_of(head="parts"), weights_of(head=source)
    before = snapshot(model)
    report = load_pretrained(model, weights, part_init="random")
    left = part_keys(model)
    assert set(report.new) == left | set(HEAD_KEYS)
    in_file = {"token": "blocks.2.", "parts": "part_block."}[source]  # the file's own names
    unused = {key for key in report.unused if key not in HEAD_KEYS}
    assert unused == {key.replace("part_block.", in_file) for key in left}
    assert_equal({key: model.state_dict()[key] for key in left}, {key: before[key] for key in left})
    assert "part_norm.weight" in report.loaded


@pytest.mark.parametrize("part_init", PART_INIT)
@pytest.mark.parametrize("head", ["token", "parts"])
def test_weights_of_either_model_are_a_plain_model_s(head, part_init):
    model, weights = model_of(), weights_of(head=head)
    report = load_pretrained(model, weights, keep_head=True, part_init=part_init)
    assert (report.new, report.unused) == ((), ())
    after = model.state_dict()
    for key, value in weights.tensors.items():
        ours = key.replace("part_block.", "blocks.2.").replace("part_norm.", "norm.")
        assert torch.equal(after[ours], value)


def test_a_part_model_reads_the_class_token_whatever_the_weights_did():
    config = adapt_config(small_config(head="parts"), weights_of(pool="avg"))
    assert (config.head, config.pool) == ("parts", "token")
    weights = weights_of(class_token=False, pool="map")
    with pytest.raises(WeightsError, match=r"^it has no class token, which --head parts needs$"):
        adapt_config(small_config(head="parts"), weights)


# --- Positions of another grid --------------------------------------------------------------------


@pytest.mark.parametrize("mode", POS_RESAMPLE)
@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ({"img_size": 32}, {"img_size": 64}, "2x2 to 4x4"),
        ({"img_size": 64}, {"img_size": 32}, "4x4 to 2x2"),
        ({"img_size": 64}, {"img_size": 64, "patch_stride": 12}, "4x4 to 5x5"),
    ],
)
def test_positions_are_resampled_and_that_is_said(old, new, words, mode):
    model, weights = model_of(**new), weights_of(**old)
    report = load_pretrained(model, weights, keep_head=True, pos_resample=mode)
    assert report.resized == {"pos_embed": f"{words} patches, {mode}"}
    assert report.loaded == tuple(sorted(weights.tensors.keys() - {"pos_embed"}))
    assert (report.new, report.unused) == ((), ())
    assert model.pos_embed.is_contiguous()
    assert torch.equal(model.pos_embed[:, 0], weights.tensors["pos_embed"][:, 0])


# --- Refused on the way into a model --------------------------------------------------------------


def assert_refused(
    weights: Pretrained, keep_head: bool, message: str, num_classes: int = 5, **fields: object
) -> None:
    """Refused with `message`, and the model is as it was."""
    model = model_of(num_classes, **fields)
    before = snapshot(model)
    with pytest.raises(WeightsError, match=f"^{re.escape(message)}$"):
        load_pretrained(model, weights, keep_head)
    assert_equal({**model.state_dict()}, before)


def test_a_missing_key_of_the_part_block_is_listed():
    weights = without(weights_of(head="parts"), "part_block.norm1.bias", "part_norm.bias")
    assert_refused(
        weights, False, "missing part_block.norm1.bias, missing part_norm.bias", head="parts"
    )


def test_a_head_that_is_to_be_kept_must_fit():
    weights = without(weights_of(), *HEAD_KEYS)
    assert_refused(weights, True, "missing head.bias, missing head.weight")
    message = "head.bias is (5,), not (3,), head.weight is (5, 64), not (3, 64)"
    assert_refused(weights_of(num_classes=5), True, message, num_classes=3)


def test_positions_of_no_square_grid_are_refused():
    weights = weights_of()
    weights.tensors["pos_embed"] = torch.zeros(1, 7, 64)
    assert_refused(weights, False, "pos_embed is (1, 7, 64): not a square grid of patches")


def test_all_problems_are_listed_at_once():
    weights = without(weights_of(), "norm.bias", "cls_token")
    weights.tensors["norm.weight"] = torch.zeros(3)
    # As many numbers in another shape.
    weights.tensors["blocks.1.mlp.fc1.weight"] = weights.tensors["blocks.1.mlp.fc1.weight"].T
    message = (
        "missing cls_token, missing norm.bias, blocks.1.mlp.fc1.weight is (64, 128), not "
        "(128, 64), norm.weight is (3,), not (64,)"
    )
    assert_refused(weights, True, message)


# --- Weights of another size ----------------------------------------------------------------------


def weights_of_type(name: str, **sizes: int) -> Pretrained:
    """What is known of weights of that size; they hold nothing."""
    config = get_config(name)
    known = {**{key: config[key] for key in SIZE_FIELDS}, **sizes}
    return weights_of()._replace(tensors={}, sizes=known)


@pytest.mark.parametrize(
    ("asked", "weights", "message"),
    [
        (
            "ViT-B_32",
            weights_of_type("ViT-S_16"),
            "it has patch_size 16, not 32, embed_dim 384, not 768, mlp_dim 1536, not 3072; "
            "use --model_type ViT-S_16",
        ),
        (
            "ViT-B_16",
            weights_of_type("ViT-B_16", depth=13),
            "it has depth 13, not 12, which no --model_type has",
        ),
        # The advice must not name the type of the same size, whose heads are others.
        (
            "ViT-B_16",
            weights_of_type("ViT-B_16", num_heads=16),
            "it has num_heads 16, not 12, which no --model_type has",
        ),
    ],
)
def test_sizes_that_differ_are_named_with_the_model_type_that_fits(asked, weights, message):
    with pytest.raises(WeightsError, match=f"^{re.escape(message)}$"):
        adapt_config(get_config(asked), weights)


def test_the_config_takes_parts_and_constants_from_the_weights_and_keeps_the_rest():
    weights = weights_of(
        num_registers=4,
        pre_norm=True,
        layer_scale=0.5,
        activation="gelu_tanh",
        layer_norm_eps=1e-3,
        img_size=64,
        dropout=0.5,
    )
    asked = small_config(img_size=48, patch_stride=12, dropout=0.1, drop_path=0.2)
    expected = {
        **asked.to_dict(),
        "num_registers": 4,
        "pre_norm": True,
        "layer_scale": 1e-5,
        "activation": "gelu_tanh",
        "layer_norm_eps": 1e-3,
    }
    before = asked.to_json()
    adapted = adapt_config(asked, weights)
    assert adapted.to_dict() == expected
    assert adapted.is_locked
    assert asked.to_json() == before


# --- Files ----------------------------------------------------------------------------------------

SIZES = {
    "img_size": 4,
    "patch_size": 2,
    "embed_dim": 8,
    "num_heads": 2,
    "depth": 2,
    "mlp_dim": 6,
}


def tiny(**fields: object) -> ConfigDict:
    return small_config(**SIZES, **fields)


def tiny_tensors(**fields: object) -> dict[str, Tensor]:
    """In timm's layout, which is ours."""
    return {**random_model(tiny(**fields), 3, seed=1).state_dict()}


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("weights") / "weights.pth"


def opened(path: Path, tensors: dict[str, Tensor]) -> Pretrained:
    torch.save(tensors, path)
    return open_pretrained(path)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "float8_e4m3fn"])
def test_other_floats_are_converted_and_that_is_said(path, dtype):
    tensors = tiny_tensors()
    converted = {key: value.to(getattr(torch, dtype)) for key, value in tensors.items()}
    converted["cls_token"] = tensors["cls_token"]
    weights = opened(path, converted)
    assert weights.notes == (f"{len(tensors) - 1} tensors converted from {dtype}",)
    assert all(value.dtype == torch.float32 for value in weights.tensors.values())
    assert_equal(weights.tensors, {key: value.float() for key, value in converted.items()})


def test_strided_weights_end_contiguous(path):
    # MPS computes wrong with parameters that are not contiguous (pytorch #192212).
    tensors = tiny_tensors()
    strided = {k: v.mT.contiguous().mT if v.ndim > 1 else v for k, v in tensors.items()}
    assert not strided["blocks.0.mlp.fc1.weight"].is_contiguous()
    weights = opened(path, strided)
    assert all(value.is_contiguous() for value in weights.tensors.values())
    model = random_model(tiny(), 3, seed=2)
    load_pretrained(model, weights, keep_head=True)
    assert all(p.is_contiguous() and p.dtype == torch.float32 for p in model.parameters())
    assert_equal({**model.state_dict()}, tensors)


@pytest.mark.parametrize("dtype", ["int64", "bool", "complex64", "float4_e2m1fn_x2"])
def test_a_weight_that_is_no_float_is_refused(path, dtype):
    kind = getattr(torch, dtype)
    is_packed = dtype.startswith("float4")
    odd = torch.zeros(8, dtype=torch.uint8).view(kind) if is_packed else torch.zeros(8, dtype=kind)
    message = rf"^norm\.weight is {dtype}, not a floating-point type$"
    with pytest.raises(WeightsError, match=message):
        opened(path, {**tiny_tensors(), "norm.weight": odd})


def test_what_is_not_needed_may_be_of_any_type(path):
    weights = opened(path, {**tiny_tensors(), "position_ids": torch.arange(5)})
    assert weights.unused == ("position_ids",)
    assert weights.notes == ()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_numbers_that_are_not_finite_are_named(path, value):
    tensors = {key: tensor.double() for key, tensor in tiny_tensors().items()}
    for key in ("head.bias", "blocks.1.attn.qkv.weight"):
        tensors[key].view(-1)[-1] = value
    named = r"(blocks\.1\.attn\.qkv\.weight|head\.bias)"
    message = f"^not finite: {named}, {named}; the file is damaged or overflowed$"
    with pytest.raises(WeightsError, match=message):
        opened(path, tensors)


def test_our_own_weights_must_be_finite_as_well():
    tensors = {**weights_of().tensors, "norm.bias": torch.full((64,), float("nan"))}
    with pytest.raises(WeightsError, match=r"^not finite: norm\.bias;"):
        own_pretrained(tensors, small_config().to_dict(), NORMALIZATION)


def test_what_a_vit_cannot_be_without_is_named(path):
    keys = ["pos_embed", "blocks.0.mlp.fc1.weight"]
    tensors = {key: value for key, value in tiny_tensors().items() if key not in keys}
    with pytest.raises(WeightsError, match=rf"^missing {', '.join(map(re.escape, keys))}$"):
        opened(path, tensors)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("patch_embed.proj.weight", (8, 12)),
        ("patch_embed.proj.weight", (8, 1, 2, 2)),
        ("patch_embed.proj.weight", (8, 3, 2, 2, 2)),
        ("pos_embed", (5, 8)),
        ("blocks.0.mlp.fc1.weight", (48,)),
        ("pos_embed", (1, 0, 8)),
        ("reg_token", ()),
        ("reg_token", (4, 8)),
    ],
)
def test_tensors_that_are_not_of_a_vit_for_rgb_images_are_refused(path, key, shape):
    with pytest.raises(WeightsError, match=r"not a ViT for RGB images$"):
        opened(path, {**tiny_tensors(), key: torch.zeros(shape)})


# --- Positions of registers -----------------------------------------------------------------------


@pytest.mark.parametrize("side", [3, 4])
def test_positions_of_registers_are_added_to_them(path, side):
    config = {**SIZES, "img_size": 2 * side, "num_registers": 2}
    tensors = {**random_model(small_config(**config), 3, seed=1).state_dict()}
    positions = torch.arange(float((1 + 2 + side**2) * 8)).view(1, -1, 8)
    weights = opened(path, {**tensors, "pos_embed": positions})
    expected = torch.cat((positions[:, :1], positions[:, 3:]), dim=1)
    assert torch.equal(weights.tensors["pos_embed"], expected)
    assert torch.equal(weights.tensors["reg_token"], tensors["reg_token"] + positions[:, 1:3])
    assert weights.architecture["num_registers"] == 2
    assert weights.architecture["pos_class_token"]
    tensors["reg_token"] = torch.zeros(1, 2, 9)  # not of the positions' width
    assert "reg_token" in opened(path, {**tensors, "pos_embed": positions}).tensors


# --- Whatever a file holds ------------------------------------------------------------------------

KINDS = {
    "plain": {},
    "dinov2": {"num_registers": 2, "layer_scale": 0.5},
    "clip": {"pre_norm": True, "pos_class_token": False},
    "siglip": {"class_token": False, "pool": "map"},
    "avg": {"pool": "avg"},
    "parts": {"head": "parts"},
}


@given(
    kind=st.sampled_from(sorted(KINDS)),
    is_theirs=st.booleans(),
    data=st.data(),
    keep_head=st.booleans(),
)
@settings(SETTINGS, max_examples=30)
def test_weights_of_any_shape_are_taken_as_they_are_or_refused(
    path, kind, is_theirs, data, keep_head
):
    tensors = tiny_tensors(**KINDS[kind])
    if is_theirs:
        assume(kind in ("plain", "parts"))
        tensors = in_their_names(tensors)
    key = data.draw(st.sampled_from(sorted(tensors)))
    shape = data.draw(st.lists(st.integers(0, 9), max_size=5).map(tuple))
    tensors[key] = torch.ones(shape)
    config = tiny(head=KINDS[kind].get("head", "token"))
    try:
        weights = opened(path, tensors)
        model = random_model(adapt_config(config, weights), 3, seed=2)
        report = load_pretrained(model, weights, keep_head)
    except WeightsError as error:
        message = str(error)
    else:
        message = ""
        fates = [*report.loaded, *report.resized, *report.new]
        assert sorted(fates) == sorted(model.state_dict())
    assert "\n" not in message
