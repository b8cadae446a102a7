"""Test scripts/probe.py: what it leaves, that eval.py agrees, kills, bad input, training after."""

import csv
import os
import shlex
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import CONTEXT
from helpers import evaluate, random_model, read_json, read_scalars, rows_of, train
from safetensors.torch import save_file

from scripts import probe as script
from utils.data.catalog import get_spec
from utils.data_utils import TRAIN_ALONE, RunPaths, checkpoint_paths
from utils.dataset import open_split
from utils.evaluation import features
from utils.probe.fits import Logistic
from utils.run import writer
from utils.run.checkpoint import load_checkpoint

SIZE = 32
BASE = f"--dataset synthetic --model_type testing --img_size {SIZE} --num_workers 0 --device cpu"
CURVES = "--few_shot 1 --folds 2"


def probe(flags: str, *more: object) -> int:
    return script.main([*shlex.split(flags), *map(str, more)])


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """Random weights in timm's layout, with registers and class token."""
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    model = random_model(SIZE, 3, num_registers=2)
    save_file({k: v for k, v in model.state_dict().items() if not k.startswith("head.")}, path)
    return path


@pytest.fixture(scope="module")
def where(drawn, weights, tmp_path_factory) -> tuple[object, ...]:
    output = tmp_path_factory.mktemp("probe")
    return ("--data_root", drawn, "--pretrained", weights, "--output_dir", output)


