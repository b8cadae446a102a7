"""Weight files that exist in the wild, written by timm, transformers, torch and their wrappers.

Every file that is read is compared with its source, tensor by tensor.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from google_weights import google_arrays
from safetensors.torch import save_file
from small_models import random_model, randomize, small_config
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from transformers import (
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from models.pretrained.choice import MAX_MODELS, to_our_names
from models.pretrained.formats import WeightsError
from models.pretrained.load import load_pretrained
from models.pretrained.weights import Pretrained, adapt_config, open_pretrained

PATCH_14 = {"patch_size": 14, "img_size": 28}


def timm_model(seed: int = 1, **fields: object) -> TimmViT:
    """A small model of timm; equal seeds give equal weights."""
    sizes = {"img_size": 32, "embed_dim": 64, "depth": 3, "num_heads": 4, "mlp_ratio": 2}
    torch.manual_seed(seed)
    model = TimmViT(**{**sizes, "num_classes": 5, **fields})
    randomize(model, seed)
    return model.eval()


def opened(path: Path, payload: object, key: str | None = None) -> Pretrained:
    torch.save(payload, path)
    return open_pretrained(path, "imagenet", key)


def assert_holds(weights: Pretrained, source: nn.Module, but: set[str] = frozenset()) -> None:
    """Check that the weights are all of the source's, a model with timm's names."""
    expected = {key: value for key, value in source.state_dict().items() if key not in but}
    assert weights.tensors.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(weights.tensors[key], value), key


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "weights"


# --- Prefixes, wherever they come from ------------------------------------------------------------


class Lightning(nn.Module):
    """What a LightningModule's state dict is: the model, and what else the module has."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.loss = nn.CrossEntropyLoss(weight=torch.ones(5))  # a buffer


def with_compiled_blocks(model: TimmViT) -> nn.Module:
    for i, block in enumerate(model.blocks):
        model.blocks[i] = torch.compile(block)
    return model


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "": lambda model: model,
    "_orig_mod": torch.compile,
    "module": nn.DataParallel,
    "module._orig_mod": lambda model: nn.DataParallel(torch.compile(model)),
    "_orig_mod.module": lambda model: torch.compile(nn.DataParallel(model)),
    "model": Lightning,
    "model._orig_mod": lambda model: Lightning(torch.compile(model)),
    "0": lambda model: nn.Sequential(model, nn.Softmax(1)),
    "a.b.backbone": lambda model: nn.ModuleDict(
        {"a": nn.ModuleDict({"b": nn.ModuleDict({"backbone": model, "c": nn.Linear(2, 2)})})}
    ),
    "blocks": with_compiled_blocks,
}


