"""`train.py` with settings that would ruin weights: what it takes, says and keeps."""

import re
from collections.abc import Callable

import pytest
from helpers import SUBSETS, TINY_TRAIN, read_json, train

from utils.data_utils import EMA_RULE, RunPaths
from utils.run.tensor_file import load_archive, save_archive

SYNTHETIC = f"--dataset synthetic {TINY_TRAIN} {SUBSETS}"


@pytest.fixture
def run(tmp_path, drawn) -> Callable[[str], dict]:
    """Trains a run called `run` by its flags on the drawn flowers; returns its config's stamp."""

    def call(flags: str) -> dict:
        where = "--data_root", drawn, "--output_dir", tmp_path
        assert train(f"--name run {flags}", *where) == 0
        return read_json(RunPaths(tmp_path, "run").env_stamp)["config"]

    return call


def test_a_short_run_of_a_recipe_says_what_it_changes_and_resumed_keeps_it(run, capsys):
    config = run(f"--recipe small-data {SYNTHETIC} --num_steps 20 --eval_every 20")
    out = capsys.readouterr().out
    assert (
        "recipe small-data: this run has 20 of its 2000 steps, so it takes --augment none (the "
        "recipe's: trivialaugment), --cutmix 0.0 (the recipe's: 1.0), --drop_path 0.0 (the "
        "recipe's: 0.1), --learning_rate 5e-05 (the recipe's: 0.0005), --mixup 0.0 (the recipe's: "
        "0.2), --random_erasing 0.0 (the recipe's: 0.25), --warmup_steps 2 (the recipe's: 100)\n"
        in out
    )
    plain = {"augment": "none", "random_erasing": 0.0, "mixup": 0.0, "cutmix": 0.0}
    changed = {"warmup_steps": 2, "learning_rate": 5e-05, "drop_path": 0.0, **plain}
    assert config["recipe"]["shortened"] == changed
    assert {flag: config[flag] for flag in changed} == changed
    assert config["model"]["drop_path"] == 0.0
    resumed = run("--resume --num_steps 22 --allow_change num_steps")
    assert (resumed["num_steps"], resumed["recipe"]) == (22, config["recipe"])
    assert {flag: resumed[flag] for flag in changed} == changed
    assert "recipe small-data" not in capsys.readouterr().out


@pytest.mark.parametrize("length", ["--num_steps 5", "--epochs 1"])
def test_a_warm_up_longer_than_the_run_is_refused(refused, drawn, length):
    # The subset's 8 images in batches of 4: an epoch is 2 steps.
    flags = f"--name run {SYNTHETIC} {length} --warmup_steps 6"
    flags = re.sub(r"--num_steps 4", "", flags)
    error = refused(lambda argv, *more: train(argv, *more), flags, "--data_root", drawn)
    assert "--warmup_steps 6 is longer than the run, which has " in error


def test_a_snapshot_from_before_a_rule_keeps_its_own_values(run, tmp_path, finished_run):
    """Then the averaged weights had one decay from the start, and the rate one default."""
    flags = f"{SYNTHETIC} --ema_decay 0.9 --learning_rate 0.03"
    flags += f" --pretrained {finished_run.checkpoint} --save_every 2 --eval_every 4"
    assert run(flags)["ema_rule"] == EMA_RULE
    path = RunPaths(tmp_path, "run").last
    snapshot = load_archive(path)
    for part in ("config", "experiment"):
        assert snapshot[part].pop("ema_rule") == EMA_RULE
    save_archive(path, snapshot)
    config = run("--resume --num_steps 6 --allow_change num_steps")
    assert "ema_rule" not in config
    assert (config["learning_rate"], config["ema_decay"]) == (0.03, 0.9)


def test_ruined_weights_are_one_warning_and_the_end_names_the_chance_level(run, capsys):
    flags = f"{SYNTHETIC} --num_steps 80 --warmup_steps 2 --eval_every 20 --log_every 5"
    run(f"{flags} --learning_rate 5")
    out = capsys.readouterr().out
    (line,) = re.findall(r"^warning: after step .*learning rate.*$", out, re.M)
    assert re.match(r"warning: after step (5\d|60|65) .*such as 0\.5 instead of 5, or with", line)
    num_classes = re.search(r"guessing among (\d+) classes", out)
    assert re.search(rf"chance level +{1 / int(num_classes[1]):.4f} \(accuracy of guess", out)
    run(f"{flags} --optimizer adamw")
    assert "learning rate" not in capsys.readouterr().out
