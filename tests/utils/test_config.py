"""utils/config.py: from argv to one frozen config, or one line that says what is wrong."""

import contextlib
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import REPO, files_below
from hypothesis import example, given, settings
from hypothesis import strategies as st
from layouts_own import write_csv
from ml_collections import FrozenConfigDict

from models.build import build_model
from models.configs import get_config, model_names, patch_sizes
from utils.config import (
    check_freeze,
    check_img_size,
    parse_eval_args,
    parse_train_args,
    resolve_from_checkpoint,
    resolve_length,
    resolve_model,
)
from utils.dependent_flags import DEPENDENT
from utils.errors import InputError
from utils.flags import MAX_WARMUP_STEPS

PATCHES = patch_sizes()
TOO_LONG = "x" * 300  # longer than a file name may be


def train_config(output: Path, *argv: str, dataset: str = "synthetic") -> FrozenConfigDict:
    """The config of a training run on data that need not be there."""
    base = ["--name", "a", "--dataset", dataset, "--output_dir", str(output)]
    return parse_train_args([*base, "--model_type", "testing", "--img_size", "64", *argv], PATCHES)


def eval_config(output: Path, *argv: str, checkpoint: Path | None = None) -> FrozenConfigDict:
    """The config of an evaluation; the checkpoint is a file that nobody opens."""
    if checkpoint is None:
        checkpoint = output / "trained" / "checkpoints" / "ckpt.bin"
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.touch()
    base = ["--name", "a", "--output_dir", str(output), "--checkpoint", str(checkpoint)]
    return parse_eval_args([*base, *argv], model_names())


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    """A folder with the three entries of the official layout, all empty."""
    root = tmp_path / "photos" / "flower102"
    (root / "jpg").mkdir(parents=True)
    (root / "imagelabels.mat").touch()
    (root / "setid.mat").touch()
    return root


class TestConfig:
    def test_is_frozen(self, tmp_path):
        for config in (train_config(tmp_path), eval_config(tmp_path)):
            with pytest.raises(AttributeError, match="immutable"):
                config.seed = 1
            with pytest.raises(AttributeError, match=r"immutable|Did you mean"):
                config.unknown = 1

    def test_holds_plain_values_only(self, tmp_path, flowers):
        config = train_config(tmp_path, "--data_root", str(flowers), dataset="flower102")
        for key, value in config.items():
            assert isinstance(value, str | int | float | bool | None), key
        assert json.loads(config.to_json()) == config.to_dict()

    def test_imports_no_torch(self):
        code = (
            "import sys, utils.config, utils.data_utils, utils.recipes, models.configs\n"
            "heavy = {'torch', 'torchvision', 'scipy', 'tensorboard', 'fiftyone'}\n"
            "print(sorted(heavy & sys.modules.keys()))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True
        )
        assert done.stdout == "[]\n"

    def test_parsing_writes_nothing(self, tmp_path):
        before = files_below(tmp_path)
        train_config(tmp_path / "output")
        assert files_below(tmp_path) == before

    def test_the_task_lists_commands(self, tmp_path, flowers, monkeypatch):
        """Letter for letter, but for the place of output and data."""
        monkeypatch.chdir(tmp_path)
        common = f"--data_root {flowers} --output_dir output --prefer_mps"
        config = parse_train_args(
            f"--name flower_mps --dataset flower102 {common} --model_type testing --img_size 64 "
            "--num_steps 10 --eval_every 5 --train_batch_size 4 --eval_batch_size 2 "
            "--tiny_train_subset flower102_tiny --tiny_infer_subset flower102_tiny".split(),
            PATCHES,
        )
        assert (config.tiny_train_subset, config.eval_every) == ("flower102_tiny", 5)
        config = parse_train_args(
            f"--name meta_test --dataset flower102 {common} --img_size 64 --num_steps 2 "
            "--eval_every 2 --train_batch_size 2 --eval_batch_size 2 "
            "--tiny_train_subset flower102_tiny --tiny_infer_subset flower102_tiny".split(),
            PATCHES,
        )
        assert config.model_type == "ViT-B_16"
        checkpoint = tmp_path / "output" / "flower_mps" / "checkpoints" / "ckpt.bin"
        checkpoint.parent.mkdir(parents=True)
        checkpoint.touch()
        config = parse_eval_args(
            f"--name flower_eval --dataset flower102 {common} --img_size 64 --eval_batch_size 2 "
            "--checkpoint output/flower_mps/checkpoints/ckpt.bin "
            "--tiny_infer_subset flower102_tiny".split(),
            model_names(),
        )
        assert (config.model_type, config.img_size) == (None, 64)


