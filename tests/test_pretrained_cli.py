"""`train.py --pretrained`: the weight files that users have, as other projects write them."""

import io
import json
import os
import pickle
import re
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from helpers import REPO, TINY_EVAL, TINY_TRAIN, evaluate, read_json, train
from safetensors.torch import load_file, save_file
from timm.models import create_model, save_for_hf
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT
from transformers import (
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)

from models.build import build_model
from models.configs import get_config
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.data_utils import RunPaths

sys.path.insert(0, str(REPO / "tests" / "models"))
from paper_transfg import in_their_names

SUBSETS = "--tiny_train_subset synthetic_tiny --tiny_infer_subset synthetic_tiny"
BASE = f"--dataset synthetic {TINY_TRAIN} {SUBSETS} --num_steps 1 --eval_every 1"
FROZEN = f"{BASE} --freeze backbone"
SIZE = {"img_size": 32, "patch_size": 16, "embed_dim": 64, "depth": 3, "num_heads": 4}
IN_BACKBONE = ("cls_token", "pos_embed", "reg_token", "patch_embed.", "norm_pre.", "blocks.")

HALF = [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]
IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CLIP = (
    [0.48145466, 0.4578275, 0.40821073],
    [0.26862954, 0.26130258, 0.27577711],
)
OTHER = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]


def randomized(model):
    """`model` with no weight at its initial value, zero or one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def contiguous(state_dict):
    return {key: value.detach().contiguous() for key, value in state_dict.items()}


# --- Files as others write them -------------------------------------------------------------------


class Foreign(NamedTuple):
    """A weight file, and what is to become of it."""

    path: Path
    layout: str
    backbone: dict[str, torch.Tensor]  # under our names
    normalization: tuple[list[float], list[float]]
    assumed: str | None = None  # what the warning names
    eps: float = 1e-6
    fields: dict | None = None  # of the model, beside its sizes
    unused: str = "head.bias, head.weight"


def backbone_of(state_dict):
    return {key: value for key, value in state_dict.items() if key.startswith(IN_BACKBONE)}


def timm_model(**arguments):
    return randomized(TimmViT(**SIZE, mlp_ratio=2, num_classes=7, **arguments))


EVERYTHING = "mean, std, layer_norm_eps, activation"


def timm_safetensors(folder):
    state_dict = contiguous(timm_model().state_dict())
    save_file(state_dict, folder / "model.safetensors")
    backbone = backbone_of(state_dict)
    return Foreign(folder / "model.safetensors", "timm", backbone, IMAGENET, EVERYTHING)


def timm_with_config(folder):
    """As timm writes it for the hub."""
    sizes = {key: SIZE[key] for key in ("embed_dim", "depth", "num_heads")}
    model = randomized(
        create_model(
            "vit_tiny_patch16_224",
            img_size=32,
            mlp_ratio=2,
            num_classes=7,
            **sizes,
            pretrained_cfg_overlay={"mean": OTHER[0], "std": OTHER[1]},
        )
    )
    save_for_hf(model, folder, model_args=sizes, safe_serialization=True)
    backbone = backbone_of(model.state_dict())
    return Foreign(folder / "model.safetensors", "timm", backbone, OTHER)


def timm_siglip(folder):
    model = timm_model(class_token=False, global_pool="map")
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    fields = {"class_token": False, "pos_class_token": False, "pool": "map"}
    backbone = backbone_of(model.state_dict())
    return Foreign(folder / "pytorch_model.bin", "timm", backbone, HALF, EVERYTHING, fields=fields)


def timm_clip(folder):
    model = timm_model(pre_norm=True, init_values=0.1)
    wrapped = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": wrapped}, folder / "checkpoint.pth")
    fields = {"pre_norm": True, "layer_scale": 1e-5}
    backbone = backbone_of(model.state_dict())
    return Foreign(folder / "checkpoint.pth", "timm", backbone, CLIP, EVERYTHING, 1e-5, fields)


def timm_dinov2(folder):
    model = timm_model(reg_tokens=4, no_embed_class=True, init_values=0.1)
    save_file(contiguous(model.state_dict()), folder / "model.safetensors")
    fields = {"num_registers": 4, "pos_class_token": False, "layer_scale": 1e-5}
    backbone = backbone_of(model.state_dict())
    return Foreign(
        folder / "model.safetensors", "timm", backbone, IMAGENET, EVERYTHING, fields=fields
    )


def before_torch_1_6(folder):
    state_dict = timm_model().state_dict()
    path = folder / "old.pth"
    torch.save(state_dict, path, _use_new_zipfile_serialization=False)
    return Foreign(path, "timm", backbone_of(state_dict), IMAGENET, EVERYTHING)


# Hugging Face's names in the file, and ours.
HF_NAMES = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "norm1": "norm1",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def hf_backbone(path, prefix=""):
    """The backbone of a file of Hugging Face's under our names, read by hand."""
    theirs = {key.removeprefix(prefix): value for key, value in load_file(path).items()}
    ours = {}
    for key, value in theirs.items():
        block = re.match(r"encoder\.layer\.(\d+)\.(.*)", key)
        inner = block[2] if block else key
        name, _, leaf = inner.rpartition(".")
        if name == "attention.attention.query":
            stacked = [theirs[key.replace("query", which)] for which in ("query", "key", "value")]
            ours[f"blocks.{block[1]}.attn.qkv.{leaf}"] = torch.cat(stacked)
        elif inner in HF_NAMES or name in HF_NAMES:
            known = HF_NAMES.get(inner) or f"{HF_NAMES[name]}.{leaf}"
            ours[f"blocks.{block[1]}.{known}" if block else known] = value
    return ours


