"""Train the head of a frozen trunk: on features, as on the images themselves."""

import signal

import pytest
from helpers import TINY_TRAIN, evaluate, loader_config, read_json, train, write_checkpoint
from interruptions import assert_same_end, signals, when_logged
from ml_collections import FrozenConfigDict

from models.build import build_model
from models.configs import complete_config
from utils.data.presets import has_constant_trunk
from utils.data.readers import synthetic
from utils.data_utils import RunPaths
from utils.run import features
from utils.run.checkpoint import load_checkpoint

# All micro-batches and evaluation batches have 32 images, as those of the features have: other
# numbers of class tokens may take other kernels, and differ in their last bits.
FLAGS = (
    f"--dataset synthetic {TINY_TRAIN} --freeze backbone --preset center --train_batch_size 64 "
    "--gradient_accumulation_steps 2 --num_steps 6 --eval_every 3 --save_every 2 --log_every 1 "
    "--eval_batch_size 32 --ema_decay 0.5 --learning_rate 0.05"
)
SAID = "they are computed once"


@pytest.fixture(params=["token", "token_avg"])
def flags(request, finished_run, drawn, tmp_path) -> str:
    """Of runs that start from a checkpoint with this pool."""
    own = load_checkpoint(finished_run.checkpoint)
    config = complete_config({**own.model_config, "pool": request.param})
    head = build_model(config, len(own.classes)).head.state_dict()
    weights = {**own.state_dict, **{f"head.{key}": value for key, value in head.items()}}
    fields = {"model_config": config.to_dict(), "state_dict": weights}
    write_checkpoint(tmp_path / "weights.bin", own._replace(**fields))
    evaluated = tmp_path / "evaluated.txt"
    evaluated.write_text("\n".join(synthetic.read(drawn, "val").ids[:64]), "utf-8")
    return f"{FLAGS} --pretrained {tmp_path / 'weights.bin'} --tiny_infer_subset {evaluated}"


def test_a_run_on_features_ends_as_one_on_images(drawn, tmp_path, flags, capsys, monkeypatch):
    """Also if it is interrupted; and eval.py, which sees images, says the same of its weights."""
    where = ("--data_root", drawn, "--output_dir", tmp_path)
    with when_logged("^step 4/", signals(signal.SIGTERM)):
        assert train(f"--name run {flags}", *where) == 143
    assert train(f"--name run {flags} --resume --num_workers 2", *where) == 0
    assert capsys.readouterr().out.count(SAID) == 2
    assert len([*(tmp_path / ".cache").glob("*/features.bin")]) == 2  # of train and val
    subset = tmp_path / "evaluated.txt"
    evaluation = f"--eval_batch_size 32 --num_workers 0 --device cpu --tiny_infer_subset {subset}"
    paths, whole = RunPaths(tmp_path, "run"), RunPaths(tmp_path, "whole")
    assert evaluate(f"--name seen --checkpoint {paths.checkpoint} {evaluation}", *where) == 0
    stamps = [read_json(RunPaths(tmp_path, name).env_stamp) for name in ("run", "seen")]
    assert stamps[0]["predictions_digest"] == stamps[1]["predictions_digest"]
    monkeypatch.setattr(features, "has_constant_trunk", lambda config: False)
    assert train(f"--name whole {flags}", *where) == 0
    assert SAID not in capsys.readouterr().out
    assert_same_end(paths, whole)


@pytest.mark.parametrize(
    "change",
    [
        {"freeze": "none"},
        {"freeze": "2"},
        {"preset": "vit"},
        {"preset": "transfg"},
        {"head": "parts"},
        {"dropout": 0.1},
        {"drop_path": 0.1},
        {"patch_dropout": 0.5},
        {"augment": "randaugment"},
        {"random_erasing": 0.1},
        {"mixup": 0.2},
        {"cutmix": 1.0},
    ],
    ids=str,
)
def test_whatever_may_change_an_image_s_features_is_trained_on_images(change):
    config = loader_config(freeze="backbone", preset="center")
    assert has_constant_trunk(config)
    assert not has_constant_trunk(FrozenConfigDict({**config, **change}))
