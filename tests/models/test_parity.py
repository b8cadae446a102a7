"""Weights that other libraries wrote give here what they give there.

All weights are random, biases, norms, tokens and heads too, so that nothing is zero by chance. The
other libraries' models are small; their files are written as they write them. A plain `.npz` of
Google's is judged by timm's reader; TransFG and ViT-pytorch by `paper_transfg`, the formulas of
their code.
"""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import paper_transfg
import pytest
import scipy.ndimage
import torch
from google_weights import google_arrays
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from safetensors.torch import save_file
from small_models import SEEDS, random_images, random_model, randomize, small_config
from timm.layers import resample_abs_pos_embed
from timm.models import create_model, save_for_hf
from timm.models.vision_transformer import VisionTransformer as TimmViT
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT
from transformers import (
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)

from models.configs import grid_side
from models.pretrained.formats import WeightsError
from models.pretrained.load import HEAD_KEYS, LoadReport, load_pretrained, resample_positions
from models.pretrained.profiles import CLIP, CLIP_QUICKGELU, GOOGLE, IMAGENET, SIGLIP, Profile
from models.pretrained.weights import Pretrained, adapt_config, open_pretrained
from models.transfg import patch_centers
from models.vit import Backbone

CLASSES = 5
SIDES = {14: (42, 56), 16: (48, 64)}  # two image sides for each patch side: 3 x 3 and 4 x 4 patches
EPS = {1e-5: partial(nn.LayerNorm, eps=1e-5), 1e-6: partial(nn.LayerNorm, eps=1e-6)}