HF_SIZE = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 16,
}


def hf_classifier(folder):
    model = ViTForImageClassification(ViTConfig(**HF_SIZE, intermediate_size=128, num_labels=7))
    randomized(model).save_pretrained(folder)
    path = folder / "model.safetensors"
    return Foreign(
        path,
        "hf-vit",
        hf_backbone(path, "vit."),
        HALF,
        "mean, std",
        1e-12,
        unused="head.bias, head.weight",
    )


def hf_with_processor(folder):
    config = ViTConfig(**HF_SIZE, intermediate_size=128, layer_norm_eps=1e-7, hidden_act="gelu_new")
    randomized(ViTModel(config)).save_pretrained(folder)
    ViTImageProcessor(image_mean=OTHER[0], image_std=OTHER[1]).save_pretrained(folder)
    path = folder / "model.safetensors"
    return Foreign(
        path,
        "hf-vit",
        hf_backbone(path),
        OTHER,
        None,
        1e-7,
        {"activation": "gelu_tanh"},
        "pooler.dense.bias, pooler.dense.weight",
    )


def hf_dinov2(folder):
    randomized(Dinov2Model(Dinov2Config(**HF_SIZE, mlp_ratio=2))).save_pretrained(folder)
    path = folder / "model.safetensors"
    return Foreign(
        path,
        "hf-dinov2",
        hf_backbone(path),
        IMAGENET,
        "mean, std",
        1e-6,
        {"layer_scale": 1e-5},
        "embeddings.mask_token",
    )


def torchvision_file(folder):
    model = randomized(TorchvisionViT(32, 16, 3, 4, 64, 128, num_classes=7))
    state_dict = model.state_dict()
    ours = {
        "cls_token": state_dict["class_token"],
        "pos_embed": state_dict["encoder.pos_embedding"],
        "patch_embed.proj.weight": state_dict["conv_proj.weight"],
        "patch_embed.proj.bias": state_dict["conv_proj.bias"],
    }
    parts = {
        "ln_1": "norm1",
        "ln_2": "norm2",
        "self_attention.out_proj": "attn.proj",
        "mlp.0": "mlp.fc1",
        "mlp.3": "mlp.fc2",
    }
    for i in range(3):
        theirs = f"encoder.layers.encoder_layer_{i}"
        for leaf in ("weight", "bias"):
            stacked = state_dict[f"{theirs}.self_attention.in_proj_{leaf}"]
            ours[f"blocks.{i}.attn.qkv.{leaf}"] = stacked
            for part, our_part in parts.items():
                ours[f"blocks.{i}.{our_part}.{leaf}"] = state_dict[f"{theirs}.{part}.{leaf}"]
    path = folder / "vit_b_16-c867db91.pth"
    torch.save(state_dict, path)
    return Foreign(path, "torchvision", ours, IMAGENET, EVERYTHING)


def our_weights(head="token"):
    """Random weights of the `testing` model under our names, with a head of 7 classes."""
    return contiguous(randomized(build_model(get_config("testing", 32, head=head), 7)).state_dict())


