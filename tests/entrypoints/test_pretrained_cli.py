"""`train.py --pretrained` with weight files as other projects and we write them.

That every layout is read right is proven in `tests/models/test_parity.py`, each refusal in the
tests of `models/pretrained/`; here is what a run makes of it, and one case for each kind of error.
"""

import io
import json
import math
import re
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from helpers import REPO, TINY_EVAL, TINY_TRAIN, evaluate, read_json, train, write_checkpoint
from timm.models import create_model, save_for_hf

from models.build import build_model
from models.configs import get_config
from utils.data_utils import RunPaths
from utils.run.checkpoint import load_checkpoint

sys.path.insert(0, str(REPO / "tests" / "models"))
from google_weights import google_arrays

SUBSETS = "--tiny_train_subset synthetic_tiny --tiny_infer_subset synthetic_tiny"
BASE = f"--dataset synthetic {TINY_TRAIN} {SUBSETS} --num_steps 1 --eval_every 1"
FROZEN = f"{BASE} --freeze backbone"
STILL = "--learning_rate 1e-60"  # a step that moves nothing
IN_BACKBONE = ("cls_token", "pos_embed", "patch_embed.", "blocks.")

HALF = [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]
IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CLIP = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
OTHER = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
EVERYTHING = "mean, std, layer_norm_eps, activation"


