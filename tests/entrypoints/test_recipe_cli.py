"""`train.py --recipe`: each recipe on a tiny copy of its dataset, and what the run says of it."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from helpers import REPO, TINY_EVAL, evaluate, files_below, read_json, rows_of, train
from layouts_birds import write_cub, write_nabirds
from layouts_objects import write_cars, write_dogs
from layouts_own import write_folder
from layouts_web import write_inat
from safetensors.torch import save_file

from models.build import build_model
from models.configs import get_config
from models.pretrained.profiles import PROFILES
from utils.cli.recipes import RECIPES, describe_recipes
from utils.data.catalog import get_spec
from utils.data.readers import synthetic
from utils.data_utils import RunPaths

sys.path.insert(0, str(REPO / "tests" / "models"))
from paper_transfg import in_their_names

# What makes a recipe small enough for a test. Typed in full: that is what the stamp must say.
BY_HAND = {
    "model_type": "testing",
    "img_size": 32,
    "num_steps": 2,
    "warmup_steps": 1,
    "learning_rate": 0.01,
    "train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "eval_batch_size": 2,
    "eval_every": 2,
}
SMALL = " ".join(f"--{flag} {value}" for flag, value in BY_HAND.items())
NEED_WEIGHTS = {"part_init", "pos_resample"}
HALF = [0.5, 0.5, 0.5]
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def draw_flowers(root: Path) -> Path:
    synthetic.draw(root)
    return root


class Tiny(NamedTuple):
    """A tiny copy of a recipe's dataset, and what a run on it must say."""

    write: Callable[[Path], Path]
    dataset: str
    split: str  # that is evaluated
    samples: int  # of that split


TINY = {
    "transfg-cub": Tiny(write_cub, "CUB_200_2011", "test", 6),
    "transfg-car": Tiny(write_cars, "car", "test", 6),
    "transfg-dog": Tiny(write_dogs, "dog", "test", 6),
    "transfg-nabirds": Tiny(write_nabirds, "nabirds", "test", 6),
    "transfg-inat": Tiny(write_inat, "INat2017", "val", 6),
    "vit-flowers": Tiny(draw_flowers, "flower102", "val", 100),
    "small-data": Tiny(write_folder, "folder", "val", 6),
    "finetune": Tiny(write_folder, "folder", "val", 6),
    "probe-then-finetune": Tiny(draw_flowers, "synthetic", "val", 100),
}


@pytest.fixture(scope="module")
def birds(tmp_path_factory) -> Path:
    """A tiny CUB. Read only."""
    return write_cub(tmp_path_factory.mktemp("birds") / "CUB_200_2011", train_images=8)


@pytest.fixture
def run(tmp_path) -> Callable[..., RunPaths]:
    """Trains a small run of the given flags on the data at a root."""

    def call(flags: str, root: Path, name: str = "run") -> RunPaths:
        flags = f"--name {name} {flags} --num_workers 0 --device cpu"
        assert train(flags, "--data_root", root, "--output_dir", tmp_path) == 0
        return RunPaths(tmp_path, name)

    return call


@pytest.mark.parametrize("name", RECIPES)
def test_trains_evaluates_and_is_recorded(tmp_path, run, name, finished_run, capsys):
    tiny, recipe = TINY[name], RECIPES[name]
    root = tiny.write(tmp_path / "data")
    # The recipe that is for any dataset is told which.
    dataset = "" if "dataset" in recipe.knobs else f"--dataset {tiny.dataset}"
    weights = f"--pretrained {finished_run.checkpoint}" if recipe.start else ""
    paths = run(f"--recipe {name} {dataset} {weights} {SMALL}", root)
    if recipe.start:
        assert re.search(r"^  new +none$", capsys.readouterr().out, re.M)  # the head, too, is kept
    metrics, stamp = read_json(paths.metrics), read_json(paths.env_stamp)
    assert (metrics["split"], metrics["step"]) == (tiny.split, 2)
    assert metrics["samples"] == len(rows_of(paths)) == tiny.samples
    assert stamp["dataset"]["name"] == get_spec(tiny.dataset).name
    assert stamp["selected_on"] == tiny.split

    offered = recipe.values("testing")
    left_out = NEED_WEIGHTS & offered.keys()
    by_hand = {flag: value for flag, value in BY_HAND.items() if flag in offered}
    recorded = stamp["config"]["recipe"]
    shortened = recorded.pop("shortened", {})
    assert shortened == {flag: knob.value for flag, knob in recipe.short.items()}
    assert {**recorded, "left_out": set(recorded["left_out"])} == {
        "name": name,
        "values": offered,
        "by_hand": by_hand,
        "left_out": left_out,
    }
    # Also from random weights: where TransFG's code runs on them, it normalises the same.
    profile = PROFILES[offered.get("pretrained_profile", "google")]
    assert stamp["normalization"] == {"mean": list(profile.mean), "std": list(profile.std)}
    for flag, value in offered.items():
        # Random weights are fed as Google's anyway.
        is_out = flag in left_out or (flag, value) == ("pretrained_profile", "google")
        assert stamp["config"][flag] == (
            "none" if is_out else by_hand.get(flag, shortened.get(flag, value))
        ), flag

    flags = f"--name again {TINY_EVAL} --checkpoint {paths.checkpoint}"
    assert evaluate(flags, "--data_root", root, "--output_dir", tmp_path) == 0
    assert RunPaths(tmp_path, "again").metrics.read_bytes() == paths.metrics.read_bytes()