def google_arrays(weights, heads=4):
    """Our weights as Flax has them: inputs first, heads apart, convolutions HWIO."""
    arrays = {"cls": weights["cls_token"]}
    arrays["Transformer/posembed_input/pos_embedding"] = weights["pos_embed"]
    arrays["embedding/kernel"] = weights["patch_embed.proj.weight"].permute(2, 3, 1, 0)
    arrays["embedding/bias"] = weights["patch_embed.proj.bias"]
    plain = {"head": "head", "Transformer/encoder_norm": "norm"}
    for i in range(3):
        theirs = f"Transformer/encoderblock_{i}"
        attention = f"{theirs}/MultiHeadDotProductAttention_1"
        for leaf in ("weight", "bias"):
            stacked = weights[f"blocks.{i}.attn.qkv.{leaf}"].chunk(3)
            for which, part in zip(("query", "key", "value"), stacked, strict=True):
                name = f"{attention}/{which}/{'kernel' if leaf == 'weight' else 'bias'}"
                flipped = part.T if part.ndim == 2 else part
                arrays[name] = flipped.unflatten(-1, (heads, -1))
        out = weights[f"blocks.{i}.attn.proj.weight"].T
        arrays[f"{attention}/out/kernel"] = out.unflatten(0, (heads, -1))
        arrays[f"{attention}/out/bias"] = weights[f"blocks.{i}.attn.proj.bias"]
        plain |= {
            f"{theirs}/LayerNorm_0": f"blocks.{i}.norm1",
            f"{theirs}/LayerNorm_2": f"blocks.{i}.norm2",
            f"{theirs}/MlpBlock_3/Dense_0": f"blocks.{i}.mlp.fc1",
            f"{theirs}/MlpBlock_3/Dense_1": f"blocks.{i}.mlp.fc2",
        }
    for theirs, ours in plain.items():
        is_norm = "norm" in ours
        weight = weights[f"{ours}.weight"]
        arrays[f"{theirs}/{'scale' if is_norm else 'kernel'}"] = weight if is_norm else weight.T
        arrays[f"{theirs}/bias"] = weights[f"{ours}.bias"]
    return {name: np.ascontiguousarray(array.numpy()) for name, array in arrays.items()}


def google(folder):
    weights = our_weights()
    np.savez(folder / "ViT-B_16.npz", **google_arrays(weights))
    return Foreign(folder / "ViT-B_16.npz", "google", backbone_of(weights), HALF, EVERYTHING)


def google_with_representation_layer(folder):
    weights = our_weights()
    arrays = {f"opt/target/{name}": array for name, array in google_arrays(weights).items()}
    arrays["opt/target/pre_logits/kernel"] = np.zeros((64, 64), np.float32)
    arrays["opt/target/pre_logits/bias"] = np.zeros(64, np.float32)
    arrays["opt/state/step"] = np.array(7)
    path = folder / "imagenet21k.npz"
    np.savez_compressed(path, **arrays)
    unused = (
        "head.bias, head.weight, opt/state/step, opt/target/pre_logits/bias, "
        "opt/target/pre_logits/kernel"
    )
    return Foreign(path, "google", backbone_of(weights), HALF, EVERYTHING, unused=unused)


def jeonsworld(folder):
    weights = our_weights()
    torch.save(in_their_names(weights), folder / "cifar10-100_500_checkpoint.bin")
    return Foreign(
        folder / "cifar10-100_500_checkpoint.bin",
        "jeonsworld",
        backbone_of(weights),
        HALF,
        EVERYTHING,
    )


def transfg(folder):
    weights = our_weights("parts")
    path = folder / "sample_run_checkpoint.bin"
    torch.save({"model": in_their_names(weights)}, path)
    blocks = {key.replace("part_block.", "blocks.2."): value for key, value in weights.items()}
    return Foreign(path, "transfg", backbone_of(blocks), IMAGENET, EVERYTHING)


FILES = {
    write.__name__: write
    for write in (
        timm_safetensors,
        timm_with_config,
        timm_siglip,
        timm_clip,
        timm_dinov2,
        before_torch_1_6,
        hf_classifier,
        hf_with_processor,
        hf_dinov2,
        torchvision_file,
        google,
        google_with_representation_layer,
        jeonsworld,
        transfg,
    )
}


@pytest.fixture(scope="module", params=FILES)
def foreign(request, tmp_path_factory):
    """A weight file of each kind, written once. Read only."""
    return FILES[request.param](tmp_path_factory.mktemp(request.param))


def load(drawn, output, path, flags="", name="run", base=FROZEN):
    """A run of one step from the weights at `path`; its paths."""
    code = train(
        f"--name {name} {base} {flags}",
        "--pretrained",
        path,
        "--data_root",
        drawn,
        "--output_dir",
        output,
    )
    assert code == 0
    return RunPaths(output, name)


def table(out: str) -> dict[str, str]:
    """What became of the tensors, as the log says it."""
    rows = re.findall(r"^  (loaded|resized|new|unused|notes) +(.*)$", out, flags=re.MULTILINE)
    assert [name for name, _ in rows] == ["loaded", "resized", "new", "unused", "notes"]
    return dict(rows)