def randomized(model):
    """`model` with no weight at its initial value, zero or one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def our_weights():
    """Random weights of the `testing` model under our names, with a head of 7 classes."""
    state_dict = randomized(build_model(get_config("testing", 32), 7)).state_dict()
    return {key: value.detach() for key, value in state_dict.items()}


# --- Files as others write them -------------------------------------------------------------------


class Foreign(NamedTuple):
    """A weight file, and what a run must make of it."""

    path: Path
    layout: str
    weights: dict[str, torch.Tensor]  # under the names of our plain model
    normalization: tuple[list[float], list[float]]
    assumed: str | None = None  # what the warning names
    head: str = "head.bias, head.weight"  # its tensors as the file names them


def timm_with_config(folder):
    """As timm writes it for the hub, with statistics of its own in the config.json."""
    sizes = {"embed_dim": 64, "depth": 3, "num_heads": 4}
    statistics = {"mean": OTHER[0], "std": OTHER[1]}
    model = randomized(
        create_model(
            "vit_tiny_patch16_224",
            img_size=32,
            mlp_ratio=2,
            num_classes=7,
            **sizes,
            pretrained_cfg_overlay=statistics,
        )
    )
    save_for_hf(model, folder, model_args=sizes, safe_serialization=True)
    return Foreign(folder / "model.safetensors", "timm", model.state_dict(), OTHER)


def google(folder):
    weights = our_weights()
    np.savez(folder / "ViT-B_16.npz", **google_arrays(weights, heads=4))
    return Foreign(
        folder / "ViT-B_16.npz", "google", weights, HALF, EVERYTHING, "head/bias, head/kernel"
    )


def load(drawn, output, path, flags="", name="run", base=FROZEN):
    """A run of one step from the weights at `path`; its paths."""
    where = "--pretrained", path, "--data_root", drawn, "--output_dir", output
    assert train(f"--name {name} {base} {flags}", *where) == 0
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


@pytest.mark.parametrize("write", [timm_with_config, google])
def test_a_foreign_file_is_loaded_accounted_for_and_evaluated_with(write, drawn, tmp_path, capsys):
    foreign = write(tmp_path)
    paths = load(drawn, tmp_path, foreign.path)
    out = capsys.readouterr().out
    assert f"pretrained {foreign.path}: layout {foreign.layout}\n" in out
    checkpoint = load_checkpoint(paths.checkpoint)
    weights = checkpoint.state_dict
    head = "head.bias, head.weight"
    assert table(out) == {
        "loaded": f"{len(weights) - 2} tensors",
        "resized": "none",
        "new": head,
        "unused": foreign.head,
        "notes": "none",
    }
    backbone = {key for key in weights if key.startswith(IN_BACKBONE)}
    assert len(backbone) == 40
    assert all(torch.equal(weights[key], foreign.weights[key]) for key in backbone)
    assert checkpoint.model_config == get_config("testing", 32).to_dict()
    assert weights["head.weight"].shape == (10, 64)
    # What nothing says is assumed, and said once.
    lines = warnings_in(out)
    assert len(lines) == (0 if foreign.assumed is None else 1)
    if lines:
        said, _, taken = lines[0].partition(": assumed ")
        assert said.endswith(f" {foreign.assumed}")
        mean, std = (" ".join(f"{v:.4g}" for v in values) for values in foreign.normalization)
        assert taken.startswith(f"mean {mean}, std {std}, LayerNorm eps 1e-06, gelu;")
        assert "--pretrained_profile" in taken
    # The normalisation is the file's in training and evaluation.
    where = "--checkpoint", paths.checkpoint, "--data_root", drawn, "--output_dir", tmp_path
    flags = f"--name check {TINY_EVAL} --tiny_infer_subset synthetic_tiny"
    assert evaluate(flags, *where) == 0
    stamps = [read_json(RunPaths(tmp_path, name).env_stamp) for name in ("run", "check")]
    recorded = [stamp["config"]["normalization"] for stamp in stamps]
    recorded += [stamp["normalization"] for stamp in stamps]
    for normalization in (checkpoint.normalization, *recorded):
        assert mean_and_std(normalization) == foreign.normalization
    assert stamps[0]["predictions_digest"] == stamps[1]["predictions_digest"]
    metrics = [RunPaths(tmp_path, name).metrics.read_bytes() for name in ("run", "check")]
    assert metrics[0] == metrics[1]


# --- Profiles and the files beside the weights ----------------------------------------------------


def test_a_named_profile_and_a_changed_file_beside_are_other_experiments(drawn, tmp_path, capsys):
    path = timm_with_config(tmp_path).path
    by_file = load(drawn, tmp_path, path, "--learning_rate 1", name="auto", base=BASE)
    flags = "--pretrained_profile clip-quickgelu --learning_rate 1"
    named = load(drawn, tmp_path, path, flags, name="named", base=BASE)
    assert warnings_in(capsys.readouterr().out) == []
    checkpoint, stamp = load_checkpoint(named.checkpoint), read_json(named.env_stamp)
    assert mean_and_std(checkpoint.normalization) == CLIP
    assert mean_and_std(stamp["normalization"]) == CLIP
    assert stamp["config"]["pretrained_profile"] == "clip-quickgelu"
    model = checkpoint.model_config
    assert (model["layer_norm_eps"], model["activation"]) == (1e-5, "quick_gelu")
    config = read_json(tmp_path / "config.json")
    config["pretrained_cfg"]["mean"] = IMAGENET[0]  # the same weights, but another model
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    changed = load(drawn, tmp_path, path, "--learning_rate 1", name="changed", base=BASE)
    stamps = [stamp, *(read_json(paths.env_stamp) for paths in (by_file, changed))]
    for key in ("config_hash", "predictions_digest"):
        assert len({stamp[key] for stamp in stamps}) == 3


def test_an_unusable_file_beside_the_weights_is_refused(refused, drawn, tmp_path):
    path = google(tmp_path).path
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    error = refused(train, f"--name a {BASE}", "--pretrained", path, "--data_root", drawn)
    beside = tmp_path / "config.json"
    said = f"{beside} is not readable as JSON; mend or remove it, or name a --pretrained_profile"
    assert error == f"error: --pretrained {path}: {said}\n"
    load(drawn, tmp_path / "named", path, "--pretrained_profile google")  # then it is not read


# --- Our own --------------------------------------------------------------------------------------


class TestOwnCheckpoint:
    @pytest.fixture(scope="class")
    @classmethod
    def own(cls, drawn, tmp_path_factory):
        """A run of ours from somebody's weights, with a normalisation of their own. Read only."""
        folder = tmp_path_factory.mktemp("own")
        paths = load(drawn, folder, timm_with_config(folder).path, "--dropout 0.1", base=BASE)
        return paths.checkpoint

    def test_hands_on_normalisation_and_head_but_not_its_dropout(
        self, own, drawn, tmp_path, capsys
    ):
        paths = load(drawn, tmp_path, own, STILL)
        out = capsys.readouterr().out
        assert warnings_in(out) == []
        assert f"pretrained {own}: layout ours\n" in out
        assert table(out)["new"] == "none"  # the classes are the same
        before, after = load_checkpoint(own), load_checkpoint(paths.checkpoint)
        assert mean_and_std(after.normalization) == OTHER
        assert mean_and_std(read_json(paths.env_stamp)["normalization"]) == OTHER
        assert (before.model_config["dropout"], after.model_config["dropout"]) == (0.1, 0.0)
        assert torch.equal(before.state_dict["head.weight"], after.state_dict["head.weight"])
        assert before.state_dict["head.weight"].abs().max() > 0

    def test_gives_no_head_for_other_classes(self, own, drawn, tmp_path, capsys):
        checkpoint = load_checkpoint(own)
        classes = ["another", *checkpoint.classes[1:]]
        write_checkpoint(tmp_path / "other.bin", checkpoint._replace(classes=classes))
        paths = load(drawn, tmp_path, tmp_path / "other.bin", STILL)
        fates = table(capsys.readouterr().out)
        assert fates["new"] == fates["unused"] == "head.bias, head.weight"
        assert not load_checkpoint(paths.checkpoint).state_dict["head.weight"].abs().max() > 1e-20

    def test_hands_on_its_head_in_another_order(self, own, drawn, tmp_path, capsys):
        """As runs have it that ordered their classes otherwise."""
        checkpoint = load_checkpoint(own)
        head = {key: checkpoint.state_dict[key].flip(0) for key in ("head.weight", "head.bias")}
        other = checkpoint._replace(
            classes=checkpoint.classes[::-1], state_dict={**checkpoint.state_dict, **head}
        )
        write_checkpoint(tmp_path / "other.bin", other)
        paths = load(drawn, tmp_path, tmp_path / "other.bin", STILL)
        assert table(capsys.readouterr().out)["new"] == "none"
        after = load_checkpoint(paths.checkpoint).state_dict
        assert torch.equal(after["head.weight"], checkpoint.state_dict["head.weight"])

    def test_of_a_plain_model_starts_a_part_model_and_back(self, own, drawn, tmp_path, capsys):
        still = f"--img_size 64 {STILL}"
        parts = load(drawn, tmp_path, own, f"--head parts {still}", name="parts")
        fates = table(capsys.readouterr().out)
        assert fates["resized"] == "pos_embed (2x2 to 4x4 patches, bicubic)"
        assert fates["new"] == fates["unused"] == "none"
        back = load(drawn, tmp_path, parts.checkpoint, still, name="back")
        assert table(capsys.readouterr().out)["resized"] == "none"
        before, after = (load_checkpoint(path).state_dict for path in (own, back.checkpoint))
        assert after.keys() == before.keys()
        same = {key for key in before if torch.equal(before[key], after[key])}
        assert same == before.keys() - {"pos_embed"}

    def test_is_not_its_snapshot(self, own, refused, drawn):
        last = own.with_name("last.bin")
        error = refused(train, f"--name a {BASE}", "--pretrained", last, "--data_root", drawn)
        assert error.endswith(f"{last} is a snapshot, for --resume; name a run's ckpt.bin\n")

    def test_takes_no_profile(self, own, refused, drawn):
        flags = f"--name a {BASE} --pretrained_profile imagenet"
        error = refused(train, flags, "--pretrained", own, "--data_root", drawn)
        assert error == (
            f"error: --pretrained_profile imagenet: {own} says itself how it was trained; "
            "use --pretrained_profile auto\n"
        )

    def test_takes_no_key(self, own, refused, drawn):
        flags = f"--name a {BASE} --pretrained_key model"
        error = refused(train, flags, "--pretrained", own, "--data_root", drawn)
        assert error.endswith(f" {own} holds one model; leave the flag out\n")

    @pytest.mark.parametrize("position", [0, "fine-vit checkpoint", 0.5, -66])
    def test_is_refused_if_damaged_even_where_it_says_that_it_is_ours(
        self, own, refused, drawn, tmp_path, position
    ):
        damaged, path = bytearray(own.read_bytes()), tmp_path / "damaged.bin"
        if isinstance(position, str):
            position = damaged.index(position.encode())
        damaged[int(position * len(damaged)) if isinstance(position, float) else position] ^= 1
        path.write_bytes(damaged)
        error = refused(train, f"--name a {BASE}", "--pretrained", path, "--data_root", drawn)
        assert str(path) in error
        assert "damaged" in error

    @pytest.mark.parametrize("is_training", [True, False])
    def test_of_an_unusable_model_config_is_refused(
        self, own, refused, drawn, tmp_path, is_training
    ):
        checkpoint, path = load_checkpoint(own), tmp_path / "odd.bin"
        odd = {**checkpoint.model_config, "patch_size": 0, "layer_norm_eps": math.nan, 7: 8}
        write_checkpoint(path, checkpoint._replace(model_config=odd))
        said = (
            "an unusable model config: a field's name is not text, patch_size is not an integer "
            "from 1 to 65536, layer_norm_eps is not a number from 0 to 1"
        )
        if is_training:
            error = refused(train, f"--name a {BASE}", "--pretrained", path, "--data_root", drawn)
            assert error == f"error: --pretrained {path}: it has {said}\n"
        else:
            flags = f"--name a {TINY_EVAL} --checkpoint {path}"
            error = refused(evaluate, flags, "--data_root", drawn)
            assert error == f"error: checkpoint {path} has {said}; name a run's ckpt.bin\n"


