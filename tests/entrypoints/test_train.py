"""train.py through its CLI: what a run does beyond the smoke tests."""

import math
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import torch
from helpers import (
    REPO,
    TINY_TRAIN,
    evaluate,
    files_below,
    read_json,
    read_scalars,
    rows_of,
    train,
)

from utils.data_utils import RunPaths
from utils.run.checkpoint import load_checkpoint

SUBSETS = "--tiny_train_subset synthetic_tiny --tiny_infer_subset synthetic_tiny"


def tiny(drawn, output, *more, name="run", flags=SUBSETS):
    """A tiny run; its paths."""
    line = f"--name {name} --dataset synthetic {TINY_TRAIN} {flags}"
    assert train(line, "--data_root", drawn, "--output_dir", output, *more) == 0
    return RunPaths(output, name)


def test_the_tiny_model_learns_the_drawings(drawn, tmp_path):
    """Far above the 10 % of chance on held-out drawings, in about ten seconds."""
    code = train(
        "--name learn --dataset synthetic --model_type testing --img_size 64 --num_steps 150 "
        "--eval_every 150 --train_batch_size 32 --eval_batch_size 50 --learning_rate 1e-3 "
        "--optimizer adamw --weight_decay 0.05 --num_workers 0 --device cpu",
        "--data_root",
        drawn,
        "--output_dir",
        tmp_path,
    )
    paths = RunPaths(tmp_path, "learn")
    assert code == 0
    assert read_json(paths.metrics)["accuracy"] > 0.5
    losses = [loss for _, loss in read_scalars(paths.tensorboard)["train/loss"]]
    assert losses[-1] < losses[0] / 2


def test_synthetic_data_is_drawn_under_the_output_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "photos"))  # of somebody: not to be drawn into
    code = train(f"--name a --dataset synthetic {TINY_TRAIN} {SUBSETS} --output_dir {tmp_path}/out")
    assert code == 0
    assert (tmp_path / "out" / ".synthetic" / "jpg" / "image_00001.jpg").exists()
    assert not (tmp_path / "photos").exists()
    rows = rows_of(RunPaths(tmp_path / "out", "a"))
    assert all(str(tmp_path / "out" / ".synthetic") in row["filepath"] for row in rows)


def test_data_root_from_the_environment_and_from_a_parent(drawn, tmp_path, monkeypatch):
    parent = tmp_path / "data"
    parent.mkdir()
    (parent / "flowers102").symlink_to(drawn)
    monkeypatch.setenv("DATA_ROOT", str(parent))
    flags = SUBSETS.replace("synthetic", "flower102")
    code = train(f"--name a {TINY_TRAIN} {flags}", "--output_dir", tmp_path / "out")
    assert code == 0
    assert read_json(RunPaths(tmp_path / "out", "a").env_stamp)["dataset"]["name"] == "flower102"