def warnings_in(out: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith("warning: ")]


def mean_and_std(normalization) -> tuple[list[float], list[float]]:
    assert normalization.keys() == {"mean", "std"}
    return list(normalization["mean"]), list(normalization["std"])


class TestEveryLayout:
    def test_is_loaded_and_accounted_for(self, foreign, drawn, tmp_path, capsys):
        paths = load(drawn, tmp_path, foreign.path)
        out = capsys.readouterr().out
        assert f"pretrained {foreign.path}: layout {foreign.layout}\n" in out
        fates = table(out)
        checkpoint = load_checkpoint(paths.checkpoint)
        weights = checkpoint.state_dict
        assert fates["loaded"] == f"{len(weights) - 2} tensors"  # all but the head's
        assert fates["new"] == "head.bias, head.weight"
        assert fates["unused"] == foreign.unused
        assert fates["resized"] == fates["notes"] == "none"
        backbone = backbone_of(weights)
        assert backbone.keys() == foreign.backbone.keys()
        for key, value in foreign.backbone.items():
            assert torch.equal(backbone[key], value), key
        expected = get_config(
            "testing", 32, layer_norm_eps=foreign.eps, **(foreign.fields or {})
        ).to_dict()
        assert checkpoint.model_config == expected
        assert weights["head.weight"].shape == (10, 64)

    def test_says_once_what_it_had_to_assume(self, foreign, drawn, tmp_path, capsys):
        load(drawn, tmp_path, foreign.path)
        lines = warnings_in(capsys.readouterr().out)
        assert len(lines) == (0 if foreign.assumed is None else 1)
        if foreign.assumed is not None:
            said, _, taken = lines[0].partition(": assumed ")
            assert said.endswith(f" {foreign.assumed}")
            mean, std = (" ".join(f"{v:.4g}" for v in values) for values in foreign.normalization)
            assert f"mean {mean}, std {std}, LayerNorm eps {foreign.eps:g}" in taken
            assert "--pretrained_profile" in taken

    def test_normalisation_is_recorded_and_evaluated_with(self, foreign, drawn, tmp_path):
        paths = load(drawn, tmp_path, foreign.path)
        code = evaluate(
            f"--name check {TINY_EVAL} --tiny_infer_subset synthetic_tiny",
            "--checkpoint",
            paths.checkpoint,
            "--data_root",
            drawn,
            "--output_dir",
            tmp_path,
        )
        assert code == 0
        stamps = [read_json(RunPaths(tmp_path, name).env_stamp) for name in ("run", "check")]
        for stamp in stamps:
            assert mean_and_std(stamp["normalization"]) == foreign.normalization
            assert mean_and_std(stamp["config"]["normalization"]) == foreign.normalization
            assert stamp["config"]["model"]["layer_norm_eps"] == foreign.eps
        recorded = load_checkpoint(paths.checkpoint).normalization
        assert mean_and_std(recorded) == foreign.normalization
        assert stamps[0]["predictions_digest"] == stamps[1]["predictions_digest"]
        metrics = [RunPaths(tmp_path, name).metrics.read_bytes() for name in ("run", "check")]
        assert metrics[0] == metrics[1]

    def test_starts_the_part_model(self, foreign, drawn, tmp_path, capsys):
        flags = f"--name parts {FROZEN} --head parts --img_size 64 --learning_rate 1e-60"
        code = train(
            flags, "--pretrained", foreign.path, "--data_root", drawn, "--output_dir", tmp_path
        )
        out, error = capsys.readouterr()
        if "cls_token" not in foreign.backbone:
            assert code == 2
            said = "it has no class token, which --head parts needs"
            assert error == f"error: --pretrained {foreign.path}: {said}\n"
            return
        assert code == 0
        fates = table(out)
        assert fates["resized"] == "pos_embed (2x2 to 4x4 patches, bicubic)"
        assert fates["new"] == "head.bias, head.weight"
        weights = load_checkpoint(RunPaths(tmp_path, "parts").checkpoint).state_dict
        for key, value in foreign.backbone.items():
            ours = key.replace("blocks.2.", "part_block.")
            if key != "pos_embed":
                assert torch.equal(weights[ours], value), key
        prefix = foreign.backbone["pos_embed"].shape[1] - 4  # of 2 x 2 patches
        assert weights["pos_embed"].shape == (1, prefix + 16, 64)