def patch_sides(patch: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("img_size", SIDES[patch])


def spread(model: nn.Module, faint: bool = False) -> nn.Module:
    """`model` with random weights; faint: with tokens so small that the LayerNorm eps is seen."""
    randomize(model, seed=1)
    embeddings = ("embed", "cls_token", "class_token", "conv_proj")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if faint and any(part in name for part in embeddings):
                parameter *= 1e-3
    return model.eval()


def random_positions(side: int, num_prefix: int, seed: int, width: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, num_prefix + side**2, width, generator=generator)


class Loaded(NamedTuple):
    model: Backbone
    weights: Pretrained
    report: LoadReport


def load(weights: Pretrained, config: ConfigDict, keep_head: bool, **options: str) -> Loaded:
    # Random, not zero as a fresh head is: what is left as it was shows.
    model = random_model(adapt_config(config, weights), CLASSES, seed=2).eval()
    report = load_pretrained(model, weights, keep_head=keep_head, **options)
    fates = [*report.loaded, *report.resized, *report.new]
    assert sorted(fates) == sorted(model.state_dict())
    assert set(HEAD_KEYS) <= set(report.loaded if keep_head else report.new)
    assert all(p.is_contiguous() and p.dtype == torch.float32 for p in model.parameters())
    return Loaded(model, weights, report)


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.abs().max() > 0.1
    assert (theirs[0] - theirs[1]).abs().max() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


class Reference(NamedTuple):
    """A model of another library and the file that it wrote."""

    path: Path
    config: ConfigDict
    outputs: Callable[[Tensor], tuple[Tensor | None, Tensor]]  # images to logits and features
    model: nn.Module


def assert_parity(reference: Reference, profile: str = "auto", **options: str) -> Loaded:
    """Our model of the same weights gives the same features, and logits if they have a head."""
    images = random_images(reference.config, 3, seed=3)
    with torch.no_grad():
        logits, features = reference.outputs(images)
        weights = open_pretrained(reference.path, profile)
        loaded = load(weights, reference.config, keep_head=logits is not None, **options)
        output = loaded.model(images)
    assert_same(output.features, features)
    if logits is not None:
        assert_same(output.logits, logits)
    return loaded


# --- timm -----------------------------------------------------------------------------------------


def timm_model(img_size: int, faint: bool = False, **arguments: object) -> TimmViT:
    sizes = {"patch_size": 16, "embed_dim": 64, "depth": 3, "num_heads": 4, "mlp_ratio": 2}
    fields = {**sizes, "num_classes": CLASSES, **arguments}
    return spread(TimmViT(img_size=img_size, **fields), faint)


def timm_outputs(model: TimmViT, images: Tensor) -> tuple[Tensor | None, Tensor]:
    features = model.forward_head(model.forward_features(images), pre_logits=True)
    return (model(images) if model.num_classes else None), features


def of_timm(model: TimmViT, path: Path) -> Reference:
    config = small_config(
        img_size=model.patch_embed.img_size[0], patch_size=model.patch_embed.patch_size[0]
    )
    return Reference(path, config, partial(timm_outputs, model), model)


def write_timm(folder: Path, img_size: int, **arguments: object) -> Reference:
    model = timm_model(img_size, **arguments)
    save_file(model.state_dict(), folder / "model.safetensors")
    return of_timm(model, folder / "model.safetensors")


DINOV2 = {"patch_size": 14, "num_classes": 0, "init_values": 0.5}
CLIP_TOWER = {"pre_norm": True, "norm_layer": EPS[1e-5]}
TIMM_FAMILIES = {
    "vit, deit, augreg": {},
    "mean of patches": {"global_pool": "avg"},
    "dino": {"num_classes": 0},
    "deit3": {"no_embed_class": True, "init_values": 0.5},
    "dinov2": DINOV2,
    "dinov2 with registers": {**DINOV2, "reg_tokens": 4, "no_embed_class": True},
    "registers with positions": {"reg_tokens": 4},
    "registers, no class token": {
        "reg_tokens": 4,
        "class_token": False,
        "no_embed_class": True,
        "global_pool": "avg",
    },
    "clip": CLIP_TOWER,
    "clip, quick gelu": {**CLIP_TOWER, "act_layer": "quick_gelu"},
    "siglip": {"class_token": False, "global_pool": "map"},
}
TIMM_PROFILES = {"clip, quick gelu": "clip-quickgelu"}
every_timm_family = pytest.mark.parametrize(
    ("family", "img_size"),
    [
        (family, img_size)
        for family, arguments in TIMM_FAMILIES.items()
        for img_size in SIDES[arguments.get("patch_size", 16)]
    ],
)


@every_timm_family
def test_timm_s_weights_give_its_outputs(tmp_path, family, img_size):
    reference = write_timm(tmp_path, img_size, **TIMM_FAMILIES[family])
    loaded = assert_parity(reference, TIMM_PROFILES.get(family, "auto"))
    assert loaded.weights.layout == "timm"
    assert loaded.report.resized == {}
    assert loaded.report.unused == ()


HUB_SIZES = {
    "embed_dim": 64,
    "depth": 3,
    "num_heads": 4,
    "mlp_ratio": 2.0,
    "num_classes": CLASSES,
}


def as_the_hub_saves_it(folder: Path, architecture: str, img_size: int) -> Reference:
    """A small model of that name, with the `config.json` that timm writes beside it."""
    model = create_model(architecture, img_size=img_size, **HUB_SIZES)
    save_for_hf(spread(model), folder, safe_serialization=True)
    return of_timm(model, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("architecture", "profile"),
    [
        ("vit_base_patch16_224", GOOGLE),
        ("deit_small_patch16_224", IMAGENET),
        ("deit3_small_patch16_224", IMAGENET),
        ("vit_small_patch14_dinov2", IMAGENET),
        ("vit_small_patch14_reg4_dinov2", IMAGENET),
        ("vit_base_patch16_clip_224", CLIP),
        ("vit_base_patch16_clip_quickgelu_224", CLIP_QUICKGELU),
        ("vit_base_patch16_siglip_224", SIGLIP),
        ("vit_base_patch32_siglip_256", SIGLIP._replace(activation="gelu_tanh")),
        ("vit_large_patch16_siglip_512", SIGLIP._replace(activation="gelu_tanh")),
    ],
)
@pytest.mark.parametrize("side", [3, 4])
def test_files_as_timm_s_hub_has_them_give_its_outputs_and_say_their_profile(
    tmp_path, architecture, profile, side
):
    patch = int(re.search(r"patch(\d+)", architecture)[1])
    weights = assert_parity(as_the_hub_saves_it(tmp_path, architecture, side * patch)).weights
    # The config.json says it all: no profile has to be named.
    assert weights.profile == profile
    assert weights.assumed == ""
    assert weights.sizes["num_heads"] == 4


@pytest.mark.parametrize(
    ("architecture", "match"),
    [
        ("deit_tiny_distilled_patch16_224", "distilled DeiT"),
        ("beit_base_patch16_224", "not part of a timm ViT"),
        ("cait_xs24_384", "not part of a timm ViT"),
        ("eva02_base_patch14_224", "layout is none of"),
        ("samvit_base_patch16", "not part of a timm ViT"),
        ("vit_relpos_small_patch16_224", "not part of a timm ViT"),
        ("vit_base_patch16_rope_224", "not part of a timm ViT"),
        ("vit_base_patch16_rope_ape_224", "not part of a timm ViT"),
        ("vit_base_patch16_dinov3", "not part of a timm ViT"),
        ("vit_base_patch16_siglip_gap_224", "neither class token nor attention pooling"),
        # Rotary positions leave no trace among the names, but no other tower has pre-norm,
        # class token and attention pooling.
        ("vit_pe_core_small_patch16_384", r"\w"),
    ],
)
def test_timm_models_that_are_not_plain_vits_are_refused(tmp_path, architecture, match):
    model = create_model(architecture, **HUB_SIZES)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=match):
        open_pretrained(tmp_path / "model.safetensors")