@pytest.mark.parametrize("outer", [(), ("state_dict",), ("checkpoint", "model")], ids=str)
@pytest.mark.parametrize("prefix", WRAPPERS)
def test_a_model_is_found_in_whatever_wraps_it(path, prefix, outer):
    state = WRAPPERS[prefix](timm_model()).state_dict()
    assert any("." in key.removeprefix("blocks") for key in state)
    for name in reversed(outer):
        state = {name: state, "epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}
    weights = opened(path, state)
    assert_holds(weights, timm_model())
    extra = {"model": "loss.weight", "model._orig_mod": "loss.weight"}.get(prefix)
    extra = {"a.b.backbone": "a.b.c.weight"}.get(prefix, extra)
    assert (".".join((*outer, extra)) in weights.unused) if extra else not weights.unused


@pytest.mark.parametrize("wrap", [lambda model: model, torch.compile], ids=["", "compiled"])
def test_an_averaged_model_is_read_and_its_counter_is_unused(path, wrap):
    averaged = AveragedModel(wrap(timm_model(1)))
    averaged.update_parameters(wrap(timm_model(2)))
    averaged.update_parameters(wrap(timm_model(3)))
    weights = opened(path, averaged.state_dict())
    assert weights.unused == ("n_averaged",)
    assert_holds(weights, getattr(averaged.module, "_orig_mod", averaged.module))


def test_a_wrapped_npz_and_safetensors_file_are_found_too(tmp_path):
    model = random_model(small_config(), 5, seed=1)
    arrays = google_arrays(model.state_dict(), heads=4)
    np.savez(
        tmp_path / "a.npz", **{f"opt/target/{k}": v for k, v in arrays.items()}, step=np.ones(1)
    )
    assert_holds(open_pretrained(tmp_path / "a.npz"), model)
    save_file(torch.compile(timm_model()).state_dict(), tmp_path / "b")
    assert_holds(open_pretrained(tmp_path / "b", "imagenet"), timm_model())


# --- transformers 5, as it is in memory -----------------------------------------------------------

HF = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
HF_VIT = ViTConfig(**HF, intermediate_size=128, image_size=32, num_labels=5)
HF_DINOV2 = {**HF, "mlp_ratio": 2, "patch_size": 14, "image_size": 28, "num_labels": 5}


@pytest.mark.parametrize("wrap", [lambda model: model, torch.compile], ids=["", "compiled"])
@pytest.mark.parametrize(
    ("build", "layout"),
    [
        (lambda: ViTForImageClassification(HF_VIT), "hf-vit-5"),
        (lambda: ViTModel(HF_VIT), "hf-vit-5"),
        (lambda: Dinov2Model(Dinov2Config(**HF_DINOV2)), "hf-dinov2-5"),
        (lambda: Dinov2ForImageClassification(Dinov2Config(**HF_DINOV2)), "hf-dinov2-5"),
        (
            lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**HF_DINOV2)),
            "hf-dinov2-5",
        ),
    ],
    ids=["ViT, head", "ViT", "DINOv2", "DINOv2, head", "DINOv2, registers"],
)
def test_what_transformers_has_in_memory_is_what_it_saves(tmp_path, build, layout, wrap):
    model = build().eval()
    randomize(model, seed=1)
    model.save_pretrained(tmp_path)  # with the names of before
    saved = open_pretrained(tmp_path / "model.safetensors")
    torch.save(wrap(model).state_dict(), tmp_path / "memory.pth")
    weights = open_pretrained(tmp_path / "memory.pth")
    assert (saved.layout, weights.layout) == (layout.removesuffix("-5"), layout)
    assert weights.tensors.keys() == saved.tensors.keys()
    for key, value in saved.tensors.items():
        assert torch.equal(weights.tensors[key], value), key
    # And that is the model: the same features from the same image.
    patch = {} if layout == "hf-vit-5" else PATCH_14
    config = adapt_config(small_config(**patch), weights)
    ours = random_model(config, 5, seed=2).eval()
    load_pretrained(ours, weights)
    images = torch.randn(2, 3, config.img_size, config.img_size)
    with torch.no_grad():
        theirs = model.base_model(pixel_values=images).last_hidden_state[:, 0]
        features = ours(images).features[:, : theirs.shape[1]]  # DINOv2's head reads more behind it
        torch.testing.assert_close(features, theirs, rtol=0, atol=1e-4)


# --- Chunks of blocks -----------------------------------------------------------------------------


class Chunks(nn.Module):
    """timm's model, its blocks in chunks, numbered through as DINOv2's or in each anew."""

    def __init__(self, model: TimmViT, sizes: tuple[int, ...], is_through: bool) -> None:
        super().__init__()
        for name, child in model.named_children():
            if name != "blocks":
                self.add_module(name, child)
        for name, parameter in model.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                [nn.Identity()] * (start if is_through else 0)
                + list(model.blocks[start : start + size])
            )
            for start, size in zip(starts, sizes, strict=True)
        )


@pytest.mark.parametrize("is_through", [True, False])
@pytest.mark.parametrize("sizes", [(3,), (2, 1), (1, 1, 1)], ids=str)
def test_blocks_in_chunks_are_numbered_through(path, sizes, is_through):
    state = Chunks(timm_model(), sizes, is_through).state_dict()
    assert "blocks.0.0.attn.qkv.weight" in state
    assert_holds(opened(path, state), timm_model())