PROFILES = {
    "google": (HALF, 1e-6, "gelu"),
    "imagenet": (IMAGENET, 1e-6, "gelu"),
    "clip": (CLIP, 1e-5, "gelu"),
    "clip-quickgelu": (CLIP, 1e-5, "quick_gelu"),
    "siglip": (HALF, 1e-6, "gelu"),
}


@pytest.mark.parametrize("write", [timm_with_config, hf_with_processor, google, timm_clip])
class TestProfile:
    @pytest.mark.parametrize("profile", PROFILES)
    def test_that_is_named_is_taken(self, drawn, tmp_path, capsys, write, profile):
        """Over what a file beside says, and without a warning: nothing was assumed."""
        paths = load(drawn, tmp_path, write(tmp_path).path, f"--pretrained_profile {profile}")
        assert warnings_in(capsys.readouterr().out) == []
        normalization, eps, activation = PROFILES[profile]
        checkpoint, stamp = load_checkpoint(paths.checkpoint), read_json(paths.env_stamp)
        assert mean_and_std(checkpoint.normalization) == normalization
        assert mean_and_std(stamp["normalization"]) == normalization
        assert stamp["config"]["pretrained_profile"] == profile
        model = checkpoint.model_config
        assert (model["layer_norm_eps"], model["activation"]) == (eps, activation)

    def test_is_part_of_the_experiment(self, drawn, tmp_path, write):
        foreign = write(tmp_path)
        hashes, digests = set(), set()
        for profile in ("auto", *PROFILES):
            paths = load(
                drawn,
                tmp_path,
                foreign.path,
                f"--pretrained_profile {profile} --learning_rate 1",
                name=profile,
                base=BASE,
            )
            stamp = read_json(paths.env_stamp)
            hashes.add(stamp["config_hash"])
            digests.add(stamp["predictions_digest"])
        auto = foreign.normalization, foreign.eps, (foreign.fields or {}).get("activation", "gelu")
        assert len(hashes) == 1 + len(PROFILES)
        assert len(digests) == len({str(known) for known in (auto, *PROFILES.values())})


class TestSidecar:
    def test_that_changes_is_another_experiment(self, drawn, tmp_path):
        """The weights are the same file, but not what is made of them."""
        hashes = []
        path = timm_with_config(tmp_path).path
        config = read_json(tmp_path / "config.json")
        for number, mean in enumerate((OTHER[0], IMAGENET[0])):
            config["pretrained_cfg"]["mean"] = mean
            (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
            paths = load(drawn, tmp_path, path, name=f"run{number}")
            hashes.append(read_json(paths.env_stamp)["config_hash"])
        assert hashes[0] != hashes[1]

    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            ("config.json", "{", "config.json is not readable as JSON; mend or remove it"),
            ("config.json", "[1]", "config.json is not a JSON object; mend or remove it"),
            ("config.json", '{"model_type": "vit", "hidden_size": 65}', "embed_dim 65 where"),
            ("config.json", '{"model_type": "vit", "hidden_act": "relu"}', "'relu' is not one of"),
            (
                "preprocessor_config.json",
                '{"image_mean": [0, 0, 0], "image_std": [1, 0, 1]}',
                "[1, 0, 1] is not a mean or standard deviation",
            ),
        ],
    )
    def test_that_cannot_be_used_is_refused(self, refused, drawn, tmp_path, name, content, said):
        path = timm_safetensors(tmp_path).path
        (tmp_path / name).write_text(content, encoding="utf-8")
        flags = f"--name a {BASE}"
        error = refused(train, flags, "--pretrained", path, "--data_root", drawn)
        assert error.startswith(f"error: --pretrained {path}: ")
        assert said in error
        load(drawn, tmp_path / "named", path, "--pretrained_profile google")  # then it is not read

    def test_of_somebody_else_says_nothing(self, drawn, tmp_path, capsys):
        path = timm_safetensors(tmp_path).path
        (tmp_path / "config.json").write_text('{"editor": "vim"}', encoding="utf-8")
        load(drawn, tmp_path, path)
        (line,) = warnings_in(capsys.readouterr().out)
        assert line.startswith("warning: no file beside says ")


# --- Our own --------------------------------------------------------------------------------------