# --- facebookresearch/dinov2 ----------------------------------------------------------------------


@pytest.mark.parametrize("registers", [0, 4])
@patch_sides(14)
def test_facebookresearch_s_dinov2_gives_its_outputs(tmp_path, img_size, registers):
    reference = timm_model(img_size, **DINOV2, reg_tokens=registers, no_embed_class=registers > 0)
    theirs = {key: value.clone() for key, value in reference.state_dict().items()}
    theirs["mask_token"] = torch.ones(1, 64)
    if registers:
        theirs["register_tokens"] = theirs.pop("reg_token")
        # Theirs has a position for the class token; timm adds it to the token.
        cls_position = 0.1 * random_positions(1, 0, seed=5, width=64)
        theirs["pos_embed"] = torch.cat((cls_position, theirs["pos_embed"]), dim=1)
        reference.load_state_dict(checkpoint_filter_fn(dict(theirs), reference))
    torch.save(theirs, tmp_path / "dinov2_vits14_pretrain.pth")
    loaded = assert_parity(of_timm(reference, tmp_path / "dinov2_vits14_pretrain.pth"))
    assert loaded.report.unused == ("mask_token",)
    assert loaded.weights.architecture["num_registers"] == registers


# --- Hugging Face ---------------------------------------------------------------------------------

HF_SIZES = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
HF_DINOV2 = {**HF_SIZES, "mlp_ratio": 2, "patch_size": 14, "num_labels": CLASSES}


def write_hf(folder: Path, model: nn.Module, faint: bool = False) -> Reference:
    spread(model, faint).save_pretrained(folder)
    sizes = {"img_size": model.config.image_size, "patch_size": model.config.patch_size}
    classifier = getattr(model, "classifier", None)

    def outputs(images: Tensor) -> tuple[Tensor | None, Tensor]:
        if classifier is None:
            return None, model(pixel_values=images).last_hidden_state[:, 0]
        read = []
        with classifier.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0])):
            logits = model(pixel_values=images).logits
        return logits, read[0]

    return Reference(folder / "model.safetensors", small_config(**sizes), outputs, model)