class TestImgSize:
    @settings(max_examples=200, deadline=None)
    @given(img_size=st.integers(1, 2000), patch=st.sampled_from([14, 16, 32]))
    def test_must_be_a_multiple_of_the_patch(self, img_size, patch):
        if img_size % patch == 0:
            check_img_size(img_size, patch)
            return
        with pytest.raises(InputError, match=f"--img_size {img_size} .*{patch}; try ") as caught:
            check_img_size(img_size, patch)
        advice = int(str(caught.value).rsplit(maxsplit=1)[1])
        assert advice > 0
        assert advice % patch == 0
        multiples = [k * patch for k in range(1, img_size // patch + 2)]
        assert abs(advice - img_size) == min(abs(m - img_size) for m in multiples)

    def test_is_checked_by_train(self, tmp_path):
        with pytest.raises(InputError, match=r"--img_size 65 is not a multiple.*16.*try 64"):
            train_config(tmp_path, "--img_size", "65")
        with pytest.raises(InputError, match=r"--img_size 100 is not.*32; try 96"):
            train_config(tmp_path, "--img_size", "100", "--model_type", "ViT-B_32")
        config = train_config(tmp_path, "--img_size", "224", "--model_type", "ViT-H_14")
        assert config.img_size == 224

    @settings(max_examples=300, deadline=None)
    @given(
        img_size=st.integers(1, 300),
        patch=st.sampled_from([14, 16, 32]),
        slide_step=st.integers(1, 40),
    )
    def test_of_overlapping_patches_need_only_hold_one(self, img_size, patch, slide_step):
        if slide_step > patch:
            with pytest.raises(InputError, match=f"--slide_step {slide_step} is over .*{patch}: "):
                check_img_size(img_size, patch, slide_step)
        elif img_size < patch and slide_step < patch:
            with pytest.raises(InputError, match=f"--img_size {img_size} is under .*{patch}$"):
                check_img_size(img_size, patch, slide_step)
        elif slide_step < patch or img_size % patch == 0:
            check_img_size(img_size, patch, slide_step)

    @settings(max_examples=60, deadline=None)
    @given(img_size=st.integers(1, 70), slide_step=st.integers(1, 20))
    @example(img_size=17, slide_step=16)  # patches side by side that do not cover the image
    def test_that_is_taken_makes_a_model(self, img_size, slide_step):
        """What the check lets through must not fail later, when the model is built."""
        with contextlib.suppress(InputError):
            check_img_size(img_size, 16, slide_step)
            build_model(get_config("testing", img_size, patch_stride=slide_step), 2)

    def test_of_overlapping_patches_is_checked_by_train(self, tmp_path):
        overlap = ["--split", "overlap"]
        assert train_config(tmp_path, *overlap, "--img_size", "65").img_size == 65
        with pytest.raises(InputError, match=r"--img_size 15 is under the patch, 16"):
            train_config(tmp_path, *overlap, "--img_size", "15")
        with pytest.raises(InputError, match=r"--slide_step 17 is over the patch, 16"):
            train_config(tmp_path, *overlap, "--slide_step", "17")
        with pytest.raises(InputError, match=r"--slide_step 15 is over the patch, 14"):
            train_config(
                tmp_path,
                *overlap,
                "--model_type",
                "ViT-S_14",
                "--img_size",
                "56",
                "--slide_step",
                "15",
            )


# A value of each dependent flag that is not its default, and argv that gives it a meaning.
DEPENDENT_ARGV = {
    "slide_step": (["--slide_step", "8"], ["--split", "overlap"], 8),
    "contrastive_weight": (["--contrastive_weight", "0"], ["--head", "parts"], 0.0),
    "contrastive_margin": (["--contrastive_margin", "-0.5"], ["--head", "parts"], -0.5),
    "contrastive_scope": (["--contrastive_scope", "effective"], ["--head", "parts"], "effective"),
    "layer_decay": (["--layer_decay", "0.75"], ["--optimizer", "adamw"], 0.75),
    "pos_resample": (["--pos_resample", "bilinear"], ["--pretrained", "WEIGHTS"], "bilinear"),
    "part_init": (
        ["--part_init", "random"],
        ["--pretrained", "WEIGHTS", "--head", "parts"],
        "random",
    ),
}


class TestDependentFlags:
    @pytest.fixture
    def parse(self, tmp_path):
        (tmp_path / "weights").touch()

        def run(*argv: str) -> FrozenConfigDict:
            given = [str(tmp_path / "weights") if a == "WEIGHTS" else a for a in argv]
            return train_config(tmp_path / "out", *given)

        return run

    def test_are_all_in_the_table_above(self):
        assert DEPENDENT_ARGV.keys() | {"momentum"} == DEPENDENT.keys()

    @pytest.mark.parametrize("flag", DEPENDENT_ARGV)
    def test_without_the_other_are_refused(self, parse, flag):
        argv, (needed, *_), _ = DEPENDENT_ARGV[flag]
        with pytest.raises(InputError, match=f"^--{flag} means nothing without {needed}"):
            parse(*argv)

    @pytest.mark.parametrize("flag", DEPENDENT_ARGV)
    def test_that_repeat_their_default_are_refused_too(self, parse, flag):
        """What was typed and has no effect is said, whatever its value."""
        _, (needed, *_), _ = DEPENDENT_ARGV[flag]
        default = DEPENDENT[flag].default
        with pytest.raises(InputError, match=f"^--{flag} means nothing without {needed}"):
            parse(f"--{flag}={default}")

    @pytest.mark.parametrize("flag", DEPENDENT_ARGV)
    def test_with_the_other_are_taken(self, parse, flag):
        argv, needed, value = DEPENDENT_ARGV[flag]
        assert parse(*argv, *needed)[flag] == value
        assert value != DEPENDENT[flag].default

    @pytest.mark.parametrize("flag", DEPENDENT_ARGV)
    def test_have_a_default_only_with_the_other(self, parse, flag):
        _, needed, _ = DEPENDENT_ARGV[flag]
        assert parse(*needed)[flag] == DEPENDENT[flag].default
        assert parse()[flag] is None

    def test_momentum_is_refused_under_another_optimizer_and_keeps_its_value_there(self, parse):
        for value in ("0.5", "0.9"):
            with pytest.raises(
                InputError, match=r"^--momentum means nothing without --optimizer sgd$"
            ):
                parse("--momentum", value, "--optimizer", "adamw")
        assert parse("--momentum", "0.5").momentum == 0.5
        assert parse().momentum == parse("--optimizer", "adamw").momentum == 0.9

    def test_part_init_needs_both(self, parse):
        random = ["--part_init", "random"]
        with pytest.raises(InputError, match=r"^--part_init means nothing without --head parts$"):
            parse(*random, "--pretrained", "WEIGHTS")
        with pytest.raises(InputError, match=r"^--part_init means nothing without --pretrained$"):
            parse(*random, "--head", "parts")
        assert parse("--pretrained", "WEIGHTS").part_init is None

    def test_with_the_wrong_value_of_the_other_are_refused(self, parse):
        with pytest.raises(
            InputError, match=r"^--slide_step means nothing without --split overlap"
        ):
            parse("--slide_step", "8", "--split", "non-overlap")
        with pytest.raises(InputError, match=r"without --optimizer adamw$"):
            parse("--layer_decay", "0.5", "--optimizer", "sgd")
        with pytest.raises(InputError, match=r"without --head parts$"):
            parse("--contrastive_weight", "1", "--head", "token")


class TestFreeze:
    @pytest.mark.parametrize("freeze", ["none", "backbone", "1", "3"])
    def test_of_what_is_there_is_taken(self, tmp_path, freeze):
        config = train_config(tmp_path, "--freeze", freeze)
        assert config.freeze == freeze
        check_freeze(config, depth=3)

    @pytest.mark.parametrize("freeze", ["4", "9999"])
    def test_of_more_blocks_than_there_are_names_both(self, tmp_path, freeze):
        config = train_config(tmp_path, "--freeze", freeze)
        with pytest.raises(InputError, match=f"^--freeze {freeze}: testing has 3 blocks$"):
            check_freeze(config, depth=3)


class TestModel:
    def test_is_recorded_with_its_normalisation(self, tmp_path):
        config = train_config(tmp_path)
        model = get_config("testing", 64, head="parts", dropout=0.1).to_dict()
        normalization = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
        resolved = resolve_model(config, model, normalization)
        assert resolved.model.to_dict() == model
        assert resolved.normalization.to_dict() == normalization
        rest = {k: v for k, v in resolved.items() if k not in ("model", "normalization")}
        assert rest == config.to_dict()
        with pytest.raises(AttributeError, match="immutable"):
            resolved.model.depth = 1
        assert json.loads(resolved.to_json())["model"] == model


class TestAccumulation:
    @settings(max_examples=60, deadline=None)
    @given(batch=st.integers(1, 64), micro_batches=st.integers(1, 70))
    def test_must_divide_the_batch(self, tmp_path_factory, batch, micro_batches):
        argv = [f"--train_batch_size={batch}", f"--gradient_accumulation_steps={micro_batches}"]
        output = tmp_path_factory.getbasetemp() / "unused"
        if batch % micro_batches == 0:
            assert train_config(output, *argv).train_batch_size == batch
        else:
            message = f"steps {micro_batches} does not divide --train_batch_size {batch}"
            with pytest.raises(InputError, match=message):
                train_config(output, *argv)


class TestDataRoot:
    def test_is_the_flag(self, tmp_path, flowers, monkeypatch):
        monkeypatch.setenv("DATA_ROOT", str(tmp_path / "elsewhere"))
        config = train_config(tmp_path, "--data_root", str(flowers), dataset="flower102")
        assert config.data_root == str(flowers)

    @pytest.mark.parametrize("place", [".", ".."])
    def test_is_else_the_environments(self, tmp_path, flowers, monkeypatch, place):
        monkeypatch.setenv("DATA_ROOT", str(flowers / place))
        config = train_config(tmp_path, dataset="flower102")
        assert Path(config.data_root).resolve() == (flowers / place).resolve()

    @pytest.mark.parametrize("value", [None, ""])
    def test_must_be_said(self, tmp_path, monkeypatch, value):
        if value is not None:
            monkeypatch.setenv("DATA_ROOT", value)
        with pytest.raises(InputError, match="--data_root PATH or `export DATA_ROOT=PATH`"):
            train_config(tmp_path, dataset="flower102")

    @pytest.mark.parametrize("folder", ["flowers-102", "flowers102", "flower102"])
    def test_may_be_a_parent(self, tmp_path, flowers, folder):
        flowers.rename(flowers.with_name(folder))
        train_config(tmp_path, "--data_root", str(flowers.parent), dataset="flower102")

    def test_of_synthetic_is_not_the_environments(self, tmp_path, flowers, monkeypatch):
        monkeypatch.setenv("DATA_ROOT", str(flowers.parent))
        config = train_config(tmp_path / "out")
        assert config.data_root == str(tmp_path / "out" / ".synthetic")
        config = train_config(tmp_path / "out", "--data_root", str(tmp_path / "mine"))
        assert config.data_root == str(tmp_path / "mine")

    def test_of_synthetic_may_not_be_photos(self, tmp_path, flowers):
        with pytest.raises(InputError, match="holds something other than synthetic flowers"):
            train_config(tmp_path, "--data_root", str(flowers))

    @pytest.mark.parametrize("folder", ["flower102", "flowers-102", "flowers102"])
    def test_at_the_root_gets_the_shell_hint(self, tmp_path, folder):
        assert not Path(f"/{folder}").exists()
        with pytest.raises(
            InputError, match=f"--data_root /{folder} .*export DATA_ROOT="
        ) as caught:
            train_config(tmp_path, "--data_root", f"/{folder}", dataset="flower102")
        assert "first" in str(caught.value)

    def test_elsewhere_gets_no_shell_hint(self, tmp_path):
        missing = tmp_path / "flower102"
        with pytest.raises(InputError, match=r"does not exist$"):
            train_config(tmp_path, "--data_root", str(missing), dataset="flower102")

    @pytest.mark.parametrize("entry", ["jpg", "imagelabels.mat", "setid.mat"])
    def test_must_hold_all_three(self, tmp_path, flowers, entry):
        (flowers / entry).rename(flowers / "other")
        with pytest.raises(InputError, match=rf"lacks {entry} of flower102; scripts/get_f"):
            train_config(tmp_path, "--data_root", str(flowers), dataset="flower102")

    def test_may_not_be_a_file(self, tmp_path):
        (tmp_path / "f").touch()
        with pytest.raises(InputError, match=r"--data_root .*/f is a file, not the folder"):
            train_config(tmp_path, "--data_root", str(tmp_path / "f"), dataset="flower102")


class TestPathsThatNoSystemTakes:
    """A path too long for the file system is bad input like any other, not a traceback."""

    @pytest.mark.parametrize("dataset", ["synthetic", "flower102"])
    def test_data_root(self, tmp_path, dataset):
        with pytest.raises(InputError, match="--data_root"):
            train_config(tmp_path, "--data_root", TOO_LONG, dataset=dataset)

    @pytest.mark.parametrize(
        "flag", ["--output_dir", "--pretrained", "--tiny_train_subset", "--tiny_infer_subset"]
    )
    def test_of_train(self, tmp_path, flag):
        with pytest.raises(InputError, match=flag):
            train_config(tmp_path, flag, TOO_LONG)

    def test_checkpoint(self, tmp_path):
        with pytest.raises(InputError, match="--checkpoint"):
            eval_config(tmp_path, checkpoint=tmp_path / TOO_LONG)

    def test_name(self, tmp_path):
        with pytest.raises(InputError, match="--name"):
            train_config(tmp_path, "--name", TOO_LONG)


class TestDatasetAndSplits:
    @pytest.mark.parametrize("alias", ["flower102", "flowers-102", "flowers102"])
    def test_aliases_become_the_one_name(self, tmp_path, flowers, alias):
        config = train_config(tmp_path, "--data_root", str(flowers), dataset=alias)
        assert config.dataset == "flower102"

    @pytest.mark.parametrize("flag", ["train_split", "eval_split"])
    def test_splits_must_be_known(self, tmp_path, flag):
        for split in ("train", "val", "test", "trainval"):
            assert train_config(tmp_path, f"--{flag}", split)[flag] == split
        with pytest.raises(
            InputError, match=f"--{flag} valid: synthetic has no split 'valid'; it has train, val"
        ):
            train_config(tmp_path, f"--{flag}", "valid")


class TestSubset:
    @pytest.mark.parametrize("flag", ["tiny_train_subset", "tiny_infer_subset"])
    @pytest.mark.parametrize("alias", ["flower102", "flowers-102", "flowers102"])
    @pytest.mark.parametrize("dataset", ["flower102", "flowers-102"])
    def test_by_name_gets_the_one_name(self, tmp_path, flowers, flag, alias, dataset):
        argv = ["--data_root", str(flowers), f"--{flag}", f"{alias}_tiny"]
        assert train_config(tmp_path, *argv, dataset=dataset)[flag] == "flower102_tiny"

    @pytest.mark.parametrize(
        "wanted", ["tiny", "flower102_tiny", "synthetic", "Synthetic_tiny", "", "no/such/file"]
    )
    def test_unknown_is_refused(self, tmp_path, wanted):
        message = f"--tiny_train_subset {wanted} is neither synthetic_tiny nor a file"
        with pytest.raises(InputError, match=message):
            train_config(tmp_path, f"--tiny_train_subset={wanted}")

    def test_by_path_becomes_absolute(self, tmp_path, monkeypatch):
        (tmp_path / "deep").mkdir()
        (tmp_path / "ids.txt").write_text("image_00001\n")
        monkeypatch.chdir(tmp_path / "deep")
        config = train_config(tmp_path, "--tiny_infer_subset", "../ids.txt")
        assert config.tiny_infer_subset == str((tmp_path / "ids.txt").resolve())

    def test_may_not_be_a_folder(self, tmp_path):
        with pytest.raises(InputError, match="is neither synthetic_tiny nor a file"):
            train_config(tmp_path, "--tiny_train_subset", str(tmp_path))

    def test_a_name_beats_a_file_of_that_name(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "synthetic_tiny").write_text("image_00001\n")
        config = train_config(tmp_path, "--tiny_train_subset", "synthetic_tiny")
        assert config.tiny_train_subset == "synthetic_tiny"

    def test_of_eval_waits_for_the_checkpoints_dataset(self, tmp_path):
        config = eval_config(tmp_path, "--tiny_infer_subset", "synthetic_tiny")
        config = resolve_from_checkpoint(config, checkpoint("synthetic"))
        assert config.tiny_infer_subset == "synthetic_tiny"
        config = eval_config(tmp_path, "--tiny_infer_subset", "flower102_tiny")
        with pytest.raises(InputError, match="flower102_tiny is neither synthetic_tiny"):
            resolve_from_checkpoint(config, checkpoint("synthetic"))


class TestLength:
    @settings(max_examples=200, deadline=None)
    @given(samples=st.integers(1, 10_000), batch=st.integers(1, 512), epochs=st.integers(1, 100))
    def test_epochs_become_steps_that_cover_them(self, tmp_path_factory, samples, batch, epochs):
        output = tmp_path_factory.getbasetemp() / "unused"
        config = train_config(output, f"--train_batch_size={batch}", f"--epochs={epochs}")
        resolved = resolve_length(config, samples)
        assert resolved.num_steps * batch >= epochs * samples
        assert (resolved.num_steps - 1) * batch < epochs * samples
        assert resolved.epochs == pytest.approx(resolved.num_steps * batch / samples)

    @settings(max_examples=200, deadline=None)
    @given(samples=st.integers(1, 10_000), batch=st.integers(1, 512), steps=st.integers(1, 10_000))
    def test_steps_are_kept_and_epochs_follow(self, tmp_path_factory, samples, batch, steps):
        output = tmp_path_factory.getbasetemp() / "unused"
        config = train_config(output, f"--train_batch_size={batch}", f"--num_steps={steps}")
        resolved = resolve_length(config, samples)
        assert resolved.num_steps == steps
        assert resolved.epochs == pytest.approx(steps * batch / samples)

    def test_one_length_said_in_two_ways_is_one_config(self, tmp_path):
        by_epochs = resolve_length(train_config(tmp_path, "--epochs", "3"), 160)
        by_steps = resolve_length(train_config(tmp_path, "--num_steps", "30"), 160)
        assert by_epochs.to_dict() == by_steps.to_dict()

    @pytest.mark.parametrize("flag", ["--epochs", "--num_steps", "--train_batch_size"])
    @pytest.mark.parametrize("zeros", [10, 20, 308])
    def test_that_no_run_can_have_does_not_crash(self, tmp_path, flag, zeros):
        with contextlib.suppress(InputError):  # refused or taken, both are well
            config = train_config(tmp_path, flag, str(10**zeros))
            assert math.isfinite(resolve_length(config, 200).epochs)

    def test_neither_is_the_default(self, tmp_path):
        assert resolve_length(train_config(tmp_path), 200).num_steps == 1000

    @settings(max_examples=200, deadline=None)
    @given(steps=st.integers(1, 100_000))
    def test_warm_up_is_at_most_a_tenth(self, tmp_path_factory, steps):
        output = tmp_path_factory.getbasetemp() / "unused"
        resolved = resolve_length(train_config(output, f"--num_steps={steps}"), 200)
        assert 0 <= resolved.warmup_steps <= min(steps / 10, MAX_WARMUP_STEPS)
        assert resolved.warmup_steps == min(math.floor(steps / 10), MAX_WARMUP_STEPS)

    @pytest.mark.parametrize("asked", [0, 7, 900, 2000])
    def test_warm_up_that_is_asked_for_is_kept(self, tmp_path, asked):
        config = train_config(tmp_path, "--num_steps=1000", f"--warmup_steps={asked}")
        assert resolve_length(config, 200).warmup_steps == asked

    def test_workers(self, tmp_path):
        tiny = ["--tiny_train_subset", "synthetic_tiny"]
        assert resolve_length(train_config(tmp_path), 200).num_workers == 2
        assert resolve_length(train_config(tmp_path, *tiny), 8).num_workers == 0
        asked = train_config(tmp_path, *tiny, "--num_workers", "3")
        assert resolve_length(asked, 8).num_workers == 3

    def test_the_rest_stays(self, tmp_path):
        config = train_config(tmp_path, "--seed", "7")
        resolved = resolve_length(config, 200).to_dict()
        settled = {"num_steps", "epochs", "warmup_steps", "num_workers"}
        for key, value in config.to_dict().items():
            assert key in settled or resolved[key] == value
        assert None not in [resolved[key] for key in settled]


def checkpoint(dataset: str, **changes) -> dict:
    """The fields of a checkpoint that `eval.py` goes by."""
    fields = {
        "dataset": dataset,
        "model_type": "testing",
        "img_size": 64,
        "preset": "vit",
        "carving": {},
    }
    return {**fields, **changes}


class TestFromCheckpoint:
    def test_takes_preset_and_carving(self, tmp_path):
        data = write_csv(tmp_path / "own", with_split=False)
        config = eval_config(tmp_path, "--data_root", str(data))
        carving = {"fraction": 0.25, "seed": 7}
        given = checkpoint("csv", preset="transfg", carving=carving)
        config = resolve_from_checkpoint(config, given)
        assert (config.preset, config.val_fraction, config.split_seed) == ("transfg", 0.25, 7)
        assert config.eval_split == "val"

    def test_of_other_data_is_not_carved(self, tmp_path):
        data = write_csv(tmp_path / "own", with_split=False)
        config = eval_config(tmp_path, "--dataset", "csv", "--data_root", str(data))
        given = checkpoint("flower102", carving={"fraction": 0.25, "seed": 7})
        config = resolve_from_checkpoint(config, given)
        assert (config.val_fraction, config.split_seed, config.eval_split) == (None, None, "train")

    def test_fills_what_was_left_open(self, tmp_path):
        config = resolve_from_checkpoint(eval_config(tmp_path), checkpoint("synthetic"))
        assert (config.dataset, config.model_type, config.img_size) == ("synthetic", "testing", 64)
        assert config.data_root == str(tmp_path / ".synthetic")
        assert config.num_workers == 2

    def test_agrees_with_flags_that_agree(self, tmp_path):
        argv = ["--dataset", "synthetic", "--model_type", "testing", "--img_size", "64"]
        config = resolve_from_checkpoint(eval_config(tmp_path, *argv), checkpoint("synthetic"))
        assert config.img_size == 64

    @pytest.mark.parametrize(
        ("flag", "asked", "has"),
        [("--model_type", "ViT-B_16", "testing"), ("--img_size", "96", "64")],
    )
    def test_names_both_values_of_a_contradiction(self, tmp_path, flag, asked, has):
        config = eval_config(tmp_path, flag, asked)
        with pytest.raises(InputError, match=f"{flag} {asked} contradicts .*ckpt.bin.*{has}$"):
            resolve_from_checkpoint(config, checkpoint("synthetic"))

    def test_a_dataset_that_nobody_knows(self, tmp_path):
        with pytest.raises(InputError, match="unknown dataset 'birds'"):
            resolve_from_checkpoint(eval_config(tmp_path), checkpoint("birds"))

    def test_finds_the_data_of_the_checkpoints_dataset(self, tmp_path, flowers, monkeypatch):
        config = eval_config(tmp_path)
        with pytest.raises(InputError, match="no data for flower102"):
            resolve_from_checkpoint(config, checkpoint("flower102"))
        monkeypatch.setenv("DATA_ROOT", str(flowers))
        assert resolve_from_checkpoint(config, checkpoint("flower102")).data_root == str(flowers)

    def test_checks_the_split(self, tmp_path):
        config = eval_config(tmp_path, "--eval_split", "dev")
        with pytest.raises(InputError, match="--eval_split dev: synthetic has no split"):
            resolve_from_checkpoint(config, checkpoint("synthetic"))


class TestPaths:
    @pytest.mark.parametrize("flag", ["--pretrained", "--checkpoint"])
    def test_of_weights_must_be_files(self, tmp_path, flag):
        def parse(path: Path):
            if flag == "--pretrained":
                return train_config(tmp_path, flag, str(path))
            return eval_config(tmp_path, checkpoint=path)

        with pytest.raises(InputError, match=f"{flag} .*absent.bin does not exist; name a file$"):
            parse(tmp_path / "absent.bin")
        with pytest.raises(InputError, match=f"{flag} .* is a folder; name a file$"):
            parse(tmp_path)

    def test_a_checkpoint_of_the_run_itself_is_refused(self, tmp_path, monkeypatch):
        own = tmp_path / "out" / "a" / "checkpoints" / "ckpt.bin"
        own.parent.mkdir(parents=True)
        own.touch()
        message = "--name a is the run that --checkpoint .* lies in; choose another name"
        with pytest.raises(InputError, match=message):
            eval_config(tmp_path / "out", checkpoint=own)
        (tmp_path / "link").symlink_to(tmp_path / "out" / "a")
        with pytest.raises(InputError, match=message):
            eval_config(tmp_path / "out", checkpoint=tmp_path / "link" / "checkpoints" / "ckpt.bin")
        monkeypatch.chdir(own.parent)
        with pytest.raises(InputError, match=message):
            eval_config(Path("../.."), checkpoint=Path("ckpt.bin"))
        (tmp_path / "out" / "ab").mkdir()
        (tmp_path / "out" / "ab" / "ckpt.bin").touch()
        eval_config(tmp_path / "out", checkpoint=tmp_path / "out" / "ab" / "ckpt.bin")

    @pytest.mark.parametrize("parent", ["", "tb"])
    def test_a_name_that_differs_only_in_case_is_refused(self, tmp_path, parent):
        (tmp_path / parent / "Rose").mkdir(parents=True)
        with pytest.raises(InputError, match="--name rose differs only in case from the run Rose"):
            train_config(tmp_path, "--name", "rose")
        assert train_config(tmp_path, "--name", "Rose").name == "Rose"
        with pytest.raises(InputError, match="--name ROSE differs only in case"):
            eval_config(tmp_path, "--name", "ROSE")

    @pytest.mark.parametrize("deeper", ["", "x", "x/y"])
    def test_an_output_folder_that_is_a_file_is_refused(self, tmp_path, deeper):
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match=r"--output_dir .*file is a file, not a folder"):
            train_config(tmp_path / "file" / deeper)