class TestOwnCheckpoint:
    @pytest.fixture(scope="class")
    @classmethod
    def own(cls, drawn, tmp_path_factory):
        """A run of ours from somebody's weights, with a normalisation of their own. Read only."""
        folder = tmp_path_factory.mktemp("own")
        paths = load(drawn, folder, timm_with_config(folder).path, "--dropout 0.1", base=BASE)
        return paths.checkpoint

    def test_hands_on_its_normalisation_without_a_word(self, own, drawn, tmp_path, capsys):
        paths = load(drawn, tmp_path, own)
        out = capsys.readouterr().out
        assert warnings_in(out) == []
        assert f"pretrained {own}: layout ours\n" in out
        assert mean_and_std(load_checkpoint(paths.checkpoint).normalization) == OTHER
        assert mean_and_std(read_json(paths.env_stamp)["normalization"]) == OTHER

    def test_does_not_hand_on_its_dropout(self, own, drawn, tmp_path):
        assert load_checkpoint(own).model_config["dropout"] == 0.1
        paths = load(drawn, tmp_path, own)
        assert load_checkpoint(paths.checkpoint).model_config["dropout"] == 0.0

    def test_gives_its_head_for_the_same_classes(self, own, drawn, tmp_path, capsys):
        for head in ("token", "parts"):
            paths = load(drawn, tmp_path, own, f"--head {head} --learning_rate 1e-60", name=head)
            assert table(capsys.readouterr().out)["new"] == "none"
            before, after = (load_checkpoint(p).state_dict for p in (own, paths.checkpoint))
            assert torch.equal(before["head.weight"], after["head.weight"])
            assert before["head.weight"].abs().max() > 0

    def test_gives_no_head_for_other_classes(self, own, drawn, tmp_path, capsys):
        checkpoint = load_checkpoint(own)
        save_checkpoint(
            tmp_path / "other.bin", checkpoint._replace(classes=checkpoint.classes[::-1])
        )
        paths = load(drawn, tmp_path, tmp_path / "other.bin", "--learning_rate 1e-60")
        fates = table(capsys.readouterr().out)
        assert fates["new"] == fates["unused"] == "head.bias, head.weight"
        assert not load_checkpoint(paths.checkpoint).state_dict["head.weight"].abs().max() > 1e-20

    def test_of_a_plain_model_starts_a_part_model_and_back(self, own, drawn, tmp_path, capsys):
        still = "--img_size 64 --learning_rate 1e-60"
        parts = load(drawn, tmp_path, own, f"--head parts {still}", name="parts")
        fates = table(capsys.readouterr().out)
        assert fates["resized"] == "pos_embed (2x2 to 4x4 patches, bicubic)"
        assert fates["new"] == fates["unused"] == "none"
        back = load(drawn, tmp_path, parts.checkpoint, still, name="back")
        assert table(capsys.readouterr().out)["resized"] == "none"
        before, middle, after = (
            load_checkpoint(path).state_dict for path in (own, parts.checkpoint, back.checkpoint)
        )
        assert after.keys() == before.keys()
        same = {key for key in before if torch.equal(before[key], after[key])}
        assert same == before.keys() - {"pos_embed"}
        assert torch.equal(middle["part_block.mlp.fc1.weight"], before["blocks.2.mlp.fc1.weight"])
        assert torch.equal(middle["part_norm.bias"], before["norm.bias"])

    def test_part_block_is_random_if_asked(self, own, drawn, tmp_path, capsys):
        paths = load(drawn, tmp_path, own, "--head parts --part_init random --learning_rate 1e-60")
        fates = table(capsys.readouterr().out)
        assert fates["new"].startswith("part_block.")
        assert "and " in fates["new"]
        before, after = (load_checkpoint(p).state_dict for p in (own, paths.checkpoint))
        for key in ("attn.qkv.weight", "mlp.fc1.weight"):
            assert not torch.equal(after[f"part_block.{key}"], before[f"blocks.2.{key}"])
        assert torch.equal(after["part_norm.weight"], before["norm.weight"])

    def test_takes_no_profile(self, own, refused, drawn):
        flags = f"--name a {BASE} --pretrained_profile imagenet"
        error = refused(train, flags, "--pretrained", own, "--data_root", drawn)
        assert "--pretrained_profile" in error
        assert str(own) in error
        assert "says itself how it was trained" in error

    @pytest.mark.parametrize("keep", [0, 1, 60, 300, 0.5, -1, -64, -86])
    def test_truncated(self, own, refused, drawn, tmp_path, keep):
        data = own.read_bytes()
        cut = int(keep * len(data)) if isinstance(keep, float) else keep
        path = tmp_path / "cut.bin"
        path.write_bytes(data[:cut])
        error = refused(train, f"--name a {BASE}", "--pretrained", path, "--data_root", drawn)
        assert str(path) in error

    def test_bit_flipped_anywhere(self, own, refused, drawn, tmp_path):
        """What says that it is ours is in the file too."""
        data = own.read_bytes()
        says_ours = data.index(b"fine-vit checkpoint")
        generator = np.random.default_rng(0)
        positions = [
            0,
            says_ours,
            says_ours + 5,
            says_ours + 18,
            *generator.integers(len(data), size=6),
            len(data) - 86,
            len(data) - 66,
            len(data) - 30,
        ]
        path = tmp_path / "flipped.bin"
        for position in positions:
            damaged = bytearray(data)
            damaged[position] ^= 1
            path.write_bytes(damaged)
            error = refused(train, f"--name a {BASE}", "--pretrained", path, "--data_root", drawn)
            assert str(path) in error
            assert "damaged" in error


