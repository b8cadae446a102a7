"""Run eval.py through its CLI: everything about the model comes from the checkpoint."""

import json
import shutil

import numpy as np
import pytest
import torch
from helpers import TINY_EVAL, evaluate, read_json, rows_of, write_checkpoint

from utils.data_utils import RunPaths
from utils.run.checkpoint import load_checkpoint

TINY = ("--tiny_infer_subset", "synthetic_tiny")


@pytest.fixture
def run_eval(finished_run, drawn, tmp_path):
    """Evaluates a checkpoint, the finished run's unless told; returns the exit code."""

    def call(*more, name="check", checkpoint=finished_run.checkpoint) -> int:
        where = ("--data_root", drawn, "--output_dir", tmp_path / "out")
        return evaluate(f"--name {name} {TINY_EVAL}", "--checkpoint", checkpoint, *where, *more)

    return call


@pytest.fixture
def check(tmp_path) -> RunPaths:
    """What `run_eval` writes."""
    return RunPaths(tmp_path / "out", "check")


def test_a_copied_checkpoint_needs_no_model_flags(run_eval, finished_run, check, tmp_path):
    copy = tmp_path / "elsewhere" / "best flowers.bin"
    copy.parent.mkdir()
    shutil.copyfile(finished_run.checkpoint, copy)
    assert run_eval(*TINY, checkpoint=copy) == 0
    assert check.metrics.read_bytes() == finished_run.metrics.read_bytes()
    config = read_json(check.env_stamp)["config"]
    assert [config[key] for key in ("model_type", "img_size", "dataset")] == [
        "testing",
        32,
        "synthetic",
    ]


def test_the_whole_split_has_a_row_per_image_however_it_is_cut(run_eval, check):
    """The metrics are not means of batch means: batch sizes change their last bits at most."""
    assert run_eval("--eval_batch_size", 100) == 0
    at_once = read_json(check.metrics)
    assert run_eval("--eval_batch_size", 7) == 0  # the last batch is smaller
    metrics = read_json(check.metrics)
    for key, value in at_once.items():
        expected = pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
        assert metrics[key] == expected
    rows = rows_of(check)
    assert len(rows) == len({row["sample_id"] for row in rows}) == metrics["samples"] == 100
    assert metrics["accuracy"] == sum(row["correct"] for row in rows) / 100
    assert metrics["loss"] == pytest.approx(sum(row["loss"] for row in rows) / 100, rel=1e-12)


def test_features_are_what_the_head_reads_and_change_nothing_else(run_eval, check, finished_run):
    assert run_eval(*TINY) == 0
    stamp = read_json(check.env_stamp)
    assert not check.features.exists()
    for _ in range(2):  # the second time they are read
        assert run_eval(*TINY, "--export_features") == 0
        values, about = np.load(check.features), read_json(check.features.with_suffix(".json"))
        rows, weights = rows_of(check), load_checkpoint(finished_run.checkpoint).state_dict
        assert (values.dtype, values.shape) == (np.float32, (len(rows), 2, 64))
        assert about == {"kinds": ["token", "mean"], "ids": [row["sample_id"] for row in rows]}
        logits = values[:, 0] @ weights["head.weight"].numpy().T + weights["head.bias"].numpy()
        given = np.array([row["predictions"]["logits"] for row in rows])
        np.testing.assert_allclose(logits, given, atol=1e-5)
    again = read_json(check.env_stamp)
    assert "/features.npy\n" in check.retention.read_text("utf-8")
    assert {"features.npy", "features.json"} == again["artifacts"].keys() - stamp[
        "artifacts"
    ].keys()
    keys = "predictions_digest", "config_hash"
    assert [again[key] for key in keys] == [stamp[key] for key in keys]
    assert len([*(check.output_dir / ".cache").glob("*/features.bin")]) == 1