def test_twelve_blocks_in_four_chunks_of_dinov2_stand_in_their_order(path):
    model = timm_model(depth=12, patch_size=16, init_values=0.5)
    state = Chunks(model, (3, 3, 3, 3), is_through=True).state_dict()
    assert "blocks.3.11.ls1.gamma" in state
    assert_holds(opened(path, {"teacher": nn.ModuleDict({"backbone": model}).state_dict()}), model)
    assert_holds(opened(path, state), model)


# --- Several models -------------------------------------------------------------------------------


def state(seed: int, prefix: str = "") -> dict[str, Tensor]:
    model: nn.Module = timm_model(seed)
    for name in reversed(prefix.split(".") if prefix else []):
        model = nn.ModuleDict({name: model})
    return model.state_dict()


def averaged_beside_raw() -> dict[str, Tensor]:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.slow = timm_model(1), AveragedModel(timm_model(2))

    return Both().state_dict()


SEVERAL = {
    "DINO": lambda: (
        {"student": state(1, "module.backbone"), "teacher": state(2, "backbone")},
        *("teacher.backbone", "student.module.backbone", "student"),
    ),
    "DINOv2": lambda: (
        {"model": {**state(1, "student.backbone"), **state(2, "teacher.backbone")}},
        *("model.teacher.backbone", "model.student.backbone", "student"),
    ),
    "BYOL": lambda: (
        {**state(1, "online.net"), **state(2, "target.net")},
        *("target.net", "online.net", "student"),
    ),
    "DeiT": lambda: (
        {"model": state(2), "model_ema": state(1)},
        *("model", "model_ema", "averaged copy"),
    ),
    "timm": lambda: (
        {"state_dict": state(2), "state_dict_ema": state(1), "epoch": 1},
        *("state_dict", "state_dict_ema", "averaged copy"),
    ),
    "at the top": lambda: ({**state(2), **state(1, "ema")}, ".", "ema", "averaged copy"),
    "AveragedModel": lambda: (
        averaged_beside_raw(),
        *("net", "slow.module", "averaged copy"),
    ),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_of_two_models_by_a_rule_one_is_taken_the_other_said_and_to_be_had(path, name):
    payload, taken, other, what = SEVERAL[name]()
    seeds = (1, 2) if name == "AveragedModel" else (2, 1)
    weights = opened(path, payload)
    assert_holds(weights, timm_model(seeds[0]))
    assert weights.notes == (f"took {taken}, not the {what} (--pretrained_key {other})",)
    assert any(key.startswith(f"{other}.") for key in weights.unused)
    assert_holds(opened(path, payload, other), timm_model(seeds[1]))
    assert_holds(opened(path, payload, taken), timm_model(seeds[0]))


def test_two_models_and_no_rule_are_refused_and_chosen_by_name(path):
    payload = {"generator": state(1, "net"), "critic": state(2)}
    with pytest.raises(WeightsError) as error:
        opened(path, payload)
    assert str(error.value) == (
        "it holds 2 whole models, at: generator.net, critic; choose one with --pretrained_key"
    )
    for key, seed in {"generator": 1, "generator.net": 1, "generator.net.": 1, "critic": 2}.items():
        assert_holds(opened(path, payload, key), timm_model(seed))
    for key in ("net", "gen", "critic.blocks", ""):
        message = re.escape(f"--pretrained_key {key}: it holds models at: generator.net, critic")
        with pytest.raises(WeightsError, match=f"^{message}$"):
            opened(path, payload, key)


def test_two_copies_of_one_model_are_one_and_a_part_of_a_model_is_none(path):
    model = timm_model()
    both = nn.ModuleDict({"a": model, "b": torch.compile(model)})
    assert_holds(opened(path, both.state_dict()), timm_model())
    part = {k: v for k, v in state(2, "decoder").items() if "pos_embed" not in k}
    assert_holds(opened(path, {**part, **state(1, "encoder")}), timm_model(1))


def test_an_ensemble_is_refused_in_one_line_and_hundreds_of_models_in_no_time(path):
    many = {f"m{i}": state(i) for i in range(8)}
    with pytest.raises(WeightsError, match=r"8 whole models, at: m0, .*, m5 and 2 more; choose"):
        opened(path, many)
    with pytest.raises(WeightsError, match=r"^it holds 100000 models; save one of them alone$"):
        to_our_names({f"m{i}.blocks.0.attn.qkv.weight": torch.ones(1) for i in range(100_000)})
    assert MAX_MODELS < 100_000


# --- The file's own names -------------------------------------------------------------------------


def hf_state(**changes: Tensor | None) -> dict[str, Tensor]:
    model = ViTForImageClassification(HF_VIT)
    state = {**{f"net.{k}": v for k, v in model.state_dict().items()}, **changes}
    return {key: value for key, value in state.items() if value is not None}


LAYER = "net.vit.layers.1"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({f"{LAYER}.layernorm_after.bias": None}, f"missing {LAYER}.layernorm_after.bias"),
        ({f"{LAYER}.attention.k_proj.bias": None}, f"missing {LAYER}.attention.k_proj.bias"),
        ({"net.vit.layernorm.weight": None}, "missing net.vit.layernorm.weight"),
        (
            {f"{LAYER}.mlp.fc1.bias": torch.full((128,), torch.nan)},
            f"not finite: {LAYER}.mlp.fc1.bias; ",
        ),
        ({f"{LAYER}.mlp.fc1.bias": torch.ones(7)}, f"{LAYER}.mlp.fc1.bias is (7,), not (128,)"),
        ({f"{LAYER}.mlp.fc1.bias": torch.ones(128).int()}, f"{LAYER}.mlp.fc1.bias is int32, "),
        ({"net.vit.embeddings.position_embeddings": torch.ones(1, 7, 64)}, "not a square grid"),
        ({f"{LAYER}.attention.rel_pos": torch.ones(1)}, f"{LAYER}.attention.rel_pos: not part"),
        (
            {f"{LAYER}.mlp.fc1.bias": torch.ones(1).expand(128)},
            f"{LAYER}.mlp.fc1.bias shows the same numbers many times",
        ),
        (
            {f"{LAYER}.mlp.fc1.bias": torch.eye(8).to_sparse()},
            f"{LAYER}.mlp.fc1.bias is not a plain tensor",
        ),
    ],
)
def test_messages_show_the_file_s_own_names(path, changes, said):
    def load() -> None:
        weights = opened(path, hf_state(**changes))
        load_pretrained(random_model(adapt_config(small_config(), weights), 5, seed=2), weights)

    with pytest.raises(WeightsError) as error:
        load()
    assert said in str(error.value)
    assert "blocks." not in str(error.value)
    assert "pos_embed" not in str(error.value)


