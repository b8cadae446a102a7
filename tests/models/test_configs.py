"""The registry of model configs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import small_config, small_sizes

from models.configs import (
    SIZE_FIELDS,
    complete_config,
    get_config,
    grid_side,
    model_names,
    num_prefix_tokens,
    num_tokens,
    patch_centers,
    patch_sizes,
    types_of_size,
)

REPO = Path(__file__).resolve().parents[2]
NAMES = (
    "testing",
    "ViT-Ti_16",
    "ViT-S_14",
    "ViT-S_16",
    "ViT-S_32",
    "ViT-B_14",
    "ViT-B_16",
    "ViT-B_32",
    "ViT-L_14",
    "ViT-L_16",
    "ViT-L_32",
    "ViT-H_14",
)
SIZES = {
    "patch_size": 16,
    "embed_dim": 64,
    "depth": 3,
    "num_heads": 4,
    "mlp_dim": 128,
    "img_size": 224,
}
PLAIN = {
    "head": "token",
    "patch_stride": 16,
    "pool": "token",
    "layer_norm_eps": 1e-6,
    "activation": "gelu",
    "class_token": True,
    "pos_class_token": True,
    "num_registers": 0,
    "pre_norm": False,
    "layer_scale": None,
    "dropout": 0.0,
    "drop_path": 0.0,
}


# --- The registered ones --------------------------------------------------------------------------


def test_the_registered_names():
    assert model_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_config_is_consistent(name):
    config = get_config(name)
    assert config.embed_dim % config.num_heads == 0
    assert config.img_size == 224
    assert config.img_size % config.patch_size == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_registered_model_is_a_plain_vit(name):
    config = get_config(name)
    sizes = {key: config[key] for key in SIZES}
    assert config.to_dict() == {**PLAIN, **sizes, "patch_stride": config.patch_size}


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_published_config_has_the_paper_s_ratios(name):
    # Dosovitskiy et al. 2021, table 1; Touvron et al. 2021, table 1; H has heads of 80.
    config = get_config(name)
    assert config.mlp_dim == 4 * config.embed_dim
    assert config.embed_dim // config.num_heads == (80 if name == "ViT-H_14" else 64)
    assert config.patch_size == int(name.rpartition("_")[2])


def test_patch_sizes_are_those_of_the_configs():
    assert patch_sizes() == {name: get_config(name).patch_size for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_a_lookup_is_a_fresh_copy(name):
    before = get_config(name).to_json()
    changed = get_config(name)
    untouched = get_config(name)
    for key in ("patch_size", "embed_dim", "depth", "num_heads", "mlp_dim", "img_size"):
        changed[key] += 1
    changed.pool = "avg"
    changed.layer_norm_eps = 0.5
    changed.layer_scale = 1e-5
    assert untouched.to_json() == before
    assert get_config(name).to_json() == before
    assert patch_sizes()[name] == untouched.patch_size


def test_patch_sizes_and_names_are_copies_too():
    patch_sizes().clear()
    assert tuple(patch_sizes()) == model_names()


@pytest.mark.parametrize("name", ["vit-b_16", "ViT-B_17", ""])
def test_an_unknown_name_lists_the_known(name):
    with pytest.raises(ValueError, match=f"unknown model type '{name}'; known: testing, ViT-Ti_16"):
        get_config(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_type_is_found_by_its_sizes(name):
    config = get_config(name)
    assert types_of_size({key: config[key] for key in SIZE_FIELDS}) == (name,)


def test_sizes_that_no_type_has():
    config = get_config("ViT-B_16")
    assert types_of_size({**{key: config[key] for key in SIZE_FIELDS}, "depth": 13}) == ()


def test_names_cost_no_torch():
    code = "import sys; from models.configs import model_names; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPO, check=True)


# --- Fields ---------------------------------------------------------------------------------------


def test_the_image_size_goes_into_the_copy_alone():
    assert get_config("testing", 64).img_size == 64
    assert get_config("testing").img_size == 224


def test_other_fields_go_into_the_copy_alone():
    changed = get_config("testing", 64, head="parts", num_registers=4, layer_scale=1e-5, depth=5)
    given_fields = {
        "img_size": 64,
        "head": "parts",
        "num_registers": 4,
        "layer_scale": 1e-5,
        "depth": 5,
    }
    assert changed.to_dict() == {**SIZES, **PLAIN, **given_fields}
    assert get_config("testing").to_dict() == {**SIZES, **PLAIN}


@pytest.mark.parametrize("img_size", [None, 64])
def test_a_config_takes_no_new_field(img_size):
    config = get_config("testing", img_size)
    assert config.is_locked
    with pytest.raises(AttributeError, match="heads"):
        config.heads = 3


@pytest.mark.parametrize(
    ("field", "value"), [("depth", 2.5), ("layer_norm_eps", "small"), ("pre_norm", "no")]
)
def test_a_config_keeps_the_type_of_a_field(field, value):
    with pytest.raises(TypeError, match=field):
        get_config("testing")[field] = value


def test_the_patches_do_not_overlap_unless_asked_to():
    assert get_config("testing", patch_size=8).patch_stride == 8
    assert get_config("testing", patch_stride=None).patch_stride == 16
    assert get_config("testing", patch_stride=12).patch_stride == 12


def test_sizes_are_completed_to_a_plain_vit():
    config = complete_config(SIZES)
    assert config.to_dict() == {**SIZES, **PLAIN}
    assert config.is_locked


def test_a_whole_config_is_complete():
    fields = get_config("testing", 448, head="parts", patch_stride=12, layer_scale=1e-5).to_dict()
    assert complete_config(fields).to_dict() == fields


def test_the_config_of_an_older_checkpoint_is_completed():
    fields = {
        "patch_size": 8,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 2,
        "mlp_dim": 48,
        "layer_norm_eps": 1e-5,
        "pool": "avg",
        "img_size": 64,
    }
    assert complete_config(fields).to_dict() == {**PLAIN, **fields, "patch_stride": 8}


def test_completing_leaves_its_argument_alone():
    fields = dict(SIZES)
    complete_config(fields).depth = 7
    assert fields == SIZES


@pytest.mark.parametrize("missing", SIZES)
def test_a_size_has_no_default(missing):
    fields = {key: value for key, value in SIZES.items() if key != missing}
    with pytest.raises(ValueError, match=f"^model config has no {missing}$"):
        complete_config(fields)


def test_all_wrong_fields_are_listed():
    fields = {**SIZES, "heads": 3, "window": 7}
    del fields["depth"], fields["mlp_dim"]
    message = "^model config has no depth, no mlp_dim, unknown heads, unknown window$"
    with pytest.raises(ValueError, match=message):
        complete_config(fields)


def test_a_lookup_refuses_an_unknown_field():
    with pytest.raises(ValueError, match=r"^model config has unknown heads$"):
        get_config("testing", 32, heads=3)


# --- Tokens ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "img_size", "fields", "side", "tokens"),
    [
        ("ViT-B_16", None, {}, 14, 197),
        ("ViT-B_16", 448, {}, 28, 785),
        ("ViT-B_16", 448, {"patch_stride": 12}, 37, 1370),  # the paper's overlap
        ("ViT-B_16", 16, {"patch_stride": 12}, 1, 2),
        ("ViT-B_16", 27, {"patch_stride": 12}, 1, 2),
        ("ViT-B_16", 28, {"patch_stride": 12}, 2, 5),
        ("ViT-B_14", 518, {}, 37, 1370),
        ("ViT-S_14", None, {"num_registers": 4}, 16, 261),
        ("ViT-B_16", None, {"class_token": False}, 14, 196),
        ("ViT-B_16", None, {"class_token": False, "num_registers": 3}, 14, 199),
        ("ViT-B_16", None, {"pos_class_token": False}, 14, 197),
    ],
)
def test_how_many_tokens_there_are(name, img_size, fields, side, tokens):
    config = get_config(name, img_size, **fields)
    assert grid_side(config) == side
    assert num_tokens(config) == tokens
    assert num_prefix_tokens(config) == tokens - side**2
    assert patch_centers(config).shape == (side**2, 2)


@given(sizes=small_sizes(), class_token=st.booleans(), registers=st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_a_patch_s_center_is_the_mean_of_its_pixels_centers(sizes, class_token, registers):
    config = small_config(**sizes, class_token=class_token, num_registers=registers)
    middles = (torch.arange(config.img_size, dtype=torch.float64) + 0.5) / config.img_size
    y, x = torch.meshgrid(middles, middles, indexing="ij")
    # As a convolution visits them: row by row.
    pixels = F.unfold(torch.stack((x, y))[:, None], config.patch_size, stride=config.patch_stride)
    expected = pixels.mean(dim=1).T.numpy()
    centers = patch_centers(config)
    assert centers.dtype == np.float32
    assert len(centers) == grid_side(config) ** 2 == num_tokens(config) - registers - class_token
    np.testing.assert_allclose(centers, expected, atol=1e-6)