def test_rows_are_json_that_any_reader_takes(run_eval, check):
    """No NaN, no Infinity, one object a line."""
    assert run_eval(*TINY) == 0

    def refuse(constant):
        raise AssertionError(constant)

    lines = check.predictions.read_text("utf-8").splitlines()
    assert all(isinstance(json.loads(line, parse_constant=refuse), dict) for line in lines)


@pytest.mark.parametrize(
    ("flags", "both"),
    [
        (("--img_size", "64"), ("--img_size 64", "has 32")),
        (("--model_type", "ViT-B_16"), ("--model_type ViT-B_16", "has testing")),
        (
            ("--dataset", "flower102"),
            ("all 100 images of split val are of classes that", "(10): ", "10 classes: "),
        ),
    ],
)
def test_a_contradiction_names_both_values(run_eval, tmp_path, capsys, flags, both):
    assert run_eval(*flags) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(text in error for text in both)
    assert not (tmp_path / "out").exists()


def test_a_flag_that_agrees_is_welcome(run_eval):
    agreeing = ("--img_size", "32", "--model_type", "testing", "--dataset", "synthetic")
    assert run_eval(*agreeing, *TINY) == 0


def test_the_name_of_the_checkpoints_own_run_is_refused(run_eval, finished_run, capsys):
    before = finished_run.metrics.read_bytes()
    own = ("--output_dir", finished_run.output_dir)
    assert run_eval(*own, name=finished_run.name) == 2
    said = f"is in {finished_run.run}, where --name {finished_run.name} is written; choose"
    assert f"--checkpoint {finished_run.checkpoint} {said}" in capsys.readouterr().err
    assert finished_run.metrics.read_bytes() == before


def test_the_normalisation_comes_from_the_checkpoint(run_eval, finished_run, tmp_path):
    """The same weights with another normalisation recorded give other logits."""
    checkpoint = load_checkpoint(finished_run.checkpoint)
    other = {"mean": [0.1, 0.2, 0.3], "std": [0.9, 0.8, 0.7]}
    write_checkpoint(tmp_path / "other.bin", checkpoint._replace(normalization=other))
    assert run_eval(*TINY, name="other", checkpoint=tmp_path / "other.bin") == 0
    own = read_json(finished_run.env_stamp)
    stamp = read_json(RunPaths(tmp_path / "out", "other").env_stamp)
    assert stamp["normalization"] == other
    assert stamp["checkpoint_id"] == read_json(finished_run.metrics)["checkpoint_id"]
    assert stamp["predictions_digest"] != own["predictions_digest"]


def test_a_second_evaluation_keeps_the_first(run_eval, check):
    for _ in range(2):
        assert run_eval(*TINY) == 0
    kept = RunPaths(check.output_dir, "check~1")
    digests = [read_json(paths.env_stamp)["predictions_digest"] for paths in (check, kept)]
    assert digests[0] == digests[1]


def test_weights_of_another_model_are_refused(run_eval, finished_run, tmp_path, capsys):
    checkpoint = load_checkpoint(finished_run.checkpoint)
    weights = {key: value for key, value in checkpoint.state_dict.items() if key != "norm.bias"}
    write_checkpoint(tmp_path / "cut.bin", checkpoint._replace(state_dict=weights))
    assert run_eval(checkpoint=tmp_path / "cut.bin") == 2
    assert "does not hold the weights of the model it describes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_weights_with_nan_end_the_evaluation(run_eval, finished_run, tmp_path, capsys):
    checkpoint = load_checkpoint(finished_run.checkpoint)
    weights = {**checkpoint.state_dict, "head.bias": torch.full((10,), float("nan"))}
    write_checkpoint(tmp_path / "nan.bin", checkpoint._replace(state_dict=weights))
    assert run_eval(checkpoint=tmp_path / "nan.bin") == 1
    error = capsys.readouterr().err
    assert "100 of 100 evaluated samples are not finite" in error
    assert error.count("\n") == 1
