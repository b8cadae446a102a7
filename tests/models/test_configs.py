"""The registry of model configs, and the one check of a config's fields."""

import subprocess
import sys
from pathlib import Path

import pytest

from models.configs import (
    ACTIVATION_NAMES,
    HEADS,
    POOLS,
    SIZE_FIELDS,
    ModelConfigError,
    complete_config,
    get_config,
    grid_side,
    model_names,
    num_prefix_tokens,
    num_tokens,
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
def test_a_registered_model_is_a_plain_vit_that_its_sizes_find(name):
    config = get_config(name)
    sizes = {key: config[key] for key in SIZES}
    assert config.to_dict() == {**PLAIN, **sizes, "patch_stride": config.patch_size}
    assert config.img_size == 224
    assert types_of_size({key: config[key] for key in SIZE_FIELDS}) == (name,)


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_published_config_has_the_paper_s_ratios(name):
    # Dosovitskiy et al. 2021, table 1; Touvron et al. 2021, table 1; H has heads of 80.
    config = get_config(name)
    assert config.mlp_dim == 4 * config.embed_dim
    assert config.embed_dim // config.num_heads == (80 if name == "ViT-H_14" else 64)
    assert config.patch_size == int(name.rpartition("_")[2])


def test_a_lookup_is_a_fresh_copy_with_the_given_fields():
    fields = {"head": "parts", "num_registers": 4, "layer_scale": 1e-5, "depth": 5}
    changed = get_config("testing", 64, **fields)
    assert changed.to_dict() == {**SIZES, **PLAIN, **fields, "img_size": 64}
    changed.embed_dim = 8
    assert get_config("testing").to_dict() == {**SIZES, **PLAIN}


@pytest.mark.parametrize("name", ["vit-b_16", "ViT-B_17", ""])
def test_an_unknown_name_lists_the_known(name):
    with pytest.raises(ValueError, match=f"unknown model type '{name}'; known: testing, ViT-Ti_16"):
        get_config(name)


def test_names_cost_no_torch():
    code = "import sys; from models.configs import model_names; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPO, check=True)


# --- Fields ---------------------------------------------------------------------------------------


def test_a_config_takes_no_new_field_and_keeps_the_types():
    config = get_config("testing")
    assert config.is_locked
    with pytest.raises(AttributeError, match="heads"):
        config.heads = 3
    with pytest.raises(TypeError, match="depth"):
        config.depth = 2.5


def test_the_patches_do_not_overlap_unless_asked_to():
    assert get_config("testing", 64, patch_size=8).patch_stride == 8
    assert get_config("testing", patch_stride=None).patch_stride == 16
    assert get_config("testing", patch_stride=12).patch_stride == 12


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
    before = dict(fields)
    completed = complete_config(fields)
    assert completed.to_dict() == {**PLAIN, **fields, "patch_stride": 8}
    completed.depth = 7
    assert fields == before


# --- The check ------------------------------------------------------------------------------------

NAN, INFINITY = float("nan"), float("inf")
# The fields of each kind, what the message says of them, and values that they must not have.
SIDE = "an integer from 1 to 65536"
SHARE = "a number from 0 to 1"
BAD_INTEGERS = (0, -1, 65537, 10**5000, 3.0, True, "3", None, [3], NAN)
BAD_SHARES = (-1e-6, 1.5, NAN, INFINITY, -INFINITY, 0, True, "0.1", [0.1])
BAD_CHOICES = ("both", "", "Token", 0, True, None, ["token"], {})
FIELDS = {
    "patch_size": (SIDE, BAD_INTEGERS),
    "embed_dim": (SIDE, BAD_INTEGERS),
    "depth": ("an integer from 1 to 1000", (*BAD_INTEGERS, 1001)),
    "num_heads": (SIDE, BAD_INTEGERS),
    "mlp_dim": (SIDE, BAD_INTEGERS),
    "img_size": (SIDE, BAD_INTEGERS),
    "head": (f"one of {', '.join(HEADS)}", BAD_CHOICES),
    "patch_stride": (SIDE, [value for value in BAD_INTEGERS if value is not None]),
    "pool": (f"one of {', '.join(POOLS)}", BAD_CHOICES),
    "layer_norm_eps": (SHARE, (*BAD_SHARES, None)),
    "activation": (f"one of {', '.join(ACTIVATION_NAMES)}", (*BAD_CHOICES, "relu")),
    "class_token": ("true or false", (0, 1, "yes", None)),
    "pos_class_token": ("true or false", (0, 1, "yes", None)),
    "num_registers": ("an integer from 0 to 65536", [v for v in BAD_INTEGERS if v != 0]),
    "pre_norm": ("true or false", (0, 1, "yes", None)),
    "layer_scale": (SHARE, BAD_SHARES),
    "dropout": (SHARE, (*BAD_SHARES, None)),
    "drop_path": (SHARE, (*BAD_SHARES, None)),
}


@pytest.mark.parametrize("field", {**SIZES, **PLAIN})
def test_a_value_of_a_wrong_type_or_out_of_range_is_refused(field):
    allowed, values = FIELDS[field]
    for value in values:
        with pytest.raises(ModelConfigError, match=f"^model config: {field} is not {allowed}$"):
            complete_config({**SIZES, field: value})


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"num_heads": 5}, "embed_dim 64 is not a multiple of num_heads 5"),
        ({"img_size": 33}, "img_size 33 is not a multiple of patch_size 16"),
        ({"img_size": 8, "patch_stride": 4}, "img_size 8 is under patch_size 16"),
        ({"patch_stride": 17}, "patch_stride 17 is over patch_size 16"),
        ({"class_token": False}, "pool token needs a class token"),
        ({"head": "parts", "class_token": False}, "part selection needs a class token"),
        ({"head": "parts", "class_token": False, "pool": "avg"}, "part selection needs a class t"),
        ({"head": "parts", "depth": 1}, "part selection needs at least 2 blocks"),
    ],
)
def test_values_that_contradict_each_other_are_refused(fields, problem):
    with pytest.raises(ModelConfigError, match=f"^model config: {problem}"):
        get_config("testing", **fields)