@pytest.mark.parametrize("name", ["encoder_norm/scale", "encoderblock_2/MlpBlock_3/Dense_1/bias"])
def test_a_name_that_google_s_file_lacks_is_google_s(tmp_path, name):
    arrays = google_arrays(random_model(small_config(), 5, seed=1).state_dict(), heads=4)
    del arrays[f"Transformer/{name}"]
    np.savez(tmp_path / "a.npz", **arrays)
    weights = open_pretrained(tmp_path / "a.npz")
    with pytest.raises(WeightsError, match=f"^missing Transformer/{name}$"):
        load_pretrained(random_model(adapt_config(small_config(), weights), 5, seed=2), weights)


# --- Files that are not the weights, and the way to those -----------------------------------------


def run_command(message: str, folder: Path) -> None:
    """Run the command that ends a message, as it would be pasted."""
    words = shlex.split("python -c " + message.partition(": python -c ")[2])
    assert words[:2] == ["python", "-c"]
    subprocess.run([sys.executable, *words[1:]], check=True, cwd=folder)


def refusal(path: Path) -> str:
    with pytest.raises(WeightsError) as error:
        open_pretrained(path, "imagenet")
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("where", ["plain", "it's a $folder"])
def test_shards_and_their_index_are_called_so_and_made_one_file(tmp_path, where):
    model = ViTForImageClassification(HF_VIT)
    folder = tmp_path / where
    model.save_pretrained(folder, max_shard_size="200KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    for path in (shards[0], shards[-1]):
        number = path.name.split("-")[1]
        assert f"it is shard {number} of {len(shards):05} of a model; make one " in refusal(path)
    said = refusal(folder / "model.safetensors.index.json")
    assert f"but the index of a model in {len(shards)} shards; make one file of them: " in said
    run_command(said, tmp_path)
    model.save_pretrained(tmp_path / "whole")
    whole = open_pretrained(tmp_path / "whole" / "model.safetensors")
    merged = open_pretrained(folder / "model.safetensors")
    assert merged.tensors.keys() == whole.tensors.keys()
    assert all(torch.equal(merged.tensors[k], whole.tensors[k]) for k in whole.tensors)
    shards[1].unlink()
    assert f"whose {shards[1].name} is not here; fetch them all" in refusal(shards[0])


def test_shards_of_pickles_are_made_one_file(tmp_path):
    weights = timm_model().state_dict()
    names = sorted(weights)
    for n, part in enumerate((names[:20], names[20:]), start=1):
        shard = {key: weights[key] for key in part}
        torch.save(shard, tmp_path / f"pytorch_model-0000{n}-of-00002.bin")
    run_command(refusal(tmp_path / "pytorch_model-00001-of-00002.bin"), tmp_path)
    assert_holds(open_pretrained(tmp_path / "pytorch_model.bin", "imagenet"), timm_model())


def test_a_single_shard_of_one_is_the_model(tmp_path):
    save_file(timm_model().state_dict(), tmp_path / "model-00001-of-00001.safetensors")
    path = tmp_path / "model-00001-of-00001.safetensors"
    assert_holds(open_pretrained(path, "imagenet"), timm_model())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (json.dumps({"model_type": "vit"}), " but JSON; name the weights beside it"),
        ('{"weight_map": {}}', " but JSON; name the weights beside it"),
        ('{"weight_map": {"a": 3}}', " but JSON; name the weights beside it"),
        ('{"weight_map": ["a"]}', " but JSON; name the weights beside it"),
        ("{" * 10_000, " but JSON; name the weights beside it"),
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 346293852\n",
            " but a pointer of Git LFS; fetch the weights with git lfs pull",
        ),
    ],
)
def test_other_files_in_the_place_of_weights_are_called_by_their_names(tmp_path, content, said):
    (tmp_path / "a.index.json").write_text(content)
    assert refusal(tmp_path / "a.index.json").endswith(said)


@pytest.mark.parametrize(
    ("args", "is_zip"),
    [
        ({"args": argparse.Namespace(lr=0.1, output=Path("out"))}, True),
        ({"config": {"args": argparse.Namespace(lr=0.1)}, "epoch": 3}, False),
        ({"hyper_parameters": {"folder": Path("out")}}, True),
    ],
    ids=["args", "nested", "path"],
)
def test_a_namespace_is_refused_with_the_command_that_takes_the_tensors_out(tmp_path, args, is_zip):
    payload = {"model": timm_model().state_dict(), **args}
    path = tmp_path / "it's weights.pth"
    torch.save(payload, path, _use_new_zipfile_serialization=is_zip)
    said = refusal(path)
    assert re.match(
        r"it holds (argparse\.Namespace|pathlib\.PosixPath) beside tensors, which was not loaded; "
        "take these out: python -c ",
        said,
    )
    run_command(said, tmp_path)
    assert_holds(open_pretrained(tmp_path / "it's weights.tensors.pth", "imagenet"), timm_model())