def test_a_second_run_keeps_the_first(drawn, tmp_path, capsys):
    first = tiny(drawn, tmp_path)
    run_id = read_json(first.env_stamp)["run_id"]
    tiny(drawn, tmp_path)
    kept = RunPaths(tmp_path, "run~1")
    assert "kept the previous run run as" in capsys.readouterr().out
    note = kept.retention.read_text("utf-8")
    assert f"location: {kept.run}\n" in note  # not where it lay before
    assert "  - run~1/checkpoints/ckpt.bin\n" in note
    assert re.search(r"keep until: (.*)", note)[1] in first.retention.read_text("utf-8")
    assert read_json(kept.env_stamp)["run_id"] == run_id
    assert read_scalars(kept.tensorboard).keys() == read_scalars(first.tensorboard).keys()
    tiny(drawn, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run~1", "run~2", "tb"]
    assert sorted(path.name for path in (tmp_path / "tb").iterdir()) == ["run", "run~1", "run~2"]
    assert read_json(kept.env_stamp)["run_id"] == run_id


def test_epochs_and_steps_are_two_names_of_one_length(drawn, tmp_path, capsys):
    flags = f"--name a --dataset synthetic {TINY_TRAIN} {SUBSETS}".replace("--num_steps 4", "")
    where = ("--data_root", str(drawn), "--output_dir")
    assert train(flags, *where, tmp_path / "epochs", "--epochs", 2) == 0
    assert "4 steps = 2.00 epochs of 8 samples at batch 4" in capsys.readouterr().out
    assert train(flags, *where, tmp_path / "steps", "--num_steps", 4) == 0
    stamps = [read_json(RunPaths(tmp_path / kind, "a").env_stamp) for kind in ("epochs", "steps")]
    assert stamps[0]["config_hash"] == stamps[1]["config_hash"]


def test_evaluates_after_the_last_step_too(drawn, tmp_path):
    paths = tiny(drawn, tmp_path, "--num_steps", 5, "--eval_every", 2)
    assert [step for step, _ in read_scalars(paths.tensorboard)["eval/loss"]] == [2, 4, 5]


def test_ties_keep_the_earlier_checkpoint(drawn, tmp_path, finished_run):
    """A learning rate that moves no weight: every evaluation is as good as the first."""
    still = ("--pretrained", finished_run.checkpoint, "--learning_rate", "1e-60")
    paths = tiny(drawn, tmp_path, *still, "--eval_every", 1)
    assert read_json(paths.metrics)["step"] == 1


def test_accumulated_micro_batches_train_the_same_model(drawn, tmp_path):
    whole = tiny(drawn, tmp_path, name="whole")
    parts = tiny(drawn, tmp_path, "--gradient_accumulation_steps", 4, name="parts")
    a, b = (torch.load(run.checkpoint, weights_only=True)["state_dict"] for run in (whole, parts))
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "flags",
    [
        ("--optimizer", "adamw", "--weight_decay", "0.1", "--learning_rate", "1e-3"),
        ("--decay_type", "linear", "--warmup_steps", "2", "--momentum", "0.5"),
        ("--smoothing_value", "0.1", "--max_grad_norm", "0.5", "--seed", "7"),
        ("--train_split", "trainval", "--eval_split", "test"),
    ],
)
def test_every_knob_turns(drawn, tmp_path, finished_run, flags):
    """Each runs to the end, gives other weights than the default and another config hash."""
    paths = tiny(drawn, tmp_path, *flags)
    stamps = [read_json(run.env_stamp) for run in (paths, finished_run)]
    assert stamps[0]["config_hash"] != stamps[1]["config_hash"]
    ids = [read_json(run.metrics)["checkpoint_id"] for run in (paths, finished_run)]
    assert ids[0] != ids[1]


def test_warns_when_evaluated_samples_are_trained_on(drawn, tmp_path, capsys):
    tiny(drawn, tmp_path, "--train_split", "trainval", flags="--tiny_infer_subset synthetic_tiny")
    assert "warning: 4 evaluated samples are also trained on" in capsys.readouterr().out


def test_without_logits_rows_carry_none(drawn, tmp_path):
    paths = tiny(drawn, tmp_path, "--no-export_logits")
    assert all("logits" not in row["predictions"] for row in rows_of(paths))


def test_a_list_of_ids_is_a_subset(drawn, tmp_path, finished_run):
    ids = [row["sample_id"] for row in rows_of(finished_run)]
    listed = tmp_path / "mistakes.txt"
    listed.write_text("\n".join(reversed(ids)) + "\n", encoding="utf-8")
    paths = tiny(drawn, tmp_path, flags=f"--tiny_infer_subset {listed}")
    assert [row["sample_id"] for row in rows_of(paths)] == ids  # in split order
    stamp = read_json(paths.env_stamp)
    assert stamp["tiny_infer_subset_path"] == str(listed)
    named = read_json(finished_run.env_stamp)["tiny_infer_subset"]
    assert stamp["tiny_infer_subset"] == {**named, "name": "mistakes.txt"}


def fates(out: str) -> dict[str, str]:
    """The table that says what became of the tensors of --pretrained."""
    fields = r"\n  loaded +(.*)\n  resized +(.*)\n  new +(.*)\n  unused +(.*)\n  notes +(.*)\n"
    (found,) = re.findall(fields, out)
    return dict(zip(("loaded", "resized", "new", "unused", "notes"), found, strict=True))


