"""Pixel statistics, LayerNorm eps and activation: what the files beside the weights say of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from small_models import random_model, small_config

from models.layers import ACTIVATIONS
from models.pretrained.layouts import LAYOUTS
from models.pretrained.profiles import (
    AUTO,
    CLIP,
    CLIP_QUICKGELU,
    GOOGLE,
    IMAGENET,
    PROFILES,
    SIGLIP,
    ProfileError,
    default_profile,
)
from models.pretrained.sidecar import Sidecar, read_sidecar
from models.pretrained.weights import Pretrained, open_pretrained

REPO = Path(__file__).resolve().parents[2]
SETTINGS = settings(max_examples=100)
NAMES = ("config.json", "preprocessor_config.json")

HF_VIT = {
    "model_type": "vit",
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 224,
}
PROCESSOR = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "do_resize": True}
TIMM = {
    "architecture": "vit_small_patch16_224",
    "num_classes": 1000,
    "pretrained_cfg": {
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "input_size": [3, 224, 224],
    },
}


def write(folder: Path, config: object = None, processor: object = None) -> Path:
    for name, value in zip(NAMES, (config, processor), strict=True):
        path = folder / name
        path.unlink(missing_ok=True)
        if value is not None:
            text = value if isinstance(value, bytes) else json.dumps(value).encode()
            path.write_bytes(text)
    return folder


# --- The profiles ---------------------------------------------------------------------------------


def test_the_profiles_by_name():
    half, mean, std = (0.5,) * 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    clip_mean = (0.48145466, 0.4578275, 0.40821073)
    clip_std = (0.26862954, 0.26130258, 0.27577711)
    expected = {
        "google": (half, half, 1e-6, "gelu"),
        "imagenet": (mean, std, 1e-6, "gelu"),
        "clip": (clip_mean, clip_std, 1e-5, "gelu"),
        "clip-quickgelu": (clip_mean, clip_std, 1e-5, "quick_gelu"),
        "siglip": (half, half, 1e-6, "gelu"),
    }
    assert expected == PROFILES
    assert AUTO not in PROFILES


def test_a_profile_in_words_and_as_normalization():
    assert CLIP_QUICKGELU.describe() == (
        "mean 0.4815 0.4578 0.4082, std 0.2686 0.2613 0.2758, LayerNorm eps 1e-05, quick_gelu"
    )
    assert GOOGLE.normalization == {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


@pytest.mark.parametrize(
    ("layout", "pre_norm", "attention_pool", "profile"),
    [
        ("google", False, False, GOOGLE),
        ("jeonsworld", False, False, GOOGLE),
        ("transfg", False, False, IMAGENET),
        ("timm", False, False, IMAGENET),
        ("timm", True, False, CLIP),
        ("timm", False, True, SIGLIP),
        ("torchvision", False, False, IMAGENET),
        ("hf-dinov2", False, False, IMAGENET),
        ("hf-vit", False, False, GOOGLE._replace(layer_norm_eps=1e-12)),
    ],
)
def test_the_default_of_a_layout(layout, pre_norm, attention_pool, profile):
    usual = {each.name: each.profile for each in LAYOUTS}[layout]
    assert default_profile(layout, usual, pre_norm, attention_pool) == profile


def test_profiles_cost_no_torch():
    code = "import sys, models.pretrained.profiles; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPO, check=True)


# --- What is beside the weights -------------------------------------------------------------------


def test_no_file_says_nothing(tmp_path):
    assert read_sidecar(tmp_path) == Sidecar()
    assert read_sidecar(tmp_path / "no folder") == Sidecar()


@pytest.mark.parametrize("model_type", ["vit", "deit", "dinov2", "dinov2_with_registers"])
def test_hugging_face_s_config(tmp_path, model_type):
    said = read_sidecar(write(tmp_path, {**HF_VIT, "model_type": model_type}))
    assert said == Sidecar(
        sources=("config.json",),
        layer_norm_eps=1e-12,
        activation="gelu",
        sizes={"embed_dim": 64, "depth": 3, "num_heads": 4},
    )


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("gelu", "gelu"),
        ("gelu_python", "gelu"),
        ("quick_gelu", "quick_gelu"),
        ("gelu_new", "gelu_tanh"),
        ("gelu_fast", "gelu_tanh"),
        ("gelu_pytorch_tanh", "gelu_tanh"),
    ],
)
def test_an_activation_of_hugging_face(tmp_path, theirs, ours):
    said = read_sidecar(write(tmp_path, {**HF_VIT, "hidden_act": theirs}))
    assert said.activation == ours
    assert ours in ACTIVATIONS


def test_hugging_face_s_files_may_say_less(tmp_path):
    said = read_sidecar(write(tmp_path, {"model_type": "vit", "hidden_size": None}))
    assert said == Sidecar(sources=("config.json",))
    said = read_sidecar(write(tmp_path, processor=PROCESSOR))
    assert said == Sidecar(("preprocessor_config.json",), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize("left_out", ["image_mean", "image_std"])
def test_half_a_normalization_says_nothing(tmp_path, left_out):
    processor = {key: value for key, value in PROCESSOR.items() if key != left_out}
    assert read_sidecar(write(tmp_path, processor=processor)) == Sidecar()
    processor[left_out] = None
    assert read_sidecar(write(tmp_path, processor=processor)) == Sidecar()


@pytest.mark.parametrize(
    "config", [TIMM, {**TIMM, **TIMM["pretrained_cfg"], "pretrained_cfg": None}]
)
def test_timm_s_config_of_now_and_before(tmp_path, config):
    assert read_sidecar(write(tmp_path, config)) == Sidecar(
        *(("config.json",), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 1e-6, "gelu"),
        inferred=("layer_norm_eps", "activation"),
    )


def test_timm_s_tag_tells_the_quick_gelu_where_its_architecture_does_not(tmp_path):
    clip = {"architecture": "vit_base_patch16_clip_224", "pretrained_cfg": {"tag": "openai"}}
    assert read_sidecar(write(tmp_path, clip)).activation == "quick_gelu"
    clip["pretrained_cfg"]["tag"] = "openai_ft_in1k"  # tuned further, without it
    assert read_sidecar(write(tmp_path, clip)).activation == "gelu"


def test_timm_s_arguments_go_before_its_architecture(tmp_path):
    arguments = {"act_layer": "gelu_tanh", "embed_dim": 64, "num_heads": 4, "qk_norm": 1}
    said = read_sidecar(write(tmp_path, {**TIMM, "model_args": arguments}))
    assert said.activation == "gelu_tanh"
    assert said.sizes == {"embed_dim": 64, "num_heads": 4}


def test_open_clip_s_config_counts_where_no_other_says_anything(tmp_path):
    tower = {"width": 64, "layers": 3}
    images = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    config = {"model_cfg": {"vision_cfg": tower, "quick_gelu": True}, "preprocess_cfg": images}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config), "utf-8")
    said = read_sidecar(write(tmp_path, {"model_type": "clip"}))
    assert said == Sidecar(
        *(("open_clip_config.json",), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 1e-5, "quick_gelu"),
        sizes={"embed_dim": 64, "depth": 3},
        inferred=("layer_norm_eps",),
    )
    assert read_sidecar(write(tmp_path, TIMM)).sources == ("config.json",)
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": 3}', "utf-8")
    said = read_sidecar(write(tmp_path, {}))
    assert (said.mean, said.activation, said.sizes) == (None, "gelu", {})


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "clip_vision_model", "layer_norm_eps": "?"},
        {"model_type": ["vit"]},
        {"name": "mine", "mean": "no"},
        {"model_type": None},
    ],
)
def test_a_config_of_another_library_says_nothing(tmp_path, config):
    assert read_sidecar(write(tmp_path, config)) == Sidecar()


# --- Files that cannot be used --------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_pipe_beside_the_weights_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(ProfileError, match=f"{name} is not a file; remove it"):
        read_sidecar(tmp_path)


NOT_JSON, NOT_AN_OBJECT = "is not readable as JSON", "is not a JSON object"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", NOT_JSON),
        (b'{"a": 1', NOT_JSON),
        (b'{"a":' * 100_000, NOT_JSON),
        (b'{"a": ' + b"9" * 5000 + b"}", NOT_JSON),
        (b"[]", NOT_AN_OBJECT),
        (None, NOT_JSON),  # a folder
    ],
    ids=["empty", "cut", "deep", "long", "list", "folder"],
)
def test_a_malformed_file_is_refused(tmp_path, name, content, problem):
    if content is None:
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ProfileError, match=rf"{name} {problem}; mend or remove it, or name a "):
        read_sidecar(tmp_path)


@pytest.mark.parametrize(
    "value",
    [
        0.5,
        [0.5] * 4,
        [0.5, 0.5, "0.5"],
        [True] * 3,
        {},
        [0.5, 0.5, float("nan")],
        [0.5, 0.5, float("inf")],
        [0.5, 0.5, 10**400],
    ],
    ids=lambda value: str(value)[:30],
)
@pytest.mark.parametrize("field", ["mean", "std"])
def test_what_is_not_a_normalization_is_refused(tmp_path, field, value):
    message = "is not a mean or standard deviation per RGB channel$"
    write(tmp_path, processor={**PROCESSOR, f"image_{field}": value})
    with pytest.raises(ProfileError, match=rf"preprocessor_config\.json: .* {message}"):
        read_sidecar(tmp_path)
    write(tmp_path, {"architecture": "vit_base_patch16_224", "mean": None, field: value})
    with pytest.raises(ProfileError, match=rf"[/\\]config\.json: .* {message}"):
        read_sidecar(tmp_path)


@pytest.mark.parametrize("value", [0, 0.0, -0.5])
def test_a_standard_deviation_is_above_0_and_a_mean_need_not_be(tmp_path, value):
    values = [0.5, 0.5, value]
    write(tmp_path, processor={**PROCESSOR, "image_std": values})
    with pytest.raises(ProfileError, match=r"is not a mean or standard deviation per RGB channel$"):
        read_sidecar(tmp_path)
    write(tmp_path, processor={**PROCESSOR, "image_mean": values})
    assert read_sidecar(tmp_path).mean == tuple(values)


@pytest.mark.parametrize("value", [0, 1, -1e-6, "1e-6", True, float("nan"), 10**400])
def test_what_is_not_an_eps_is_refused(tmp_path, value):
    write(tmp_path, {**HF_VIT, "layer_norm_eps": value})
    with pytest.raises(ProfileError, match=r"config\.json: .* is not a LayerNorm eps$"):
        read_sidecar(tmp_path)


@pytest.mark.parametrize("value", ["relu", "", 3, True, ["gelu"]], ids=str)
@pytest.mark.parametrize(
    "config_with",
    [
        lambda value: {**HF_VIT, "hidden_act": value},
        lambda value: {**TIMM, "model_args": {"act_layer": value}},
    ],
    ids=["hugging face", "timm"],
)
def test_an_unknown_activation_is_refused(tmp_path, config_with, value):
    write(tmp_path, config_with(value))
    with pytest.raises(ProfileError, match=r"config\.json: the activation .* is not one of ours$"):
        read_sidecar(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = (
    *HF_VIT,
    *TIMM,
    *PROCESSOR,
    "model_args",
    "mean",
    "std",
    "act_layer",
    "embed_dim",
    "depth",
)


@st.composite
def odd_configs(draw) -> object:
    """A right config or none of ours, with fields replaced by anything."""
    config = dict(draw(st.sampled_from((HF_VIT, TIMM, PROCESSOR, {}))))
    return config | draw(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("odd")


@given(config=odd_configs(), processor=odd_configs())
@SETTINGS
def test_whatever_the_files_hold_it_is_a_sidecar_or_a_profile_error(folder, config, processor):
    write(folder, config, processor)
    try:
        said = read_sidecar(folder)
    except ProfileError:
        return
    assert said.activation is None or said.activation in ACTIVATIONS
    assert said.layer_norm_eps is None or 0 < said.layer_norm_eps < 1
    assert all(type(value) is int for value in said.sizes.values())
    for values in (said.mean, said.std):
        assert values is None or [type(value) for value in values] == [float] * 3
    assert said.std is None or min(said.std) > 0


# --- What is said and what is assumed -------------------------------------------------------------

# The weights of one of our models are a file of timm's layout.
PARTS = {
    "plain": {},
    "clip": {"pre_norm": True},
    "siglip": {"class_token": False, "pool": "map"},
}


def open_beside(
    folder: Path,
    config: object = None,
    processor: object = None,
    profile: str = AUTO,
    kind: str = "plain",
) -> Pretrained:
    """The profile of a file with those files beside it."""
    model = random_model(small_config(**PARTS[kind]), 2, seed=0)
    save_file(model.state_dict(), folder / "model.safetensors")
    write(folder, config, processor)
    return open_pretrained(folder / "model.safetensors", profile)


EVERYTHING = "mean, std, layer_norm_eps, activation"


@pytest.mark.parametrize(
    ("kind", "profile"), [("plain", IMAGENET), ("clip", CLIP), ("siglip", SIGLIP)]
)
def test_alone_everything_is_assumed_and_said_so(tmp_path, kind, profile):
    weights = open_beside(tmp_path, kind=kind)
    assert weights.profile == profile
    assert weights.assumed == f"no file beside says {EVERYTHING}: assumed {profile.describe()}"
    assert "num_heads" not in weights.sizes


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ((HF_VIT, None), "config.json does not say mean, std: assumed mean 0.485 "),
        (
            (None, PROCESSOR),
            "preprocessor_config.json does not say layer_norm_eps, activation: assumed mean 0.1 ",
        ),
        (
            ({**HF_VIT, "hidden_act": None}, PROCESSOR),
            "config.json and preprocessor_config.json do not say activation: assumed mean 0.1 ",
        ),
        ((HF_VIT, PROCESSOR), ""),
        ((TIMM, None), ""),
    ],
)
def test_beside_files_the_rest_is_assumed(tmp_path, files, said):
    weights = open_beside(tmp_path, *files)
    assert weights.assumed.startswith(said)
    assert bool(weights.assumed) == bool(said)
    assert (weights.profile.mean == (0.1, 0.2, 0.3)) == (files != (HF_VIT, None))


@pytest.mark.parametrize("name", PROFILES)
def test_a_named_profile_wins_and_no_file_is_read(tmp_path, name):
    weights = open_beside(tmp_path, {**HF_VIT, "hidden_size": 768}, b"{", profile=name)
    assert weights.profile == PROFILES[name]
    assert weights.assumed == ""
    assert "num_heads" not in weights.sizes


@pytest.mark.parametrize(
    ("config", "differing"),
    [
        ({**TIMM, "model_args": {"depth": 12}}, "depth 12 where the weights have 3"),
        (
            {**HF_VIT, "hidden_size": 768, "num_hidden_layers": 12},
            "embed_dim 768 where the weights have 64, depth 12 where the weights have 3",
        ),
    ],
)
def test_a_config_of_other_sizes_is_refused(tmp_path, config, differing):
    message = (
        rf"config\.json describes another model \({differing}\); remove it, or name a "
        r"--pretrained_profile$"
    )
    with pytest.raises(ProfileError, match=message):
        open_beside(tmp_path, config)