class TestWeights:
    """What a recipe says of weights, where the default would be something else."""

    @pytest.fixture(scope="class")
    def weights(self) -> dict[str, torch.Tensor]:
        """Of the `testing` model at 32 px, with a head of 7 classes."""
        return build_model(get_config("testing", 32), 7).state_dict()

    def test_transfg_normalises_as_imagenet_and_leaves_the_part_block_random(
        self, tmp_path, run, weights, birds, capsys
    ):
        path = tmp_path / "ViT-B_16.bin"
        torch.save(in_their_names(weights), path)
        flags = f"--recipe transfg-cub {SMALL} --img_size 64 --pretrained {path}"
        stamp = read_json(run(flags, birds).env_stamp)
        assert stamp["normalization"] == {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
        assert stamp["config"]["recipe"]["left_out"] == []
        out = capsys.readouterr().out
        assert re.search(r"new .*part_block\.", out)
        assert re.search(r"resized .*position_embeddings \(2x2 to 5x5 patches, bilinear\)", out)

    def test_vit_normalises_as_google(self, tmp_path, run, weights, drawn):
        path = tmp_path / "model.safetensors"  # of timm's names: ImageNet's by default
        save_file(weights, path)
        flags = f"--recipe vit-flowers {SMALL} --img_size 64 --pretrained {path}"
        stamp = read_json(run(flags, drawn).env_stamp)
        assert stamp["normalization"] == {"mean": HALF, "std": HALF}
        assert stamp["config"]["pos_resample"] == "bilinear"

    def test_a_checkpoint_of_our_own_takes_no_profile(self, run, refused, drawn, finished_run):
        flags = f"--recipe vit-flowers {SMALL} --pretrained {finished_run.checkpoint}"
        error = refused(train, f"--name a {flags} --device cpu", "--data_root", drawn)
        assert "--pretrained_profile google" in error
        assert error.endswith("use --pretrained_profile auto\n")
        stamp = read_json(run(f"{flags} --pretrained_profile auto", drawn).env_stamp)
        assert stamp["config"]["recipe"]["by_hand"]["pretrained_profile"] == "auto"


class TestByHand:
    def test_the_same_flags_are_the_same_experiment_with_the_same_result(self, run, birds):
        by_recipe = read_json(run(f"--recipe transfg-cub {SMALL}", birds, "recipe").env_stamp)
        left_out = by_recipe["config"]["recipe"]["left_out"]
        values = RECIPES["transfg-cub"].values() | BY_HAND
        flags = " ".join(f"--{key} {v}" for key, v in values.items() if key not in left_out)
        by_hand = read_json(run(flags, birds, "hand").env_stamp)
        assert by_hand["config"]["recipe"] == "none"
        for key in ("config_hash", "predictions_digest"):
            assert by_hand[key] == by_recipe[key]

    def test_what_it_decides_and_what_means_nothing_is_recorded(self, run, birds):
        flags = SMALL.replace("--num_steps 2 --warmup_steps 1", "--epochs 1")
        flags = f"--recipe transfg-cub {flags} --dropout 0.0 --head token --val_fraction 0.25"
        stamp = read_json(run(flags, birds).env_stamp)
        config = stamp["config"]
        assert (config["dropout"], config["head"], config["model"]["dropout"]) == (0, "token", 0)
        assert config["recipe"]["values"]["dropout"] == 0.1
        by_hand = {k: v for k, v in BY_HAND.items() if k not in ("num_steps", "warmup_steps")}
        chosen = {"dropout": 0.0, "head": "token", "epochs": 1, "val_fraction": 0.25}
        assert config["recipe"]["by_hand"] == {**by_hand, **chosen}
        meaningless = {"contrastive_weight", "contrastive_margin", "contrastive_scope"}
        decided = {"num_steps", "eval_split"}
        assert set(config["recipe"]["left_out"]) == meaningless | decided | NEED_WEIGHTS
        assert {config[flag] for flag in meaningless} == {"none"}
        assert (config["num_steps"], config["warmup_steps"]) == (3, 1)  # of 8 of 18 images
        assert stamp["selected_on"] == "val"
        assert (stamp["dataset"]["samples"], stamp["dataset"]["eval_samples"]) == (18, 6)


def test_the_list_is_printed_without_torch(tmp_path):
    command = [sys.executable, "-X", "importtime", REPO / "train.py", "--recipe", "list"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{describe_recipes()}\n")
    imported = set(re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.M))
    assert "utils.cli.recipes" in imported
    assert not imported & {"torch", "torchvision", "scipy", "tensorboard", "fiftyone"}
    assert files_below(tmp_path) == set()


@pytest.mark.parametrize("kept", [len(RECIPES), 1])
def test_a_pipe_of_the_list_may_be_closed_early(kept):
    """As `| head` does. What fits Python's buffer would make it complain again as it ends."""
    code = (
        "import train, utils.cli.recipes as r\n"
        f"r.RECIPES = dict(list(r.RECIPES.items())[-{kept}:])\n"
        "train.main(['--recipe', 'list'])"
    )
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=REPO,
        env=buffered,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_the_data_of_a_recipe_that_is_not_there_are_named(refused, tmp_path):
    (tmp_path / "data").mkdir()
    error = refused(train, "--name a --recipe transfg-dog", "--data_root", tmp_path / "data")
    assert "holds no Images or images, nor does a dog/" in error