def hf_vit(img_size: int, **fields: object) -> ViTConfig:
    return ViTConfig(
        image_size=img_size, intermediate_size=128, num_labels=CLASSES, **HF_SIZES, **fields
    )


@pytest.mark.parametrize(
    ("model", "unused"),
    [
        (ViTForImageClassification, ()),
        (ViTModel, ("pooler.dense.bias", "pooler.dense.weight")),
    ],
)
@patch_sides(16)
def test_hugging_face_s_vit_gives_its_outputs(tmp_path, model, unused, img_size):
    loaded = assert_parity(write_hf(tmp_path, model(hf_vit(img_size))))
    assert loaded.weights.layout == "hf-vit"
    assert loaded.report.unused == unused
    assert loaded.weights.profile.layer_norm_eps == 1e-12
    assert loaded.weights.sizes["num_heads"] == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [("hidden_act", "gelu_new"), ("hidden_act", "quick_gelu"), ("layer_norm_eps", 1e-3)],
)
def test_hugging_face_s_config_is_obeyed(tmp_path, name, value):
    reference = write_hf(tmp_path, ViTForImageClassification(hf_vit(48, **{name: value})))
    assert_parity(reference)
    with pytest.raises(AssertionError, match="not close"):
        assert_parity(reference, "google")


def test_hugging_face_with_its_image_processor_leaves_nothing_to_assume(tmp_path):
    reference = write_hf(tmp_path, ViTForImageClassification(hf_vit(48)))
    ViTImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(
        tmp_path
    )
    weights = assert_parity(reference).weights
    assert weights.profile.normalization == {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    assert weights.assumed == ""


@pytest.mark.parametrize(
    ("model", "config"),
    [
        (Dinov2Model, Dinov2Config),
        (Dinov2WithRegistersModel, Dinov2WithRegistersConfig),
        (Dinov2ForImageClassification, Dinov2Config),
        (Dinov2WithRegistersForImageClassification, Dinov2WithRegistersConfig),
    ],
)
@patch_sides(14)
def test_hugging_face_s_dinov2_gives_its_outputs(tmp_path, model, config, img_size):
    reference = write_hf(tmp_path, model(config(image_size=img_size, **HF_DINOV2)))
    loaded = assert_parity(reference)
    assert loaded.weights.layout == "hf-dinov2"
    assert {key.rpartition(".")[2] for key in loaded.report.unused} == {"mask_token"}
    has_head = "ImageClassification" in model.__name__
    # Its classifier reads the class token and the mean of the patches.
    assert loaded.weights.architecture["pool"] == ("token_avg" if has_head else "token")


# --- torchvision ----------------------------------------------------------------------------------


def write_torchvision(folder: Path, img_size: int, faint: bool = False) -> Reference:
    model = spread(TorchvisionViT(img_size, 16, 3, 4, 64, 128, num_classes=CLASSES), faint)
    torch.save(model.state_dict(), folder / "vit_b_16.pth")

    def outputs(images: Tensor) -> tuple[Tensor, Tensor]:
        read = []
        with model.heads.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0])):
            logits = model(images)
        return logits, read[0]

    return Reference(folder / "vit_b_16.pth", small_config(img_size=img_size), outputs, model)


@pytest.mark.parametrize("is_old", [False, True], ids=["as now", "before 0.13"])
@patch_sides(16)
def test_torchvision_s_weights_give_its_outputs(tmp_path, img_size, is_old):
    reference = write_torchvision(tmp_path, img_size)
    if is_old:
        names = {"mlp.0.": "mlp.linear_1.", "mlp.3.": "mlp.linear_2."}
        weights = reference.model.state_dict()
        for new, old in names.items():
            weights = {key.replace(new, old): value for key, value in weights.items()}
        torch.save(weights, reference.path)
        assert sum("mlp.linear_" in key for key in weights) == 12
    loaded = assert_parity(reference)
    assert loaded.weights.layout == "torchvision"
    assert loaded.report.unused == ()


