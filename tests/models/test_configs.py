"""The registry of model configs."""

import subprocess
import sys
from pathlib import Path

import pytest

from models.configs import get_config, model_names, patch_sizes

REPO = Path(__file__).resolve().parents[2]
NAMES = (
    "testing", "ViT-Ti_16", "ViT-S_16", "ViT-S_32", "ViT-B_16", "ViT-B_32", "ViT-L_16", "ViT-L_32",
    "ViT-H_14",
)  # fmt: skip


def test_the_registered_names():
    assert model_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_config_is_consistent(name):
    config = get_config(name)
    assert config.embed_dim % config.num_heads == 0
    assert config.img_size == 224
    assert config.img_size % config.patch_size == 0
    assert config.layer_norm_eps == 1e-6
    assert config.pool == "token"


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
    assert untouched.to_json() == before
    assert get_config(name).to_json() == before
    assert patch_sizes()[name] == untouched.patch_size


def test_the_image_size_goes_into_the_copy_alone():
    assert get_config("testing", 64).img_size == 64
    assert get_config("testing").img_size == 224


def test_patch_sizes_and_names_are_copies_too():
    patch_sizes().clear()
    assert tuple(patch_sizes()) == model_names()


@pytest.mark.parametrize("img_size", [None, 64])
def test_a_config_takes_no_new_field(img_size):
    config = get_config("testing", img_size)
    assert config.is_locked
    with pytest.raises(AttributeError, match="heads"):
        config.heads = 3


def test_a_config_keeps_the_type_of_a_field():
    with pytest.raises(TypeError, match="depth"):
        get_config("testing").depth = 2.5


@pytest.mark.parametrize("name", ["vit-b_16", "ViT-B_17", ""])
def test_an_unknown_name_lists_the_known(name):
    with pytest.raises(ValueError, match=f"unknown model type '{name}'; known: testing, ViT-Ti_16"):
        get_config(name)


def test_names_cost_no_torch():
    code = "import sys; from models.configs import model_names; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPO, check=True)