# --- A file of several models ---------------------------------------------------------------------


def test_pretrained_key_chooses_the_model_and_is_another_experiment(drawn, tmp_path, capsys):
    path, raw = tmp_path / "both.pth", our_weights()
    averaged = {key: value + 1 for key, value in raw.items()}
    torch.save({"model": raw, "model_ema": averaged}, path)
    by_rule = load(drawn, tmp_path, path, name="rule")
    notes = table(capsys.readouterr().out)["notes"]
    assert notes == "took model, not the averaged copy (--pretrained_key model_ema)"
    chosen = load(drawn, tmp_path, path, "--pretrained_key model_ema", name="chosen")
    assert table(capsys.readouterr().out)["notes"] == "none"
    for paths, weights in ((by_rule, raw), (chosen, averaged)):
        trained = load_checkpoint(paths.checkpoint).state_dict
        assert torch.equal(trained["cls_token"], weights["cls_token"])
    assert len({read_json(paths.env_stamp)["config_hash"] for paths in (by_rule, chosen)}) == 2


def test_pretrained_key_that_names_no_model_is_refused(refused, drawn, tmp_path):
    torch.save({"a": our_weights(), "b": our_weights()}, tmp_path / "both.pth")
    flags = f"--name a {BASE} --pretrained_key c"
    error = refused(train, flags, "--pretrained", tmp_path / "both.pth", "--data_root", drawn)
    assert error.endswith(": --pretrained_key c: it holds models at: a, b\n")
    error = refused(train, f"--name a {BASE} --pretrained_key a", "--data_root", drawn)
    assert error == "error: --pretrained_key means nothing without --pretrained\n"