class TestPretrained:
    def test_own_checkpoint_gives_its_weights(self, drawn, tmp_path, finished_run, capsys):
        """With a learning rate that moves nothing, the weights are the checkpoint's."""
        paths = tiny(
            drawn, tmp_path, "--pretrained", finished_run.checkpoint, "--learning_rate", "1e-60"
        )
        out = capsys.readouterr().out
        assert f"pretrained {finished_run.checkpoint}: layout ours\n" in out
        assert fates(out) == {
            "loaded": "44 tensors",
            "resized": "none",
            "new": "none",
            "unused": "none",
            "notes": "none",
        }
        ids = [read_json(run.metrics)["checkpoint_id"] for run in (paths, finished_run)]
        assert ids[0] == ids[1]

    def test_other_classes_get_a_new_head(self, drawn, tmp_path, finished_run, capsys):
        flags = SUBSETS.replace("synthetic", "flower102")
        tiny(
            drawn,
            tmp_path,
            "--dataset",
            "flower102",
            "--pretrained",
            finished_run.checkpoint,
            flags=flags,
        )
        head = "head.bias, head.weight"
        assert fates(capsys.readouterr().out) == {
            "loaded": "42 tensors",
            "resized": "none",
            "new": head,
            "unused": head,
            "notes": "none",
        }

    def test_another_image_size_resamples_the_positions(
        self, drawn, tmp_path, finished_run, capsys
    ):
        paths = tiny(
            drawn,
            tmp_path,
            "--pretrained",
            finished_run.checkpoint,
            "--img_size",
            "64",
            "--learning_rate",
            "1e-60",
        )
        assert fates(capsys.readouterr().out) == {
            "loaded": "43 tensors",
            "resized": "pos_embed (2x2 to 4x4 patches, bicubic)",
            "new": "none",
            "unused": "none",
            "notes": "none",
        }
        before, after = (
            torch.load(run.checkpoint, weights_only=True)["state_dict"]
            for run in (finished_run, paths)
        )
        assert after["pos_embed"].shape == (1, 17, 64)
        assert torch.equal(after["pos_embed"][:, 0], before["pos_embed"][:, 0])
        rest = before.keys() - {"pos_embed"}
        assert all(torch.equal(after[key], before[key]) for key in rest)

    def test_another_size_of_model_is_refused(self, drawn, tmp_path, finished_run, capsys):
        code = train(
            f"--name a --dataset synthetic {TINY_TRAIN} {SUBSETS}",
            "--data_root",
            drawn,
            "--output_dir",
            tmp_path / "out",
            "--pretrained",
            finished_run.checkpoint,
            "--model_type",
            "ViT-Ti_16",
        )
        error = capsys.readouterr().err
        assert code == 2
        assert error == (
            f"error: --pretrained {finished_run.checkpoint}: it has embed_dim 64, not 192, "
            "depth 3, not 12, mlp_dim 128, not 768, num_heads 4, not 3; use --model_type testing\n"
        )
        assert not (tmp_path / "out").exists()


