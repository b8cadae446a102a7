"""The part-selection model and the knobs of fine-tuning, through train.py and eval.py."""

import re
import shutil

import numpy as np
import pytest
import torch
from helpers import TINY_EVAL, TINY_TRAIN, evaluate, read_json, read_scalars, rows_of, train
from PIL import Image
from pretended_mps import attention_as_on_mps, pretended_mps

from models.configs import get_config, patch_centers
from utils import dist_util
from utils.checkpoint import load_checkpoint
from utils.data_utils import RunPaths
from utils.dependent_flags import DEPENDENT
from utils.presets import PRESETS, crop_to_image

SUBSETS = "--tiny_train_subset synthetic_tiny --tiny_infer_subset synthetic_tiny"
BASE = f"--dataset synthetic {TINY_TRAIN} {SUBSETS}"
HEADS = 4  # of the `testing` model
# What every kind of part model adds to a tiny run, and the fields of its config.
KINDS = {
    "non-overlap": ("--head parts --img_size 64", {"img_size": 64}),
    "overlap": (
        "--head parts --img_size 50 --split overlap --dropout 0.1 --drop_path 0.1",
        {"img_size": 50, "patch_stride": 12, "dropout": 0.1, "drop_path": 0.1},
    ),
}


def run(drawn, output, flags="", *more, name="run"):
    """A tiny run that succeeds; its paths."""
    line = f"--name {name} {BASE} {flags}"
    assert train(line, "--data_root", drawn, "--output_dir", output, *more) == 0
    return RunPaths(output, name)


def weights_of(paths):
    return load_checkpoint(paths.checkpoint).state_dict


def largest_difference(given, expected) -> float:
    """Between two state dicts, each tensor relative to its largest entry."""
    assert given.keys() == expected.keys()
    return max(
        ((given[key] - value).abs().max() / value.abs().max().clamp_min(1e-12)).item()
        for key, value in expected.items()
    )


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def trained(kind, drawn, tmp_path_factory):
    """A tiny run of a part model. Read only."""
    flags, _ = KINDS[kind]
    output = tmp_path_factory.mktemp("parts")
    return run(drawn, output, flags, "--train_batch_size", 8, "--learning_rate", "0.1")


