"""eval.py through its CLI: everything about the model comes from the checkpoint."""

import json
import shutil

import pytest
import torch
from helpers import TINY_EVAL, evaluate, read_json, rows_of, write_checkpoint

from utils.data_utils import RunPaths
from utils.run.checkpoint import load_checkpoint


def run_eval(finished_run, drawn, output, *more, name="check"):
    """Evaluate the finished run's checkpoint; the exit code."""
    return evaluate(
        f"--name {name} {TINY_EVAL}",
        "--checkpoint",
        finished_run.checkpoint,
        "--data_root",
        drawn,
        "--output_dir",
        output,
        *more,
    )


def test_needs_no_model_flags(finished_run, drawn, tmp_path):
    code = run_eval(finished_run, drawn, tmp_path, "--tiny_infer_subset", "synthetic_tiny")
    assert code == 0
    paths = RunPaths(tmp_path, "check")
    assert paths.metrics.read_bytes() == finished_run.metrics.read_bytes()
    config = read_json(paths.env_stamp)["config"]
    assert config["model_type"] == "testing"
    assert config["img_size"] == 32
    assert config["dataset"] == "synthetic"


def test_whole_split_has_a_row_per_image_in_split_order(finished_run, drawn, tmp_path):
    assert run_eval(finished_run, drawn, tmp_path, "--eval_batch_size", 7) == 0  # ragged: 100 % 7
    rows = rows_of(RunPaths(tmp_path, "check"))
    assert len(rows) == 100
    assert len({row["sample_id"] for row in rows}) == 100
    metrics = read_json(RunPaths(tmp_path, "check").metrics)
    assert metrics["samples"] == 100
    assert metrics["accuracy"] == sum(row["correct"] for row in rows) / 100
    assert metrics["loss"] == pytest.approx(sum(row["loss"] for row in rows) / 100, rel=1e-12)


def test_metrics_do_not_depend_on_how_the_split_is_cut(finished_run, drawn, tmp_path):
    """Not means of batch means: batch sizes change the last bits at most."""
    for size in (1, 33, 100):
        code = run_eval(finished_run, drawn, tmp_path, "--eval_batch_size", size, name=f"by{size}")
        assert code == 0
    a, b, c = (read_json(RunPaths(tmp_path, f"by{size}").metrics) for size in (1, 33, 100))
    for key in a:
        expected = pytest.approx(b[key], rel=1e-5) if isinstance(b[key], float) else b[key]
        assert a[key] == expected
        assert c[key] == expected


@pytest.mark.parametrize(
    ("flags", "both"),
    [
        (("--img_size", "64"), ("--img_size 64", "has 32")),
        (("--model_type", "ViT-B_16"), ("--model_type ViT-B_16", "has testing")),
        (("--dataset", "flower102"), ("flower102 (102 classes)", "synthetic (10 classes)")),
    ],
)
def test_a_contradiction_names_both_values(finished_run, drawn, tmp_path, capsys, flags, both):
    assert run_eval(finished_run, drawn, tmp_path / "out", *flags) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(text in error for text in both)
    assert not (tmp_path / "out").exists()


def test_a_flag_that_agrees_is_welcome(finished_run, drawn, tmp_path):
    flags = ("--img_size", "32", "--model_type", "testing", "--dataset", "synthetic")
    assert run_eval(finished_run, drawn, tmp_path, *flags) == 0


def test_refuses_the_name_of_the_checkpoints_own_run(finished_run, drawn, capsys):
    before = finished_run.metrics.read_bytes()
    code = run_eval(finished_run, drawn, finished_run.output_dir, name=finished_run.name)
    assert code == 2
    assert f"--name {finished_run.name} is the run that --checkpoint" in capsys.readouterr().err
    assert finished_run.metrics.read_bytes() == before