@pytest.fixture(scope="module")
def on_test(where) -> RunPaths:
    """A probe whose head is fitted on train and val, evaluated on test."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert probe(f"--name p {BASE} {CURVES} --eval_split test", *where) == 0
    torch.set_num_threads(threads)
    return RunPaths(where[-1], "p")


def agree(one: RunPaths, other: RunPaths) -> None:
    """The rows have the same labels unless two are as good; the losses are the same."""
    for row, again in zip(rows_of(one), rows_of(other), strict=True):
        assert row["sample_id"] == again["sample_id"]
        if row["margin"] >= 1e-5:
            assert row["predictions"]["label"] == again["predictions"]["label"]
    losses = [read_json(paths.metrics)["loss"] for paths in (one, other)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_leaves_what_a_run_leaves(on_test):
    checkpoint, stamp = load_checkpoint(on_test.checkpoint), read_json(on_test.env_stamp)
    report, metrics = read_json(on_test.probe), read_json(on_test.metrics)
    assert stamp["status"] == "finished"
    assert checkpoint.fitted_on == stamp["fitted_on"] == ["train", "val"]
    assert checkpoint.metrics == metrics
    assert (metrics["split"], metrics["selected_on"]) == ("test", "val")
    assert metrics["trained_on_images"] == 0
    assert len(rows_of(on_test)) == metrics["samples"] == report["evaluated_on"]["samples"]
    with on_test.per_class.open(encoding="utf-8") as file:
        assert sum(int(row["correct"]) for row in csv.DictReader(file)) == round(
            metrics["accuracy"] * metrics["samples"]
        )
    assert read_scalars(on_test.tensorboard)["eval/accuracy"][0][1] == pytest.approx(
        metrics["accuracy"]
    )
    assert on_test.labelmap.is_file()
    assert on_test.few_shot.read_bytes().startswith(b"\x89PNG")
    note = on_test.retention.read_text("utf-8")
    assert "ckpt.bin" in note
    assert "last.bin" not in note
    assert len(report["rows"]) == 9
    assert {*report["few_shot"]} == {*report["folds"]} == {"knn", "nearest_mean", "logistic"}
    with np.load(on_test.folds) as folds:
        assert len(folds["ids"]) == len(folds["probabilities"]) == 300  # of train and val
    alone = load_checkpoint(checkpoint_paths(on_test, TRAIN_ALONE).checkpoint)
    assert alone.fitted_on == ["train"]
    assert len(alone.trained_images) < len(checkpoint.trained_images)
    (row,) = (row for row in report["rows"] if row["method"] == "logistic" and row["is_chosen"])
    assert row["final_accuracy"] == pytest.approx(metrics["accuracy"], abs=0.011)
    assert metrics["accuracy"] > 0.3  # chance is 0.1


def test_eval_agrees(on_test, where):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    flags = f"--name e --checkpoint {on_test.checkpoint} --eval_split test --num_workers 0"
    assert evaluate(f"{flags} --device cpu", *where[:2], *where[4:]) == 0
    torch.set_num_threads(threads)
    agree(on_test, RunPaths(where[-1], "e"))
    assert read_json(RunPaths(where[-1], "e").metrics)["selected_on"] == "val"


@pytest.mark.parametrize("kind", ["class", "mean", "both"])
def test_every_head_is_that_of_a_whole_model(kind, where):
    output = where[-1]
    flags = f"{BASE} --features {kind} --method knn,nearest_mean"
    assert probe(f"--name {kind} {flags}", *where) == 0
    paths, again = RunPaths(output, kind), RunPaths(output, f"{kind}_eval")
    checkpoint = load_checkpoint(paths.checkpoint)
    assert checkpoint.fitted_on == ["train"]
    pools = {"class": "token", "mean": "norm_avg", "both": "token_avg"}
    assert checkpoint.model_config["pool"] == pools[kind]
    flags = f"--name {again.name} --checkpoint {paths.checkpoint} --num_workers 0 --device cpu"
    assert evaluate(flags, *where[:2], *where[4:]) == 0
    agree(paths, again)
    # The same features, so nothing is computed again: a probe of the probe's own model.
    folders = {*(output / ".cache").iterdir()}
    flags = f"--name {kind}_2 {BASE} --features {kind} --method nearest_mean"
    assert probe(flags, *where[:2], "--pretrained", paths.checkpoint, *where[4:]) == 0
    assert {*(output / ".cache").iterdir()} == folders
    assert read_json(RunPaths(output, f"{kind}_2").metrics)["accuracy"] == pytest.approx(
        read_json(paths.metrics)["accuracy"]
    )


def test_a_val_that_is_trained_on_chooses_nothing(where):
    flags = f"--name inside {BASE} --features class --method nearest_mean"
    assert probe(f"{flags} --train_split val --eval_split test", *where) == 0
    paths = RunPaths(where[-1], "inside")
    assert load_checkpoint(paths.checkpoint).fitted_on == ["val"]
    assert read_json(paths.probe)["judged_on"]["split"] == "folds of val"
    assert not checkpoint_paths(paths, TRAIN_ALONE).checkpoint.exists()


def test_a_val_among_the_images_to_fit_chooses_nothing_though_it_is_evaluated(where):
    flags = f"--name within {BASE} --features class --method nearest_mean"
    assert probe(f"{flags} --train_split trainval", *where) == 0
    paths = RunPaths(where[-1], "within")
    assert read_json(paths.probe)["judged_on"]["split"] == "folds of trainval"
    metrics = read_json(paths.metrics)
    assert (metrics["selected_on"], metrics["trained_on_images"]) == ("trainval", 100)


def test_two_subsets_of_one_split_are_not_mixed_up(where, capsys):
    flags = f"{BASE} --features class --method nearest_mean --eval_split train"
    accuracies, fitted = [], []
    for subset in ("train", "infer"):
        name = f"--name of_{subset} --tiny_{subset}_subset synthetic_tiny"
        assert probe(f"{name} {flags}", *where) == 0
        paths = RunPaths(where[-1], f"of_{subset}")
        (row,) = read_json(paths.probe)["rows"]
        accuracies.append((row["accuracy"], read_json(paths.metrics)["samples"]))
        fitted.append(len(load_checkpoint(paths.checkpoint).trained_images))
    assert fitted == [32 + 100, 200 + 100]  # with val
    assert [samples for _, samples in accuracies] == [200, 16]
    assert accuracies[0][0] < accuracies[1][0]  # fewer images to fit are worse


# --- Training from it -----------------------------------------------------------------------------


def test_training_keeps_the_head_and_refuses_a_split_that_it_has_seen(
    on_test, where, refused, capsys
):
    output, alone = where[-1], checkpoint_paths(on_test, TRAIN_ALONE).checkpoint
    flags = f"{BASE} --num_steps 1 --learning_rate 1e-9 --train_batch_size 4"
    error = refused(
        lambda line, *more: train(line, *where[:2], "--pretrained", on_test.checkpoint, *more),
        f"--name t {flags} --eval_split val",
    )
    assert "fitted on train and val, and 100 of the 100 images of --eval_split val" in error
    assert str(alone) in error
    more = (*where[:2], "--output_dir", output)
    assert train(f"--name t {flags} --pretrained {alone}", *more) == 0
    (row,) = (row for row in read_json(on_test.probe)["rows"] if row["is_chosen"] and row["C"])
    accuracy = read_json(RunPaths(output, "t").metrics)["accuracy"]
    assert accuracy == pytest.approx(row["accuracy"], abs=0.011)
    assert load_checkpoint(RunPaths(output, "t").checkpoint).fitted_on == []
    # Test, which it has not seen, is fine; and so is val for another head.
    seen = f"--pretrained {on_test.checkpoint}"
    assert train(f"--name u {flags} {seen} --eval_split test", *more) == 0
    capsys.readouterr()
    assert train(f"--name v {flags} {seen} --head parts", *more) == 0
    said = "was fitted by a probe with --head token, so --head parts starts anew"
    assert said in capsys.readouterr().out


def test_training_refuses_images_that_the_head_has_seen_in_another_split(where, refused):
    """By images, not by the names of splits: trainval holds val."""
    checkpoint = RunPaths(where[-1], "whole").checkpoint
    flags = f"{BASE} --features class --method nearest_mean --train_split trainval"
    assert probe(f"--name whole {flags}", *where) == 0
    error = refused(
        lambda line, *more: train(line, *where[:2], "--pretrained", checkpoint, *more),
        f"--name t {BASE} --num_steps 1 --train_batch_size 4",
    )
    assert "fitted on trainval, and 100 of the 100 images of --eval_split val" in error
    assert "evaluate another split, or probe again with the splits of this run" in error


def test_training_refuses_no_images_that_the_trunk_or_its_own_train_split_has_seen(where):
    """Of these it warns."""
    output, rest = where[-1], f"{BASE} --num_steps 1 --train_batch_size 4"
    places = (*where[:2], *where[4:])
    trained, probed = (RunPaths(output, name) for name in ("saw_val", "of_saw_val"))
    assert train(f"--name {trained.name} {rest} --train_split val --eval_split test", *places) == 0
    flags = f"--name {probed.name} {BASE} --features class --method nearest_mean"
    assert probe(flags, *where[:2], "--pretrained", trained.checkpoint, *where[4:]) == 0
    flags = f"{rest} --pretrained {probed.checkpoint}"
    assert train(f"--name on_val {flags}", *places) == 0
    subset = "--tiny_train_subset synthetic_tiny --eval_split train"
    assert train(f"--name on_train {flags} {subset}", *places) == 0
    counted = [read_json(RunPaths(output, f"on_{name}").metrics) for name in ("val", "train")]
    assert [each["trained_on_images"] for each in counted] == [100, 200]


def test_a_head_for_parts_stays_one(where, capsys):
    output = where[-1]
    flags = f"{BASE} --head parts --method nearest_mean"
    assert probe(f"--name of_parts {flags}", *where) == 0
    checkpoint = RunPaths(output, "of_parts").checkpoint
    rest = f"{BASE} --num_steps 1 --learning_rate 1e-9 --train_batch_size 4"
    flags = f"{rest} --pretrained {checkpoint}"
    assert train(f"--name from_parts {flags} --head parts", *where[:2], *where[4:]) == 0
    found = [read_json(RunPaths(output, name).metrics) for name in ("of_parts", "from_parts")]
    assert found[0]["accuracy"] == pytest.approx(found[1]["accuracy"], abs=0.011)
    capsys.readouterr()
    assert train(f"--name no_parts {flags}", *where[:2], *where[4:]) == 0
    said = "was fitted by a probe with --head parts, so --head token starts anew"
    assert said in capsys.readouterr().out


# --- Kills ----------------------------------------------------------------------------------------


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying(function, calls: int, is_after: bool = True):
    """Return a function that ends the process with its call of that number, before or after it."""
    count = iter(range(1, 10**6))

    def wrapped(*args, **options):
        number = next(count)
        if number == calls and not is_after:
            die()
        result = function(*args, **options)
        if number == calls:
            die()
        return result

    return wrapped


# What dies at which call; shards are of 32 images, so that train has 7 and val 4.
KILLS = (
    (features._Store, "write", 1, True),
    (features._Store, "write", 4, True),
    (features._Store, "write", 4, False),
    (Logistic, "fit", 9, True),
    (writer.RunWriter, "write_evaluation", 1, True),
)


def _run_probe(argv: list[str], kill: int | None, output: Path) -> None:
    """Do in a process of its own what the script does, and die on the way if asked to."""
    with output.open("a", encoding="utf-8") as file:
        sys.stdout = sys.stderr = file
        torch.set_num_threads(1)
        features.SHARD = features.BATCH
        if kill is not None:
            owner, name, calls, is_after = KILLS[kill]
            setattr(owner, name, dying(getattr(owner, name), calls, is_after))
        code = script.main(argv)
        file.flush()
    os._exit(code)


def in_process(flags: str, where: tuple[object, ...], kill: int | None, output: Path) -> int:
    argv = [*shlex.split(flags), *map(str, where)]
    process = CONTEXT.Process(target=_run_probe, args=(argv, kill, output))
    process.start()
    process.join()
    return process.exitcode


def results_of(paths: RunPaths) -> dict[str, object]:
    """What a probe found, without times."""
    report = read_json(paths.probe)
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in report.pop("rows")]
    stamp = read_json(paths.env_stamp)
    files = (paths.checkpoint, paths.metrics, paths.per_class, paths.labelmap)
    return {
        "digest": stamp["predictions_digest"],
        "status": stamp["status"],
        "report": report,
        "rows": rows,
        **{path.name: path.read_bytes() for path in files},
    }


def test_a_probe_killed_five_times_ends_as_one_that_was_not(where, tmp_path):
    flags = f"--name k {BASE} --features class --method logistic"
    said = tmp_path / "said"
    killed, whole = (tmp_path / name for name in ("killed", "whole"))
    codes = [
        in_process(flags, (*where[:4], "--output_dir", killed), kill, said)
        for kill in (*range(len(KILLS)), None)
    ]
    assert codes == [-signal.SIGKILL] * len(KILLS) + [0], said.read_text("utf-8")
    assert in_process(flags, (*where[:4], "--output_dir", whole), None, said) == 0
    paths = RunPaths(killed, "k")
    assert results_of(paths) == results_of(RunPaths(whole, "k"))
    assert not RunPaths(killed, "k~1").run.exists()  # it was continued, not begun again
    assert said.read_text("utf-8").count("continuing the interrupted probe") == len(KILLS)
    assert len(read_json(paths.env_stamp)["sessions"]) == len(KILLS) + 1
    assert len(read_scalars(paths.tensorboard)["eval/accuracy"]) == 1


@pytest.mark.parametrize(("owner", "name"), [(features._Store, "write"), (Logistic, "fit")])
def test_ctrl_c_says_what_continues(where, tmp_path, monkeypatch, capsys, owner, name):
    def press(*args: object) -> None:
        raise KeyboardInterrupt

    output = ("--output_dir", tmp_path)
    flags = f"--name k {BASE} --features class --method logistic"
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, press)
        assert probe(flags, *where[:4], *output) == 130
    out, err = capsys.readouterr()
    assert err == "error: interrupted\n"
    assert out.endswith(f"interrupted; the same command continues {tmp_path / 'k'}\n")
    assert probe(flags, *where[:4], *output) == 0
    assert "continuing the interrupted probe" in capsys.readouterr().out


def test_an_interrupted_probe_with_other_flags_is_kept(where, tmp_path):
    output = ("--output_dir", tmp_path)
    flags = f"--name k {BASE} --features class --method knn"
    assert in_process(f"{flags} --folds 2", (*where[:4], *output), 0, tmp_path / "said") < 0
    assert probe(flags, *where[:4], *output) == 0
    assert RunPaths(tmp_path, "k~1").run.is_dir()


# --- Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--method knn,svm", "--method: 'svm' is none of knn, nearest_mean, logistic"),
        ("--few_shot 1,x", "--few_shot: 'x' is not a whole number"),
        ("--folds 1", "--folds: '1' is not a whole number from 2"),
        ("--features token", "invalid choice: 'token'"),
        ("--img_size 33", "--img_size 33 is not a multiple of the patch"),
        ("--model_type ViT-S_14 --img_size 28", "use --model_type testing"),
        ("--eval_split later", "later"),
    ],
)
def test_a_wrong_flag_is_refused(flags, message, where, refused):
    assert message in refused(
        lambda line, *more: probe(line, *where[:4], *more), f"--name p {BASE} {flags}"
    )


def test_weights_are_needed_and_features_are_not_weights(drawn, where, refused, tmp_path):
    def without(line: str, *more: object) -> int:
        return probe(line, "--data_root", drawn, *more)

    assert "required: --pretrained" in refused(without, f"--name p {BASE}")
    np.save(tmp_path / "features.npy", np.zeros((3, 2, 64), np.float32))
    flags = f"--name p {BASE} --pretrained {tmp_path / 'features.npy'}"
    assert "features.npy" in refused(without, flags)


def test_a_head_that_reads_one_kind_of_features_has_no_other(drawn, refused, tmp_path):
    path = tmp_path / "avg.safetensors"
    save_file(random_model(SIZE, 3, pool="avg").state_dict(), path)
    flags = f"--name p {BASE} --features both --pretrained {path}"
    error = refused(lambda line, *more: probe(line, "--data_root", drawn, *more), flags)
    assert "--features both: a head of these weights reads avg features alone" in error


def test_a_cache_that_cannot_be_is_refused(where, tmp_path, capsys):
    (tmp_path / ".cache").touch()
    assert probe(f"--name p {BASE}", *where[:4], "--output_dir", tmp_path) == 2
    error = capsys.readouterr().err
    assert "--cache_dir" in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [".cache"]


def test_one_class_is_nothing_to_tell_apart(drawn, where, refused, tmp_path):
    train_split = open_split(get_spec("synthetic"), drawn, "train")
    ids = train_split.ids[train_split.labels == 0].tolist()
    (tmp_path / "ids.txt").write_text("\n".join(ids), encoding="utf-8")
    flags = f"--name p {BASE} --tiny_train_subset {tmp_path / 'ids.txt'}"
    error = refused(lambda line, *more: probe(line, *where[:4], *more), flags)
    assert f"all {len(ids)} images of split train are of one class, " in error


def test_a_split_without_labels_is_refused(where, refused, tmp_path):
    lists = tmp_path / "photos.csv"
    lines = ["path,label,split", "a.jpg,rose,train", "b.jpg,lily,train", "c.jpg,,val"]
    lists.write_text("\n".join(lines) + "\n", encoding="utf-8")
    flags = f"--name p {BASE.replace('synthetic', 'csv')} --data_root {lists}"
    error = refused(lambda line, *more: probe(line, *where[2:4], *more), flags)
    assert "photos.csv" in error
    assert "label" in error


def test_a_probe_is_one_process(monkeypatch, refused, where):
    monkeypatch.setenv("WORLD_SIZE", "2")
    error = refused(lambda line, *more: probe(line, *where[:4], *more), f"--name p {BASE}")
    assert "one process" in error