# --- Types of numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float64"])
def test_another_type_of_number_is_converted_and_said(drawn, tmp_path, capsys, name):
    dtype = getattr(torch, name)
    state_dict = {key: value.to(dtype) for key, value in timm_model().state_dict().items()}
    save_file(contiguous(state_dict), tmp_path / "half.safetensors")
    paths = load(drawn, tmp_path, tmp_path / "half.safetensors")
    assert table(capsys.readouterr().out)["notes"] == (
        f"{len(state_dict)} tensors converted from {name}"
    )
    weights = load_checkpoint(paths.checkpoint).state_dict
    assert {value.dtype for value in weights.values()} == {torch.float32}
    for key, value in backbone_of(state_dict).items():
        assert torch.equal(weights[key], value.float()), key


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["blocks.1.mlp.fc1.weight", "pos_embed"])
def test_a_number_that_is_none_is_refused_by_key(refused, drawn, tmp_path, bad, key):
    state_dict = contiguous(timm_model().state_dict())
    state_dict[key].view(-1)[7] = bad
    path = tmp_path / "bad.safetensors"
    save_file(state_dict, path)
    error = refused(train, f"--name a {BASE}", "--pretrained", path, "--data_root", drawn)
    assert error.startswith(f"error: --pretrained {path}: not finite: {key}; ")


# --- Weights that do not fit ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            {"embed_dim": 192, "depth": 12, "num_heads": 3, "mlp_ratio": 4},
            "embed_dim 192, not 64, depth 12, not 3, mlp_dim 768, not 128; use --model_type "
            "ViT-Ti_16",
        ),
        ({"depth": 4}, "depth 4, not 3, which no --model_type has"),
        ({"patch_size": 8}, "patch_size 8, not 16, which no --model_type has"),
    ],
)
def test_another_architecture_names_the_type_that_fits(refused, drawn, tmp_path, arguments, said):
    model = TimmViT(**{**SIZE, "mlp_ratio": 2, "num_classes": 7, **arguments})
    path = tmp_path / "other.safetensors"
    save_file(contiguous(model.state_dict()), path)
    error = refused(train, f"--name a {BASE}", "--pretrained", path, "--data_root", drawn)
    assert error == f"error: --pretrained {path}: it has {said}\n"


def without(key):
    return lambda tensors: tensors.pop(key)


def with_more(**tensors):
    return lambda given: given.update(tensors)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without("blocks.1.norm2.bias"), "missing blocks.1.norm2.bias"),
        (without("cls_token"), "it has neither class token nor attention pooling nor fc_norm"),
        (without("pos_embed"), "missing pos_embed"),
        (with_more(dist_token=torch.zeros(1, 1, 64)), "it is a distilled DeiT"),
        (
            with_more(**{"blocks.0.mlp.w12.weight": torch.zeros(2, 2)}),
            "blocks.0.mlp.w12.weight: not part of a timm ViT",
        ),
        (
            with_more(**{"blocks.0.norm1.weight": torch.zeros(65)}),
            "blocks.0.norm1.weight is (65,), not (64,)",
        ),
        (with_more(cls_token=torch.zeros(1, 1, 64, dtype=torch.int64)), "cls_token is int64, not"),
    ],
)
def test_tensors_that_do_not_fit_are_named(refused, drawn, tmp_path, damage, said):
    tensors = contiguous(timm_model().state_dict())
    damage(tensors)
    path = tmp_path / "odd.safetensors"
    save_file(tensors, path)
    error = refused(train, f"--name a {BASE}", "--pretrained", path, "--data_root", drawn)
    assert error.startswith(f"error: --pretrained {path}: {said}")


# --- Files that are no weights --------------------------------------------------------------------