class TestFailuresAfterTheFirstWrite:
    def test_loss_that_is_not_finite_names_step_and_checkpoint(self, drawn, tmp_path, capsys):
        code = train(
            f"--name a --dataset synthetic {TINY_TRAIN} --tiny_infer_subset synthetic_tiny",
            "--data_root",
            drawn,
            "--output_dir",
            tmp_path,
            "--eval_every",
            1,
            "--log_every",
            1,
            "--num_steps",
            40,
            "--warmup_steps",
            30,
            "--learning_rate",
            "1e38",
            "--max_grad_norm",
            "1e38",
        )
        error = capsys.readouterr().err
        assert code == 1
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert re.search(r"the (loss|gradient) of step \d+ is (nan|inf)", error)
        paths = RunPaths(tmp_path, "a")
        assert f"last good checkpoint: {paths.checkpoint};" in error
        weights = load_checkpoint(paths.checkpoint).state_dict.values()
        assert all(value.isfinite().all() for value in weights)

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_an_image_damaged_during_the_run(self, drawn, tmp_path, capsys, num_workers):
        """Damage that the check cannot see: header and closing marker are there, no more."""
        root = tmp_path / "data"
        root.mkdir()
        for name in ("imagelabels.mat", "setid.mat", "synthetic.json"):
            (root / name).write_bytes((drawn / name).read_bytes())
        (root / "jpg").mkdir()
        for image in (drawn / "jpg").iterdir():
            data = image.read_bytes()
            (root / "jpg" / image.name).write_bytes(data[:20] + data[-2:])
        code = train(
            f"--name a --dataset synthetic {TINY_TRAIN}",
            "--data_root",
            root,
            "--output_dir",
            tmp_path / "out",
            "--num_workers",
            num_workers,
        )
        error = capsys.readouterr().err
        assert code == 1
        assert error.count("\n") == 1
        assert f"error: image {root}/jpg/image_" in error
        assert error.endswith(
            "after step 0, last good checkpoint: none; --resume continues from step 0\n"
        )

    def test_disk_full_leaves_the_last_checkpoint(self, drawn, tmp_path, capsys, monkeypatch):
        """The second checkpoint finds no space; the first stays whole and loadable."""
        if not Path("/proc/self/fd").exists():
            pytest.skip("needs /proc to tell which file is synced")
        real_fsync, synced = os.fsync, []

        def fsync(descriptor):
            synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
            if sum("ckpt.bin" in name for name in synced) == 2:
                raise OSError(28, "No space left on device")
            real_fsync(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        code = train(
            f"--name a --dataset synthetic {TINY_TRAIN} {SUBSETS} --learning_rate 0.5",
            "--data_root",
            drawn,
            "--output_dir",
            tmp_path,
            "--eval_every",
            1,
            "--num_steps",
            60,
        )
        monkeypatch.undo()
        error = capsys.readouterr().err
        paths = RunPaths(tmp_path, "a")
        assert code == 1
        assert "No space left on device" in error
        assert f"last good checkpoint: {paths.checkpoint}; --resume continues from step " in error
        step = torch.load(paths.checkpoint, weights_only=True)["step"]
        assert step == read_json(paths.metrics)["step"]
        assert not [path for path in files_below(tmp_path) if path.name.endswith(".tmp")]


@pytest.mark.parametrize(
    ("signum", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_signals_end_the_run_and_leave_a_whole_checkpoint(drawn, tmp_path, signum, code, word):
    command = [
        sys.executable,
        "-u",
        "train.py",
        "--name",
        "a",
        "--dataset",
        "synthetic",
        *TINY_TRAIN.split(),
        *SUBSETS.split(),
        "--num_steps",
        "1000000",
        "--eval_every",
        "5",
        "--data_root",
        str(drawn),
        "--output_dir",
        str(tmp_path),
    ]
    with subprocess.Popen(
        command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            if line.startswith("eval step 10 "):  # the first evaluation's artifacts are written
                process.send_signal(signum)
                break
        try:
            _, error = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == code
    assert error == f"error: {word}\n"
    checkpoint = RunPaths(tmp_path, "a").checkpoint
    flags = f"--name b {SUBSETS.split(' --')[1].replace('tiny_infer', '--tiny_infer')}"
    assert (
        evaluate(
            f"{flags} --eval_batch_size 2 --num_workers 0 --device cpu",
            "--data_root",
            drawn,
            "--output_dir",
            tmp_path,
            "--checkpoint",
            checkpoint,
        )
        == 0
    )


def test_off_a_terminal_one_line_every_n_steps(drawn, tmp_path, capsys):
    tiny(drawn, tmp_path, "--num_steps", 6, "--log_every", 3, "--eval_every", 6)
    captured = capsys.readouterr()
    steps = [line for line in captured.out.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in steps] == ["3/6", "6/6"]
    assert all("loss" in line and "images_per_second" in line for line in steps)
    assert captured.err == ""


def test_on_a_terminal_bars_show_loss_rate_and_eta(drawn, tmp_path):
    """A real terminal (a pty) on stderr: tqdm draws, and no step lines are logged."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 120))  # a new one has no width, and tqdm draws nothing
    command = [
        sys.executable,
        "train.py",
        "--name",
        "a",
        "--dataset",
        "synthetic",
        *TINY_TRAIN.split(),
        "--tiny_infer_subset",
        "synthetic_tiny",
        "--num_steps",
        "40",
        "--eval_every",
        "40",
        "--log_every",
        "5",
        "--data_root",
        str(drawn),
        "--output_dir",
        str(tmp_path),
    ]
    with subprocess.Popen(
        command, cwd=REPO, stdout=subprocess.PIPE, stderr=theirs, text=True
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # Linux says so when the other side is closed
                break
            if not chunk:
                break
            shown += chunk
        out = process.stdout.read()
        assert process.wait() == 0
    os.close(ours)
    text = shown.decode()
    assert "train:" in text
    assert "loss=" in text
    assert "step/s" in text or "s/step" in text
    assert "<00:" in text  # elapsed<remaining
    assert "step 5/40" not in out


def test_first_loss_of_a_fresh_head_is_log_c(drawn, tmp_path):
    paths = tiny(drawn, tmp_path, "--log_every", 1)
    (_, first), *_ = read_scalars(paths.tensorboard)["train/loss"]
    assert math.isclose(first, math.log(10), rel_tol=1e-5)