# --- ViT-pytorch and TransFG ----------------------------------------------------------------------


@patch_sides(16)
def test_jeonsworld_s_weights_give_its_outputs(tmp_path, img_size):
    config = small_config(img_size=img_size)
    theirs = paper_transfg.in_their_names(random_model(config, CLASSES, seed=1).state_dict())
    torch.save(theirs, tmp_path / "ckpt.bin")
    outputs = partial(paper_transfg.vit, theirs, heads=4, stride=16)
    loaded = assert_parity(Reference(tmp_path / "ckpt.bin", config, outputs, None))
    assert loaded.weights.layout == "jeonsworld"
    assert loaded.report.unused == ()


def assert_parts(loaded: Loaded, config: ConfigDict, images: Tensor, chosen: Tensor) -> None:
    """The selected patches are `chosen` (B, H), and they are not all one patch."""
    with torch.no_grad():
        parts = loaded.model(images).parts
    assert len(chosen.unique()) > 2
    torch.testing.assert_close(parts, patch_centers(config)[chosen])


@pytest.mark.parametrize(
    ("stride", "img_size"),
    [(16, 48), (16, 64), (12, 52), (12, 64)],
    ids=["48", "64", "52, overlapping", "64, overlapping"],
)
def test_transfg_s_weights_give_its_outputs_and_parts(tmp_path, stride, img_size):
    config = small_config(head="parts", img_size=img_size, patch_stride=stride)
    theirs = paper_transfg.in_their_names(random_model(config, CLASSES, seed=1).state_dict())
    torch.save({"model": theirs}, tmp_path / "sample_run_checkpoint.bin")
    run = partial(paper_transfg.transfg, theirs, heads=4, stride=stride)
    reference = Reference(
        tmp_path / "sample_run_checkpoint.bin", config, lambda images: run(images)[:2], None
    )
    loaded = assert_parity(reference)
    assert loaded.weights.layout == "transfg"
    assert loaded.report.unused == ()
    images = random_images(config, 5, seed=4)
    assert_parts(loaded, config, images, run(images)[2])


# --- Google's .npz --------------------------------------------------------------------------------


def write_google(
    folder: Path, img_size: int, faint: bool = False, prefix: str = "", pre_logits: bool = False
) -> Reference:
    config = small_config(img_size=img_size)
    ours = spread(random_model(config, CLASSES, seed=1), faint)
    arrays = google_arrays(ours.state_dict(), heads=4)
    if pre_logits:
        arrays |= {
            "pre_logits/kernel": np.eye(64, dtype="f4"),
            "pre_logits/bias": np.ones(64, "f4"),
        }
    path = folder / "ViT-B_16.npz"
    np.savez(path, **{f"{prefix}{key}": value for key, value in arrays.items()})
    # Other weights than those of the file until timm has read it.
    reader = timm_model(img_size)
    reader.load_pretrained(str(path))
    return Reference(path, config, partial(timm_outputs, reader), reader)


@pytest.mark.parametrize("pre_logits", [False, True], ids=["plain", "with pre_logits"])
@pytest.mark.parametrize("prefix", ["", "opt/target/"])
@patch_sides(16)
def test_google_s_weights_give_the_outputs_of_timm_s_reader(tmp_path, img_size, prefix, pre_logits):
    reference = write_google(tmp_path, img_size, prefix=prefix, pre_logits=pre_logits)
    loaded = assert_parity(reference)
    assert loaded.weights.layout == "google"
    assert loaded.weights.sizes["num_heads"] == 4
    unused = (f"{prefix}pre_logits/bias", f"{prefix}pre_logits/kernel") if pre_logits else ()
    assert loaded.report.unused == unused


# --- open_clip ------------------------------------------------------------------------------------