class Bomb:
    """Unpickling it would create a file."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def npz_bytes() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **google_arrays(our_weights()))
    return buffer.getvalue()


def torch_bytes(is_zip: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(timm_model().state_dict(), buffer, _use_new_zipfile_serialization=is_zip)
    return buffer.getvalue()


def safetensors_bytes(folder) -> bytes:
    return timm_safetensors(folder).path.read_bytes()


class TestDamaged:
    @pytest.fixture(scope="class")
    @classmethod
    def whole(cls, tmp_path_factory):
        """The bytes of good files by kind."""
        return {
            "npz": npz_bytes(),
            "torch": torch_bytes(is_zip=True),
            "old torch": torch_bytes(is_zip=False),
            "safetensors": safetensors_bytes(tmp_path_factory.mktemp("whole")),
        }

    @pytest.fixture
    def refuse(self, refused, drawn, tmp_path):
        def check(content: bytes) -> str:
            path = tmp_path / "weights"
            path.write_bytes(content)
            error = refused(train, f"--name a {BASE}", "--pretrained", path, "--data_root", drawn)
            assert error.startswith(f"error: --pretrained {path}: ")
            return error

        return check

    @pytest.mark.parametrize("kind", ["npz", "torch", "old torch", "safetensors"])
    @pytest.mark.parametrize("keep", [1, 10, 18, 19, 25, 200, 3000, 0.3, 0.9, -200, -1])
    def test_truncated(self, whole, refuse, kind, keep):
        data = whole[kind]
        refuse(data[: int(keep * len(data)) if isinstance(keep, float) else keep])

    @pytest.mark.parametrize("offset", [8, 10])  # flags: encrypted; method: unknown
    def test_archive_whose_directory_is_damaged(self, whole, refuse, offset):
        """In the directory at the end, which is what readers go by."""
        damaged = bytearray(whole["npz"])
        entry = damaged.index(b"PK\x01\x02")
        damaged[entry + offset] ^= 1
        error = refuse(bytes(damaged))
        assert "damaged" in error

    @pytest.mark.parametrize("content", [b"", b"these are no weights\n" * 9, b'{"weights": 1}'])
    def test_text(self, refuse, content):
        assert "it is neither .npz, safetensors nor a PyTorch file" in refuse(content)

    def test_arrays_of_numbers_alone(self, refuse):
        buffer = io.BytesIO()
        np.savez(buffer, a=np.zeros(3, np.float32), b=np.ones(2, np.float32))
        assert "its layout is none of google, timm" in refuse(buffer.getvalue())

    def test_a_whole_clip_model(self, refuse):
        names = ("text_model.embeddings.token_embedding.weight", "vision_model.post_layernorm.bias")
        buffer = io.BytesIO()
        torch.save({name: torch.zeros(2) for name in names}, buffer)
        assert "its layout is none of google, timm" in refuse(buffer.getvalue())

    @pytest.mark.parametrize("payload", [[1, 2], {"epoch": 3}, torch.zeros(3), {}])
    def test_no_state_dict(self, refuse, payload):
        buffer = io.BytesIO()
        torch.save(payload, buffer)
        assert re.search(r"(not a state dict|not hold tensors by name)", refuse(buffer.getvalue()))

    @pytest.mark.parametrize(
        "disguise", ["pickle", "torch", "old torch", "beside the weights", "npz"]
    )
    def test_a_pickle_that_would_run_code(self, refuse, tmp_path, disguise):
        target, buffer = tmp_path / "was_here", io.BytesIO()
        if disguise == "pickle":
            pickle.dump(Bomb(target), buffer)
        elif disguise == "npz":
            objects = np.array([Bomb(target)], dtype=object)
            np.savez(buffer, **{**google_arrays(our_weights()), "cls": objects})
        else:
            weights = timm_model().state_dict() if disguise == "beside the weights" else {}
            torch.save(
                {"state_dict": weights, "args": Bomb(target)},
                buffer,
                _use_new_zipfile_serialization=disguise != "old torch",
            )
        refuse(buffer.getvalue())
        assert not target.exists()

    def test_plain_data_beside_the_weights_is_no_harm(self, drawn, tmp_path):
        payload = {"model": timm_model().state_dict(), "epoch": 3, "args": {"lr": 0.1}}
        torch.save(payload, tmp_path / "run.pth")
        load(drawn, tmp_path, tmp_path / "run.pth")

    def test_a_folder(self, refused, drawn, tmp_path):
        flags = f"--name a {BASE}"
        error = refused(train, flags, "--pretrained", tmp_path, "--data_root", drawn)
        assert error == f"error: --pretrained {tmp_path} is a folder; name a file\n"

    def test_a_missing_file(self, refused, drawn, tmp_path):
        path = tmp_path / "absent.npz"
        error = refused(train, f"--name a {BASE}", "--pretrained", path, "--data_root", drawn)
        assert error == f"error: --pretrained {path} does not exist; name a file\n"
