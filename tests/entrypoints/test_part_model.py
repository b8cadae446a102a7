"""The part-selection model and the flags of fine-tuning, through train.py and eval.py.

What each flag may be, and what micro-batches are warned of or refused, is tested in `tests/utils/`.
"""

import numpy as np
import pytest
import torch
from helpers import TINY_EVAL, TINY_TRAIN, evaluate, read_json, read_scalars, rows_of, train
from PIL import Image
from pretended_mps import attention_as_on_mps, pretended_mps

from models.configs import get_config
from models.transfg import patch_centers
from utils.data.presets import PRESETS, crop_to_image
from utils.data_utils import RunPaths
from utils.run.checkpoint import load_checkpoint
from utils.training import micro_batches

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

    def test_evaluation_takes_everything_from_the_checkpoint(self, trained, kind, drawn, tmp_path):
        flags = f"--name check {TINY_EVAL} --tiny_infer_subset synthetic_tiny"
        where = "--checkpoint", trained.checkpoint, "--data_root", drawn, "--output_dir", tmp_path
        assert evaluate(flags, *where) == 0
        paths = RunPaths(tmp_path, "check")
        assert paths.metrics.read_bytes() == trained.metrics.read_bytes()
        assert paths.per_class.read_bytes() == trained.per_class.read_bytes()
        stamps = [read_json(which.env_stamp) for which in (paths, trained)]
        assert stamps[0]["predictions_digest"] == stamps[1]["predictions_digest"] != "none"
        assert stamps[0]["normalization"] == stamps[1]["normalization"]
        assert stamps[0]["config"]["model"] == stamps[1]["config"]["model"]
        parts = [[row["parts"] for row in rows_of(which)] for which in (paths, trained)]
        assert parts[0] == parts[1]
        expected = get_config("testing", head="parts", **KINDS[kind][1]).to_dict()
        assert load_checkpoint(trained.checkpoint).model_config == expected

    def test_rows_have_a_keypoint_for_every_head(self, trained, kind):
        """On a patch that was looked at, as it lies in the original image."""
        config = get_config("testing", head="parts", **KINDS[kind][1])
        centers = patch_centers(config)[None].double().numpy()
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


def test_the_tiny_part_model_learns_the_drawings(drawn, tmp_path):
    """Far above the 10 % of chance on held-out drawings."""
    code = train(
        "--name learn --dataset synthetic --model_type testing --img_size 32 --num_steps 40 "
        "--eval_every 40 --train_batch_size 32 --eval_batch_size 50 --learning_rate 2e-3 "
        "--optimizer adamw --weight_decay 0.05 --num_workers 0 --device cpu --head parts",
        "--data_root",
        drawn,
        "--output_dir",
        tmp_path,
    )
    assert code == 0
    assert read_json(RunPaths(tmp_path, "learn").metrics)["accuracy"] > 0.5


# --- Memory ---------------------------------------------------------------------------------------


def test_activation_checkpointing_changes_no_bit(drawn, tmp_path):
    flags = "--head parts --dropout 0.2 --drop_path 0.3 --split overlap --freeze 1"
    paths = [
        run(drawn, tmp_path, f"{flags} --learning_rate 0.1 {more}", name=name)
        for name, more in (("kept", ""), ("again", "--grad_checkpointing"))
    ]
    assert paths[0].checkpoint.read_bytes() == paths[1].checkpoint.read_bytes()
    assert paths[0].metrics.read_bytes() == paths[1].metrics.read_bytes()
    stamps = [read_json(which.env_stamp) for which in paths]
    assert stamps[0]["config_hash"] == stamps[1]["config_hash"]
    assert [stamp["config"]["grad_checkpointing"] for stamp in stamps] == [False, True]


def test_on_a_mac_too_many_rows_are_cut_into_micro_batches(drawn, tmp_path, monkeypatch, capsys):
    """Weight gradients are wrong on MPS where a micro-batch has too many tokens."""
    monkeypatch.setattr(micro_batches, "MAX_MPS_ROWS", 4 * 5)  # 4 images of 32 px, 5 tokens each
    flags = "--head parts --train_batch_size 8 --contrastive_scope effective"
    with attention_as_on_mps():
        by_hand = run(drawn, tmp_path, f"{flags} --gradient_accumulation_steps 2", name="by_hand")
    assert "micro-batches a step" not in capsys.readouterr().out
    with pretended_mps():
        cut = run(drawn, tmp_path, f"{flags} --device mps", name="cut")
    said = "2 micro-batches a step instead of 1: MPS computes wrong gradients for larger"
    assert capsys.readouterr().out.count(said) == 1
    stamp = read_json(cut.env_stamp)
    assert (stamp["device"], stamp["micro_batches"]) == ("mps", 2)
    assert stamp["config"]["gradient_accumulation_steps"] == 1
    ids = [read_json(which.metrics)["checkpoint_id"] for which in (cut, by_hand)]
    assert ids[0] == ids[1]


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
    ("", "--class_weights balanced"),
    ("--optimizer adamw", "--optimizer adamw --layer_decay 0.5"),
    (PARTS, f"{PARTS} --contrastive_weight 0.5"),
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


def test_defaults_that_are_spelled_out_are_the_same_experiment(of_flags):
    spelled = "--contrastive_weight 1 --contrastive_margin 0.4 --contrastive_scope micro"
    assert of_flags(PARTS) == of_flags(f"{PARTS} {spelled}")
    assert of_flags("--split overlap") == of_flags("--split overlap --slide_step 12")
    usual = "--head token --split non-overlap --dropout 0 --freeze none --pretrained_profile google"
    adamw = "--optimizer adamw"
    assert of_flags(adamw) == of_flags(f"{adamw} --layer_decay 1 {usual}")


# --- Freezing -------------------------------------------------------------------------------------


def test_what_is_frozen_stays_to_the_last_bit(drawn, tmp_path, finished_run):
    """And everything else moves, under decay and momentum, from the weights that were given."""
    flags = "--freeze 1 --weight_decay 0.1 --learning_rate 0.05"
    end = weights_of(run(drawn, tmp_path, flags, "--pretrained", finished_run.checkpoint))
    start = weights_of(finished_run)
    assert end.keys() == start.keys()
    same = {key for key, value in end.items() if torch.equal(value, start[key])}
    frozen = ("cls_token", "pos_embed", "patch_embed", "blocks.0.")
    assert same == {key for key in end if key.startswith(frozen)}
    assert 0 < len(same) < len(end)