def test_normalisation_comes_from_the_checkpoint(finished_run, drawn, tmp_path):
    """The same weights with another normalisation recorded give other logits."""
    checkpoint = load_checkpoint(finished_run.checkpoint)
    other = {"mean": [0.1, 0.2, 0.3], "std": [0.9, 0.8, 0.7]}
    write_checkpoint(tmp_path / "other.bin", checkpoint._replace(normalization=other))
    for name, path in (("own", finished_run.checkpoint), ("other", tmp_path / "other.bin")):
        code = evaluate(
            f"--name {name} {TINY_EVAL}",
            "--checkpoint",
            path,
            "--data_root",
            drawn,
            "--output_dir",
            tmp_path,
        )
        assert code == 0
    stamps = [read_json(RunPaths(tmp_path, name).env_stamp) for name in ("own", "other")]
    assert stamps[1]["normalization"] == other
    assert stamps[0]["checkpoint_id"] == stamps[1]["checkpoint_id"]
    assert stamps[0]["predictions_digest"] != stamps[1]["predictions_digest"]


def test_a_copied_checkpoint_is_as_good(finished_run, drawn, tmp_path):
    copy = tmp_path / "elsewhere" / "best flowers.bin"
    copy.parent.mkdir()
    shutil.copyfile(finished_run.checkpoint, copy)
    code = evaluate(
        f"--name check {TINY_EVAL} --tiny_infer_subset synthetic_tiny",
        "--checkpoint",
        copy,
        "--data_root",
        drawn,
        "--output_dir",
        tmp_path,
    )
    assert code == 0
    assert RunPaths(tmp_path, "check").metrics.read_bytes() == finished_run.metrics.read_bytes()


def test_evaluating_twice_keeps_the_first(finished_run, drawn, tmp_path):
    for _ in range(2):
        assert run_eval(finished_run, drawn, tmp_path) == 0
    assert RunPaths(tmp_path, "check~1").metrics.exists()
    digests = [
        read_json(RunPaths(tmp_path, name).env_stamp)["predictions_digest"]
        for name in ("check", "check~1")
    ]
    assert digests[0] == digests[1]


def test_weights_of_another_model_are_refused(finished_run, drawn, tmp_path, capsys):
    checkpoint = load_checkpoint(finished_run.checkpoint)
    weights = {key: value for key, value in checkpoint.state_dict.items() if key != "norm.bias"}
    write_checkpoint(tmp_path / "cut.bin", checkpoint._replace(state_dict=weights))
    code = evaluate(
        f"--name check {TINY_EVAL}",
        "--checkpoint",
        tmp_path / "cut.bin",
        "--data_root",
        drawn,
        "--output_dir",
        tmp_path / "out",
    )
    assert code == 2
    assert "does not hold the weights of the model it describes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_weights_with_nan_end_the_evaluation(finished_run, drawn, tmp_path, capsys):
    checkpoint = load_checkpoint(finished_run.checkpoint)
    weights = {**checkpoint.state_dict, "head.bias": torch.full((10,), float("nan"))}
    write_checkpoint(tmp_path / "nan.bin", checkpoint._replace(state_dict=weights))
    code = evaluate(
        f"--name check {TINY_EVAL}",
        "--checkpoint",
        tmp_path / "nan.bin",
        "--data_root",
        drawn,
        "--output_dir",
        tmp_path / "out",
    )
    error = capsys.readouterr().err
    assert code == 1
    assert "100 of 100 evaluated samples are not finite" in error
    assert error.count("\n") == 1


def test_rows_are_json_that_any_reader_takes(finished_run, drawn, tmp_path):
    """No NaN, no Infinity, one object a line."""
    assert run_eval(finished_run, drawn, tmp_path) == 0

    def refuse(constant):
        raise AssertionError(constant)

    lines = RunPaths(tmp_path, "check").predictions.read_text("utf-8").splitlines()
    assert all(isinstance(json.loads(line, parse_constant=refuse), dict) for line in lines)