class TestRun:
    def test_trains_every_part_of_the_model(self, trained, drawn, tmp_path, kind):
        losses = [loss for _, loss in read_scalars(trained.tensorboard)["train/loss"]]
        assert np.isfinite(losses).all()
        flags, fields = KINDS[kind]
        # Where the same seed starts from: a learning rate that moves nothing.
        still = run(drawn, tmp_path, flags, "--learning_rate", "1e-60", "--num_steps", 1)
        start, end = weights_of(still), weights_of(trained)
        assert start.keys() == end.keys()
        assert [key for key, value in start.items() if torch.equal(value, end[key])] == []
        assert {"part_block.attn.qkv.weight", "part_norm.weight", "head.weight"} <= end.keys()
        assert not {"norm.weight", "blocks.2.norm1.weight", "patch_centers"} & end.keys()
        patches = len(patch_centers(get_config("testing", **fields)))
        assert end["pos_embed"].shape == (1, 1 + patches, 64)

    def test_checkpoint_and_stamp_describe_the_model(self, trained, kind):
        expected = get_config("testing", head="parts", **KINDS[kind][1]).to_dict()
        checkpoint, stamp = load_checkpoint(trained.checkpoint), read_json(trained.env_stamp)
        assert checkpoint.model_config == expected
        assert checkpoint.img_size == expected["img_size"]
        config = stamp["config"]
        recorded = {k: None if v == "none" else v for k, v in config["model"].items()}
        assert recorded == expected
        assert config["head"] == "parts"
        assert config["slide_step"] == ("none" if kind == "non-overlap" else 12)
        assert config["normalization"] == stamp["normalization"] == checkpoint.normalization
        shown = [config[f"contrastive_{name}"] for name in ("weight", "margin", "scope")]
        assert shown == [1.0, 0.4, "micro"]
        assert stamp["micro_batches"] == 1

    def test_evaluation_takes_everything_from_the_checkpoint(self, trained, drawn, tmp_path):
        code = evaluate(
            f"--name check {TINY_EVAL} --tiny_infer_subset synthetic_tiny",
            "--checkpoint",
            trained.checkpoint,
            "--data_root",
            drawn,
            "--output_dir",
            tmp_path,
        )
        assert code == 0
        paths = RunPaths(tmp_path, "check")
        assert paths.metrics.read_bytes() == trained.metrics.read_bytes()
        assert paths.per_class.read_bytes() == trained.per_class.read_bytes()
        stamps = [read_json(which.env_stamp) for which in (paths, trained)]
        assert stamps[0]["predictions_digest"] == stamps[1]["predictions_digest"] != "none"
        assert stamps[0]["normalization"] == stamps[1]["normalization"]
        assert stamps[0]["config"]["model"] == stamps[1]["config"]["model"]
        parts = [[row["parts"] for row in rows_of(which)] for which in (paths, trained)]
        assert parts[0] == parts[1]

    def test_rows_have_a_keypoint_for_every_head(self, trained, kind):
        """On a patch that was looked at, as it lies in the original image."""
        config = get_config("testing", head="parts", **KINDS[kind][1])
        centers = patch_centers(config)[None].astype(np.float64)
        rows = rows_of(trained)
        assert len(rows) == 4
        for row in rows:
            assert row["parts"]["_cls"] == "Keypoints"
            keypoints = row["parts"]["keypoints"]
            assert [keypoint["_cls"] for keypoint in keypoints] == ["Keypoint"] * HEADS
            assert [keypoint["label"] for keypoint in keypoints] == [
                f"head {head}" for head in range(HEADS)
            ]
            with Image.open(row["filepath"]) as image:
                size = np.array([image.size])
            allowed = crop_to_image(centers, size, config.img_size, PRESETS["vit"])[0]
            for keypoint in keypoints:
                (point,) = keypoint["points"]
                assert all(type(value) is float and 0 <= value <= 1 for value in point)
                assert np.abs(allowed - point).max(axis=1).min() < 1e-6
        everywhere = {tuple(k["points"][0]) for row in rows for k in row["parts"]["keypoints"]}
        assert len(everywhere) > 3


def test_rows_of_a_plain_model_have_no_parts(finished_run):
    rows = rows_of(finished_run)
    assert rows
    assert not any("parts" in row for row in rows)


def test_the_tiny_part_model_learns_the_drawings(drawn, tmp_path):
    """Far above the 10 % of chance on held-out drawings."""
    code = train(
        "--name learn --dataset synthetic --model_type testing --img_size 64 --num_steps 150 "
        "--eval_every 150 --train_batch_size 32 --eval_batch_size 50 --learning_rate 1e-3 "
        "--optimizer adamw --weight_decay 0.05 --num_workers 0 --device cpu --head parts",
        "--data_root",
        drawn,
        "--output_dir",
        tmp_path,
    )
    assert code == 0
    assert read_json(RunPaths(tmp_path, "learn").metrics)["accuracy"] > 0.5


def test_real_flowers_train_with_parts(real_flowers, tmp_path):
    code = train(
        f"--name real --dataset flower102 {TINY_TRAIN} --img_size 64 --head parts "
        "--tiny_train_subset flower102_tiny --tiny_infer_subset flower102_tiny",
        "--data_root",
        real_flowers,
        "--output_dir",
        tmp_path,
    )
    assert code == 0
    for row in rows_of(RunPaths(tmp_path, "real")):
        with Image.open(row["filepath"]) as image:
            width, height = image.size
        assert width != height
        # The middle square of the photo, less an eighth: half of a patch is the least distance.
        for keypoint in row["parts"]["keypoints"]:
            (x, y) = keypoint["points"][0]
            away = max(abs(x - 0.5) * width, abs(y - 0.5) * height) / min(width, height)
            assert away < 0.5 * 7 / 8