# --- One refusal of each kind ---------------------------------------------------------------------


def torch_bytes(payload) -> bytes:
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    return buffer.getvalue()


def with_tensors(**changes) -> bytes:
    """Our weights with some tensors replaced, or left out where None is given."""
    tensors = {**our_weights(), **changes}
    return torch_bytes({key: value for key, value in tensors.items() if value is not None})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"not weights\n" * 9, "it is neither .npz, safetensors nor a PyTorch file"),
        (with_tensors()[:-200], "it is a damaged or truncated archive; copy it again"),
        (
            torch_bytes({"state_dict": our_weights(), "args": Path()}),
            "it holds pathlib.PosixPath beside tensors, which was not loaded; take these out: ",
        ),
        (torch_bytes({"fc": torch.zeros(2)}), "its layout is none of google, timm, transfg, "),
        (
            with_tensors(**{f"blocks.{i}.norm1.bias": torch.zeros(64) for i in range(4)}),
            "it has depth 4, not 3, which no --model_type has",
        ),
        (with_tensors(**{"blocks.1.norm2.bias": None}), "missing blocks.1.norm2.bias"),
        (
            with_tensors(**{"norm.bias": torch.full((64,), torch.nan)}),
            "not finite: norm.bias; the file is damaged or overflowed",
        ),
    ],
    ids=["kind", "damaged", "objects", "layout", "size", "missing", "not finite"],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_line(refused, drawn, tmp_path, content, said):
    path = tmp_path / "weights"
    path.write_bytes(content)
    error = refused(train, f"--name a {BASE}", "--pretrained", path, "--data_root", drawn)
    assert error.startswith(f"error: --pretrained {path}: {said}")


class TestOfAnotherModelType:
    """Where other flags do not fit the model type, but it does not fit the weights either."""

    @pytest.mark.parametrize(
        ("model_type", "flags", "says"),
        [
            ("ViT-S_14", "--img_size 98", "patch_size 14, not 16"),
            ("ViT-Ti_16", "--img_size 60", "embed_dim 192, not 64"),
            ("ViT-S_32", "--split overlap --slide_step 20 --img_size 64", "patch_size 32, not 16"),
            ("ViT-Ti_16", "--freeze 7", "embed_dim 192, not 64"),
        ],
    )
    def test_the_one_that_fits_is_named(self, refused, drawn, tmp_path, model_type, flags, says):
        path = tmp_path / "weights.bin"
        config = get_config(model_type)
        torch.save(build_model(config, 2).state_dict(), path)
        error = refused(train, f"--name a {BASE} {flags}", "--pretrained", path)
        assert error.startswith(f"error: --pretrained {path}: it has ")
        assert says in error
        assert error.endswith(f"; use --model_type {model_type}\n")

    def test_else_the_other_flag_is_to_blame(self, refused, tmp_path):
        own = tmp_path / "weights.bin"
        torch.save(our_weights(), own)
        error = refused(train, f"--name a {BASE} --img_size 60", "--pretrained", own)
        assert error.endswith("--img_size 60 is not a multiple of the patch, 16; try 64\n")
        error = refused(train, f"--name a {BASE} --img_size 60", "--pretrained", "absent")
        assert error.startswith("error: --pretrained absent does not exist; name a file, hf:")


@pytest.mark.parametrize(("name", "said"), [("", "is a folder"), ("/absent", "does not exist")])
def test_a_path_that_is_not_a_file_is_refused(refused, drawn, tmp_path, name, said):
    path = f"{tmp_path}{name}"
    error = refused(train, f"--name a {BASE}", "--pretrained", path, "--data_root", drawn)
    assert error == f"error: --pretrained {path} {said}; name a file\n"
