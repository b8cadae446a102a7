"""utils/cli/resolve.py: from argv to one frozen config, or one line that says what is wrong."""

import json
from pathlib import Path

import pytest
from helpers import CHOICES
from ml_collections import FrozenConfigDict

from utils.cli.flags import FLAGS
from utils.cli.resolve import (
    parse_eval,
    parse_train,
    resolve_config,
    resolve_from_checkpoint,
)
from utils.errors import InputError

TOO_LONG = "x" * 300  # longer than a file name may be


def train_flags(*argv: object) -> FrozenConfigDict:
    """The flags of a training run on data that nobody opens."""
    base = "--name a --dataset synthetic --model_type testing --img_size 64 --output_dir out"
    return parse_train([*base.split(), *map(str, argv)], CHOICES)


def eval_flags(checkpoint: Path, *argv: object) -> FrozenConfigDict:
    """The flags of an evaluation of a checkpoint that nobody opens."""
    checkpoint.touch()
    base = ["--name", "a", "--checkpoint", checkpoint]
    return parse_eval([str(text) for text in [*base, *argv]], CHOICES)


class TestFlags:
    def test_are_frozen_plain_values_of_every_flag(self, tmp_path):
        for program, flags in (
            ("train", train_flags("--data_root", tmp_path)),
            ("eval", eval_flags(tmp_path / "ckpt.bin")),
        ):
            own = {name for name, flag in FLAGS.items() if program in flag.programs}
            assert set(flags) == own
            assert all(isinstance(v, str | int | float | bool | None) for v in flags.values())
            assert json.loads(flags.to_json()) == flags.to_dict()
            with pytest.raises(AttributeError, match="immutable"):
                flags.seed = 1

    def test_leave_to_data_and_checkpoint_what_those_decide(self, tmp_path):
        flags = train_flags()
        decided = ("data_root", "eval_split", "val_fraction", "split_seed", "warmup_steps")
        assert [flags[name] for name in decided] == [None] * 5
        flags = eval_flags(tmp_path / "ckpt.bin")
        assert (flags.dataset, flags.model_type, flags.img_size) == (None, None, None)
        assert flags.skip_bad_images == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--img_size 65", r"--img_size 65 is not a multiple.*16.*try 64"),
        ("--img_size 100 --model_type ViT-B_32", r"--img_size 100 is not.*32; try 96"),
        ("--split overlap --img_size 15", r"--img_size 15 is under the patch, 16"),
        ("--split overlap --slide_step 17", r"--slide_step 17 is over the patch, 16"),
        ("--freeze 4", r"--freeze 4: testing has 3 blocks"),
        ("--train_batch_size 4 --gradient_accumulation_steps 3", r"3 does not divide"),
        ("--preset strong --head parts", r"mixed images have no one class"),
    ],
)
def test_flags_that_do_not_fit_together_are_refused(argv, message):
    with pytest.raises(InputError, match=message):
        train_flags(*argv.split())


# For each flag that needs another: a value that is not its default, and argv that gives it meaning.
NEEDS = {
    "slide_step": ("8", "--split overlap"),
    "contrastive_weight": ("0.0", "--head parts"),
    "contrastive_margin": ("-0.5", "--head parts"),
    "contrastive_scope": ("effective", "--head parts"),
    "layer_decay": ("0.75", "--optimizer adamw"),
    "momentum": ("0.5", "--optimizer sgd"),
    "pos_resample": ("bilinear", "--pretrained weights"),
    "part_init": ("random", "--pretrained weights --head parts"),
    "allow_change": ("tta", "--resume"),
}