def test_an_image_size_that_is_no_multiple_of_the_patch(drawn, tmp_path):
    """Overlapping patches need not cover the last pixels: 61 px are 4 x 4 patches, 12 px apart."""
    paths = run(drawn, tmp_path, "--split overlap --img_size 61")
    assert weights_of(paths)["pos_embed"].shape == (1, 17, 64)
    paths = run(drawn, tmp_path, "--split overlap --img_size 16 --slide_step 1", name="one")
    assert weights_of(paths)["pos_embed"].shape == (1, 2, 64)


def test_a_slide_step_that_is_the_patch(drawn, tmp_path, capsys):
    """Patches side by side: an image that they do not cover is refused in one line."""
    flags = f"--name a {BASE} --split overlap --slide_step 16"
    where = "--data_root", drawn, "--output_dir", tmp_path / "out"
    assert train(f"{flags} --img_size 40", *where) == 2
    error = capsys.readouterr().err
    assert error == "error: --img_size 40 is not a multiple of the patch, 16; try 32\n"
    assert train(f"{flags} --img_size 32", *where) == 0


# --- What the contrastive loss compares -----------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--head parts --train_batch_size 4", "compares only 4 samples at a time"),
        ("--head parts --train_batch_size 7", "compares only 7 samples at a time"),
        ("--head parts --train_batch_size 8", None),
        (
            "--head parts --train_batch_size 8 --gradient_accumulation_steps 2",
            "compares only 4 samples at a time",
        ),
        (
            "--head parts --train_batch_size 8 --gradient_accumulation_steps 2 "
            "--contrastive_scope effective",
            None,
        ),
        (
            "--head parts --train_batch_size 4 --gradient_accumulation_steps 2 "
            "--contrastive_scope effective",
            "compares only 4 samples at a time",
        ),
        ("--head parts --train_batch_size 16 --gradient_accumulation_steps 2", None),
        ("--head parts --train_batch_size 4 --contrastive_weight 0", None),
        ("--train_batch_size 4", None),
    ],
)
def test_warns_of_fewer_than_eight(drawn, tmp_path, capsys, flags, said):
    run(drawn, tmp_path, f"{flags} --num_steps 1")
    lines = [line for line in capsys.readouterr().out.splitlines() if "contrastive" in line]
    assert len(lines) == (0 if said is None else 1)
    if said is not None:
        assert lines[0].startswith("warning: the contrastive loss ")
        assert said in lines[0]
        could_be_joint = "accumulation" in flags and "effective" not in flags
        assert ("--contrastive_scope effective" in lines[0]) is could_be_joint


class TestScope:
    FLAGS = "--head parts --train_batch_size 8 --num_steps 3 --eval_every 3 --smoothing_value 0.1"

    @pytest.fixture(scope="class")
    @classmethod
    def whole(cls, drawn, tmp_path_factory):
        """The weights of the run whose batches are in one piece."""
        return weights_of(run(drawn, tmp_path_factory.mktemp("whole"), cls.FLAGS))

    @pytest.mark.parametrize("more", ["", "--grad_checkpointing"])
    @pytest.mark.parametrize("count", [1, 2, 4])
    def test_effective_does_not_depend_on_the_micro_batches(
        self, drawn, tmp_path, whole, count, more
    ):
        flags = f"{self.FLAGS} --contrastive_scope effective {more}"
        paths = run(drawn, tmp_path, flags, "--gradient_accumulation_steps", count)
        assert read_json(paths.env_stamp)["micro_batches"] == count
        assert largest_difference(weights_of(paths), whole) < 1e-5

    @pytest.mark.parametrize("count", [2, 4])
    def test_micro_does(self, drawn, tmp_path, whole, count):
        paths = run(drawn, tmp_path, self.FLAGS, "--gradient_accumulation_steps", count)
        assert largest_difference(weights_of(paths), whole) > 1e-3