def open_clip_tensors(img_size: int, width: int = 64, depth: int = 3) -> dict[str, Tensor]:
    """Random weights of both towers, named and shaped as open_clip's `CLIP` has them."""
    block = {
        **{f"ln_{n}.{leaf}": (width,) for n in (1, 2) for leaf in ("weight", "bias")},
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "mlp.c_fc.weight": (2 * width, width),
        "mlp.c_fc.bias": (2 * width,),
        "mlp.c_proj.weight": (width, 2 * width),
        "mlp.c_proj.bias": (width,),
    }
    blocks = {
        f"transformer.resblocks.{n}.{name}": shape
        for n in range(depth)
        for name, shape in block.items()
    }
    norms = {f"{n}.{leaf}": (width,) for n in ("ln_pre", "ln_post") for leaf in ("weight", "bias")}
    visual = {
        "class_embedding": (width,),
        "positional_embedding": (1 + (img_size // 16) ** 2, width),
        "proj": (width, 32),
        "conv1.weight": (width, 3, 16, 16),
        **norms,
        **blocks,
    }
    text = {
        "positional_embedding": (77, width),
        "text_projection": (width, 32),
        "logit_scale": (),
        "token_embedding.weight": (100, width),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
        **blocks,
    }
    shapes = {f"visual.{name}": shape for name, shape in visual.items()} | text
    generator = torch.Generator().manual_seed(1)
    return {name: 0.2 * torch.randn(s, generator=generator) for name, s in shapes.items()}


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@patch_sides(16)
def test_open_clip_s_weights_give_the_outputs_of_timm_s_reader(tmp_path, img_size, activation):
    tensors = open_clip_tensors(img_size)
    save_file(tensors, tmp_path / "open_clip_model.safetensors")
    sizes = {"image_size": img_size, "width": 64, "layers": 3, "patch_size": 16}
    config = {
        "model_cfg": {"vision_cfg": sizes, "quick_gelu": activation == "quick_gelu"},
        "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config), "utf-8")
    reader = timm_model(img_size, **CLIP_TOWER, act_layer=activation, num_classes=32)
    reader.load_state_dict(checkpoint_filter_fn(dict(tensors), reader))
    reference = of_timm(reader, tmp_path / "open_clip_model.safetensors")
    without_head = reference._replace(outputs=lambda images: (None, reference.outputs(images)[1]))
    loaded = assert_parity(without_head)
    assert loaded.weights.layout == "open-clip"
    assert loaded.weights.profile == Profile((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 1e-5, activation)
    assert loaded.weights.assumed == ""
    towers = ("visual.class", "visual.pos", "visual.conv1", "visual.ln_", "visual.transformer")
    unused = sorted(name for name in tensors if not name.startswith(towers))
    assert loaded.report.unused == tuple(unused)


# --- The constants of the layers ------------------------------------------------------------------


def write_hf_vit(folder: Path, faint: bool) -> Reference:
    return write_hf(folder, ViTModel(hf_vit(48)), faint)


def write_hf_dinov2(folder: Path, faint: bool) -> Reference:
    return write_hf(folder, Dinov2Model(Dinov2Config(image_size=42, **HF_DINOV2)), faint)


@pytest.mark.parametrize(
    ("write", "wrong"),
    [
        pytest.param(partial(write_timm, img_size=48), "clip", id="timm"),
        pytest.param(partial(write_timm, img_size=48, **CLIP_TOWER), "imagenet", id="timm clip"),
        pytest.param(partial(write_timm, img_size=42, **DINOV2), "clip", id="timm dinov2"),
        pytest.param(
            partial(write_timm, img_size=48, class_token=False, global_pool="map"),
            "clip",
            id="timm siglip",
        ),
        pytest.param(write_hf_vit, "google", id="hf vit"),
        pytest.param(write_hf_dinov2, "clip", id="hf dinov2"),
        pytest.param(partial(write_torchvision, img_size=48), "clip", id="torchvision"),
        pytest.param(partial(write_google, img_size=48), "clip", id="google"),
    ],
)
def test_the_layer_norm_eps_is_the_library_s(tmp_path, write, wrong):
    reference = write(tmp_path, faint=True)
    assert_parity(reference)
    with pytest.raises(AssertionError, match="not close"):
        assert_parity(reference, wrong)


@pytest.mark.parametrize(("stride", "img_size"), [(16, 48), (16, 64), (12, 52), (12, 64)])
def test_the_paper_s_part_model_starts_from_google_s_weights(tmp_path, stride, img_size):
    # As TACJu/TransFG starts, with the last layer as part layer, positions of the file's grid.
    reference = write_google(
        tmp_path, 16 * grid_side(small_config(img_size=img_size, patch_stride=stride))
    )
    config = small_config(head="parts", img_size=img_size, patch_stride=stride)
    loaded = load(open_pretrained(reference.path), config, keep_head=False)
    theirs = paper_transfg.in_their_names(reference.model.state_dict())
    moves = {"encoder.layer.2.": "encoder.part_layer.", "encoder_norm.": "part_norm."}
    for old, new in moves.items():
        theirs = {key.replace(old, new): value for key, value in theirs.items()}
    head = loaded.model.head
    theirs |= {"part_head.weight": head.weight.detach(), "part_head.bias": head.bias.detach()}
    images = random_images(config, 5, seed=3)
    logits, features, chosen = paper_transfg.transfg(theirs, images, heads=4, stride=stride)
    with torch.no_grad():
        output = loaded.model(images)
    assert_same(output.features, features)
    assert_same(output.logits, logits)
    assert_parts(loaded, config, images, chosen)


# --- Position embeddings of another grid ----------------------------------------------------------

SETTINGS = settings(max_examples=50)
GRID_SIDES, PREFIXES = st.integers(1, 12), st.integers(0, 1)


@given(old=GRID_SIDES, new=GRID_SIDES, num_prefix=PREFIXES, seed=SEEDS)
@SETTINGS
def test_bicubic_is_timm_s(old, new, num_prefix, seed):
    positions = random_positions(old, num_prefix, seed)
    ours = resample_positions(positions, new, num_prefix, "bicubic")
    theirs = resample_abs_pos_embed(
        positions, (new, new), num_prefix_tokens=num_prefix, interpolation="bicubic", antialias=True
    )
    assert ours.is_contiguous()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert torch.equal(ours[:, :num_prefix], positions[:, :num_prefix])


@given(old=GRID_SIDES, new=GRID_SIDES, num_prefix=PREFIXES, seed=SEEDS)
@SETTINGS
def test_bilinear_is_the_zoom_of_the_paper_s_code(old, new, num_prefix, seed):
    positions = random_positions(old, num_prefix, seed)
    ours = resample_positions(positions, new, num_prefix, "bilinear")
    grid = positions[0, num_prefix:].reshape(old, old, -1).numpy()
    zoomed = scipy.ndimage.zoom(grid, (new / old, new / old, 1), order=1)
    assert zoomed.shape == (new, new, 6)
    theirs = torch.cat((positions[:, :num_prefix], torch.from_numpy(zoomed).view(1, -1, 6)), dim=1)
    assert ours.is_contiguous()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sides", [(3, 5), (4, 1)], ids=str)
@pytest.mark.parametrize("family", TIMM_FAMILIES)
def test_weights_of_another_image_size_give_timm_s_outputs(tmp_path, family, sides):
    arguments = TIMM_FAMILIES[family]
    patch = arguments.get("patch_size", 16)
    old, new = (side * patch for side in sides)
    written = write_timm(tmp_path, old, **arguments)
    reader = timm_model(new, **arguments)
    reader.load_state_dict(checkpoint_filter_fn(written.model.state_dict(), reader))
    loaded = assert_parity(of_timm(reader, written.path), TIMM_PROFILES.get(family, "auto"))
    before, after = (f"{side}x{side}" for side in sides)
    assert loaded.report.resized == {"pos_embed": f"{before} to {after} patches, bicubic"}