class TestDependentFlags:
    @pytest.fixture(autouse=True)
    def _weights(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("weights").touch()

    @pytest.mark.parametrize("flag", NEEDS)
    def test_without_the_other_are_refused_whatever_their_value(self, flag):
        value, needed = NEEDS[flag]
        unmet = ["--optimizer", "adamw"] if flag == "momentum" else []
        for text in (value, FLAGS[flag].default or value):
            with pytest.raises(InputError, match=f"^--{flag} means nothing without --") as caught:
                train_flags(*unmet, f"--{flag}={text}")
            assert str(caught.value).rpartition("without ")[2] in needed

    @pytest.mark.parametrize("flag", NEEDS)
    def test_with_the_other_are_taken_and_have_their_default(self, flag):
        value, needed = NEEDS[flag]
        assert str(train_flags(f"--{flag}={value}", *needed.split())[flag]) == value
        default = {"layer_decay": 1.0}.get(flag, FLAGS[flag].default)
        assert train_flags(*needed.split())[flag] == default != value
        # In config and hash momentum keeps its value under AdamW.
        unmet = train_flags("--optimizer", "adamw") if flag == "momentum" else train_flags()
        assert unmet[flag] == (0.9 if flag == "momentum" else None)

    def test_with_two_needs_name_the_one_that_is_not_met(self):
        random = ["--part_init", "random"]
        with pytest.raises(InputError, match=r"^--part_init means nothing without --head parts$"):
            train_flags(*random, "--pretrained", "weights")
        with pytest.raises(InputError, match=r"^--part_init means nothing without --pretrained$"):
            train_flags(*random, "--head", "parts")
        assert train_flags("--pretrained", "weights").part_init is None

    def test_a_profile_is_that_of_weights_or_of_their_normalisation(self):
        weights = ["--pretrained", "weights"]
        assert train_flags(*weights).pretrained_profile == "auto"
        for profile in ("google", "imagenet"):
            argv = ["--pretrained_profile", profile]
            assert train_flags(*weights, *argv).pretrained_profile == profile
            expected = None if profile == "google" else profile  # Google's is meant anyway
            assert train_flags(*argv).pretrained_profile == expected


def test_a_preset_fills_in_what_no_flag_says():
    names = ("augment", "random_erasing", "mixup", "cutmix")
    assert [train_flags()[name] for name in names] == ["none", 0, 0, 0]
    strong = train_flags("--preset", "strong", "--mixup", 0, "--augment", "none")
    assert [strong[name] for name in names] == ["none", 0.25, 0, 1]


def test_a_config_is_the_flags_with_what_was_decided():
    flags = train_flags("--seed", 7)
    model = {"depth": 3, "pool": "token"}
    config = resolve_config(flags, {"eval_split": "val", "model": model}, {"num_steps": 5})
    assert config.to_dict() == {
        **flags.to_dict(),
        "eval_split": "val",
        "num_steps": 5,
        "model": model,
    }
    with pytest.raises(AttributeError, match="immutable"):
        config.model.depth = 1
    assert (flags.eval_split, flags.num_steps) == (None, None)


CHECKPOINT = {"dataset": "synthetic", "model_type": "testing", "img_size": 64, "preset": "transfg"}


class TestFromCheckpoint:
    def test_fills_what_was_left_open_and_agrees_with_flags_that_agree(self, tmp_path):
        told = {key: CHECKPOINT[key] for key in ("model_type", "img_size", "preset")}
        agreeing = ["--dataset", "flower102", "--model_type", "testing", "--img_size", "64"]
        for argv, workers in (([], 2), (agreeing, 2), (["--tiny_infer_subset", "x_tiny"], 0)):
            flags = eval_flags(tmp_path / "ckpt.bin", *argv)
            decided = resolve_from_checkpoint(flags, CHECKPOINT)
            assert decided == {**told, "num_workers": workers}

    @pytest.mark.parametrize(
        ("flag", "asked", "has"),
        [("--model_type", "ViT-B_16", "testing"), ("--img_size", "96", "64")],
    )
    def test_names_both_values_of_a_contradiction(self, tmp_path, flag, asked, has):
        flags = eval_flags(tmp_path / "ckpt.bin", flag, asked)
        with pytest.raises(InputError, match=f"{flag} {asked} contradicts .*ckpt.bin.*{has}$"):
            resolve_from_checkpoint(flags, CHECKPOINT)


class TestPaths:
    def test_of_weights_must_be_files(self, tmp_path):
        for path, state in ((tmp_path / "absent", "does not exist"), (tmp_path, "is a folder")):
            with pytest.raises(InputError, match=f"^--pretrained {path} {state}; name a file$"):
                train_flags("--pretrained", path)
            with pytest.raises(InputError, match=f"^--checkpoint {path} {state}; name a file$"):
                parse_eval(["--name", "a", "--checkpoint", str(path)], CHOICES)

    def test_of_the_cache_is_in_the_output_folder_unless_told(self):
        assert train_flags("--cache", "disk").cache_dir == "out/.cache"
        assert train_flags("--cache", "disk", "--cache_dir", "elsewhere").cache_dir == "elsewhere"

    def test_of_the_cache_must_be_writable(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match=r"^--cache_dir .*file is a file, not a folder"):
            train_flags("--cache", "disk", "--cache_dir", tmp_path / "file" / "deeper")

    def test_of_a_snapshot_is_absolute(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert train_flags("--resume", "last.bin").resume == str(tmp_path.resolve() / "last.bin")
        assert train_flags("--resume").resume == "last"

    def test_that_no_system_takes_are_bad_input(self, tmp_path):
        """A path too long for the file system is bad input like any other, not a traceback."""
        with pytest.raises(InputError, match=f"^--pretrained .*{TOO_LONG}: "):
            train_flags("--pretrained", tmp_path / TOO_LONG)
        with pytest.raises(InputError, match=f"^--cache_dir .*{TOO_LONG}: "):
            train_flags("--cache", "disk", "--cache_dir", tmp_path / TOO_LONG)
        with pytest.raises(InputError, match=f"^--output_dir .*{TOO_LONG}"):
            train_flags("--cache", "disk", "--output_dir", tmp_path / TOO_LONG)