# --- Memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--dropout 0.2 --drop_path 0.3",
        "--head parts",
        "--head parts --dropout 0.2 --drop_path 0.3 --split overlap",
        "--head parts --dropout 0.2 --contrastive_scope effective --gradient_accumulation_steps 2",
        "--head parts --freeze 1 --dropout 0.2",
    ],
)
def test_checkpointing_changes_no_bit(drawn, tmp_path, flags):
    paths = [
        run(drawn, tmp_path, f"{flags} --learning_rate 0.1 {more}", name=name)
        for name, more in (("kept", ""), ("again", "--grad_checkpointing"))
    ]
    assert paths[0].checkpoint.read_bytes() == paths[1].checkpoint.read_bytes()
    assert paths[0].metrics.read_bytes() == paths[1].metrics.read_bytes()
    stamps = [read_json(which.env_stamp) for which in paths]
    assert stamps[0]["config_hash"] == stamps[1]["config_hash"]
    assert [stamp["config"]["grad_checkpointing"] for stamp in stamps] == [False, True]


class TestOnAMac:
    """Weight gradients are wrong on MPS where a micro-batch has too many tokens."""

    LIMIT = 4 * 5  # of images of 32 px, 5 tokens each

    def test_what_may_be_cut_is_cut_and_said(self, drawn, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(dist_util, "MAX_MPS_ROWS", self.LIMIT)
        common = "--train_batch_size 8"
        kinds = {
            "token": "",
            "uncompared": "--head parts --contrastive_weight 0",
            "joint": "--head parts --contrastive_scope effective",
        }
        for name, flags in kinds.items():
            with attention_as_on_mps():
                by_hand = run(
                    drawn,
                    tmp_path,
                    f"{common} {flags} --gradient_accumulation_steps 2",
                    name=f"{name}_by_hand",
                )
            assert "micro-batches a step" not in capsys.readouterr().out
            with pretended_mps():
                cut = run(drawn, tmp_path, f"{common} {flags} --device mps", name=name)
            said = "2 micro-batches a step instead of 1: MPS computes wrong gradients for larger"
            assert capsys.readouterr().out.count(said) == 1
            stamp = read_json(cut.env_stamp)
            assert stamp["device"] == "mps"
            assert stamp["micro_batches"] == 2
            assert stamp["config"]["gradient_accumulation_steps"] == 1
            ids = [read_json(which.metrics)["checkpoint_id"] for which in (cut, by_hand)]
            assert ids[0] == ids[1]

    def test_what_fits_is_left_alone(self, drawn, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(dist_util, "MAX_MPS_ROWS", self.LIMIT)
        with pretended_mps():
            paths = run(drawn, tmp_path, "--head parts --train_batch_size 4 --device mps")
        assert "micro-batches a step" not in capsys.readouterr().out
        assert read_json(paths.env_stamp)["micro_batches"] == 1

    @pytest.mark.parametrize(
        ("flags", "fits", "said"),
        [
            ("--train_batch_size 42", 2, "of 42 images of 785 tokens"),
            ("--train_batch_size 24 --split overlap", 2, "of 24 images of 1370 tokens"),
            (
                "--train_batch_size 84 --gradient_accumulation_steps 2 --eval_batch_size 8",
                3,
                "of 42 images of 785 tokens",
            ),
        ],
    )
    def test_what_may_not_be_cut_is_refused(self, refused, drawn, monkeypatch, flags, fits, said):
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
        error = refused(
            train,
            f"--name a {BASE} --head parts --img_size 448 --device mps {flags}",
            "--data_root",
            drawn,
        )
        advice = f"--gradient_accumulation_steps {fits} or --contrastive_scope effective"
        assert f"a micro-batch {said} is over 32766 rows" in error
        assert error.endswith(f"use {advice}\n")


# --- Every knob turns -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_flags(drawn, tmp_path_factory, finished_run):
    """The (config hash, checkpoint id) of a tiny run by its flags, each run once."""
    output, known = tmp_path_factory.mktemp("knobs"), {}

    def look_up(flags):
        if flags not in known:
            given = flags.replace("WEIGHTS", str(finished_run.checkpoint))
            paths = run(drawn, output, given, name=f"run{len(known)}")
            identity = read_json(paths.metrics)["checkpoint_id"]
            known[flags] = read_json(paths.env_stamp)["config_hash"], identity
        return known[flags]

    return look_up


PARTS = "--head parts --learning_rate 0.1"
JOINT = f"{PARTS} --gradient_accumulation_steps 2"
LOADED = "--pretrained WEIGHTS --img_size 64 --learning_rate 0.1"
KNOBS = [
    ("", "--head parts"),
    ("", "--split overlap"),
    ("--split overlap", "--split overlap --slide_step 8"),
    ("", "--dropout 0.1"),
    ("", "--drop_path 0.5"),
    ("", "--freeze backbone"),
    ("", "--freeze 1"),
    ("--freeze 1", "--freeze 2"),
    ("", "--class_weights balanced"),
    ("--optimizer adamw", "--optimizer adamw --layer_decay 0.5"),
    (PARTS, f"{PARTS} --contrastive_weight 0.5"),
    (PARTS, f"{PARTS} --contrastive_weight 0"),
    (PARTS, f"{PARTS} --contrastive_margin -0.5"),
    (JOINT, f"{JOINT} --contrastive_scope effective"),
    ("", "--pretrained WEIGHTS"),
    (LOADED, f"{LOADED} --pos_resample bilinear"),
    (f"{LOADED} --head parts", f"{LOADED} --head parts --part_init random"),
]


@pytest.mark.parametrize(("flags", "changed"), KNOBS)
def test_every_knob_is_part_of_the_experiment(of_flags, flags, changed):
    before, after = of_flags(flags), of_flags(changed)
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_every_knob_is_turned_above():
    turned = {flag for _, changed in KNOBS for flag in re.findall(r"--(\w+)", changed)}
    # Of foreign weights alone: test_pretrained_cli.
    assert DEPENDENT.keys() <= turned


def test_defaults_that_are_spelled_out_are_the_same_experiment(of_flags):
    spelled = "--contrastive_weight 1 --contrastive_margin 0.4 --contrastive_scope micro"
    assert of_flags(PARTS) == of_flags(f"{PARTS} {spelled}")
    assert of_flags("--split overlap") == of_flags("--split overlap --slide_step 12")
    assert of_flags("--optimizer adamw") == of_flags("--optimizer adamw --layer_decay 1")
    usual = "--head token --split non-overlap --dropout 0 --freeze none --pretrained_profile google"
    assert of_flags("") == of_flags(usual)


def test_equal_seeds_give_equal_files(drawn, tmp_path):
    flags = "--head parts --dropout 0.2 --drop_path 0.2 --split overlap"
    first, again, other = (
        run(drawn, tmp_path, f"{flags} --seed {seed}", name=name)
        for name, seed in (("first", 7), ("again", 7), ("other", 8))
    )
    assert first.checkpoint.read_bytes() == again.checkpoint.read_bytes()
    assert first.metrics.read_bytes() == again.metrics.read_bytes()
    digests = [read_json(p.env_stamp)["predictions_digest"] for p in (first, again, other)]
    assert digests[0] == digests[1] != digests[2]
    assert first.checkpoint.read_bytes() != other.checkpoint.read_bytes()


# --- Freezing -------------------------------------------------------------------------------------

EMBEDDINGS = ("cls_token", "pos_embed", "patch_embed.")
FROZEN = {
    ("token", "backbone"): (*EMBEDDINGS, "blocks.", "norm."),
    ("token", "1"): (*EMBEDDINGS, "blocks.0."),
    ("token", "3"): (*EMBEDDINGS, "blocks."),
    ("parts", "backbone"): (*EMBEDDINGS, "blocks."),
    ("parts", "1"): (*EMBEDDINGS, "blocks.0."),
    ("parts", "2"): (*EMBEDDINGS, "blocks."),
    ("parts", "3"): (*EMBEDDINGS, "blocks.", "part_block."),
}


@pytest.mark.parametrize(("head", "what"), FROZEN)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw --layer_decay 0.7"])
def test_what_is_frozen_stays_to_the_last_bit(drawn, tmp_path, finished_run, head, what, optimizer):
    """And everything else moves, under decay and momentum, from the weights that were given."""
    paths = run(
        drawn,
        tmp_path,
        f"--head {head} --freeze {what} --optimizer {optimizer} "
        "--weight_decay 0.1 --learning_rate 0.05",
        "--pretrained",
        finished_run.checkpoint,
    )
    start = weights_of(finished_run)
    if head == "parts":
        renamed = {"blocks.2.": "part_block.", "norm.": "part_norm."}
        for old, new in renamed.items():
            for key in [key for key in start if key.startswith(old)]:
                start[key.replace(old, new, 1)] = start.pop(key)
    end = weights_of(paths)
    assert end.keys() == start.keys()
    same = {key for key, value in end.items() if torch.equal(value, start[key])}
    assert same == {key for key in end if key.startswith(FROZEN[head, what])}
    assert 0 < len(same) < len(end)


# --- Refused --------------------------------------------------------------------------------------

# Each dependent flag with a good value, without the flag that gives it a meaning.
ALONE = {
    "slide_step": ("--slide_step 8", "--split overlap"),
    "contrastive_weight": ("--contrastive_weight 1", "--head parts"),
    "contrastive_margin": ("--contrastive_margin 0.4", "--head parts"),
    "contrastive_scope": ("--contrastive_scope effective", "--head parts"),
    "layer_decay": ("--layer_decay 0.75", "--optimizer adamw"),
    "pos_resample": ("--pos_resample bilinear", "--pretrained"),
    "part_init": ("--part_init random --head parts", "--pretrained"),
}


class TestRefused:
    @pytest.mark.parametrize("flag", DEPENDENT)
    def test_a_flag_that_means_nothing(self, refused, drawn, flag):
        given, needed = ALONE[flag]
        error = refused(train, f"--name a {BASE} {given}", "--data_root", drawn)
        assert error == f"error: --{flag} means nothing without {needed}\n"

    def test_part_init_without_parts(self, refused, drawn, finished_run):
        flags = f"--name a {BASE} --part_init random --pretrained {finished_run.checkpoint}"
        error = refused(train, flags, "--data_root", drawn)
        assert error == "error: --part_init means nothing without --head parts\n"

    @pytest.mark.parametrize(
        ("flags", "said"),
        [
            ("--split overlap --slide_step 17", "--slide_step 17 is over the patch, 16"),
            ("--split overlap --img_size 15", "--img_size 15 is under the patch, 16"),
            ("--img_size 40", "--img_size 40 is not a multiple of the patch, 16; try"),
            ("--head parts --img_size 40", "--img_size 40 is not a multiple of the patch, 16; try"),
            ("--freeze 99", "--freeze 99: testing has 3 blocks"),
            ("--freeze 4", "--freeze 4: testing has 3 blocks"),
            ("--head parts --freeze 4", "--freeze 4: testing has 3 blocks"),
            ("--freeze 0", "--freeze: '0' is neither none, backbone nor a whole number"),
            ("--freeze -1", "--freeze"),
            ("--freeze head", "--freeze: 'head' is neither none, backbone nor a whole number"),
            ("--head part", "--head: invalid choice: 'part'"),
            ("--split overlap --slide_step 0", "--slide_step: '0' is not a whole number above 0"),
            ("--dropout 1.0", "--dropout: '1.0' is not a number from 0 up to"),
            ("--head parts --contrastive_margin 1.5", "--contrastive_margin: '1.5' is not a"),
            ("--optimizer adamw --layer_decay 1.5", "--layer_decay: '1.5' is not a number above"),
        ],
    )
    def test_a_value_that_cannot_be(self, refused, drawn, flags, said):
        assert said in refused(train, f"--name a {BASE} {flags}", "--data_root", drawn)

    def test_the_data_of_a_part_model_that_is_damaged(self, refused, drawn, tmp_path):
        data = shutil.copytree(drawn, tmp_path / "data")
        next((data / "jpg").iterdir()).write_bytes(b"")
        error = refused(train, f"--name a {BASE} --head parts", "--data_root", data)
        assert "are empty or damaged" in error