def test_all_wrong_fields_are_listed_in_one_line():
    fields = {**SIZES, "heads": 3, "x" * 99: 7, 8: 9, "img_size": "32"}
    del fields["depth"], fields["mlp_dim"]
    with pytest.raises(ModelConfigError) as error:
        complete_config(fields)
    assert str(error.value) == (
        f"model config: depth is missing, mlp_dim is missing, heads is unknown, {'x' * 40} is "
        f"unknown, a field's name is not text, img_size is not {SIDE}"
    )


# --- Tokens ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "img_size", "fields", "side", "tokens"),
    [
        ("ViT-B_16", None, {}, 14, 197),
        ("ViT-B_16", 448, {}, 28, 785),
        ("ViT-B_16", 448, {"patch_stride": 12}, 37, 1370),  # the paper's overlap
        ("ViT-B_16", 27, {"patch_stride": 12}, 1, 2),
        ("ViT-B_16", 28, {"patch_stride": 12}, 2, 5),
        ("ViT-B_14", 518, {}, 37, 1370),
        ("ViT-S_14", None, {"num_registers": 4}, 16, 261),
        ("ViT-B_16", None, {"class_token": False, "pool": "map", "num_registers": 3}, 14, 199),
        ("ViT-B_16", None, {"pos_class_token": False}, 14, 197),
    ],
)
def test_how_many_tokens_there_are(name, img_size, fields, side, tokens):
    config = get_config(name, img_size, **fields)
    assert grid_side(config) == side
    assert num_tokens(config) == tokens
    assert num_prefix_tokens(config) == tokens - side**2
