"""Run train.py through its CLI: what a run does beyond the smoke tests."""

import math
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest
from helpers import REPO, SUBSETS, TINY_TRAIN, files_below, read_json, read_scalars, rows_of, train

from utils.data_utils import RunPaths
from utils.run.checkpoint import load_checkpoint


def tiny(drawn, output, *more, name="run", flags=SUBSETS):
    """A tiny run; its paths."""
    line = f"--name {name} --dataset synthetic {TINY_TRAIN} {flags}"
    assert train(line, "--data_root", drawn, "--output_dir", output, *more) == 0
    return RunPaths(output, name)


def test_the_tiny_model_learns_the_drawings(drawn, tmp_path):
    """Far above the 10 % of chance on held-out drawings, in a few seconds."""
    flags = (
        "--name learn --dataset synthetic --model_type testing --img_size 64 --num_steps 40 "
        "--eval_every 40 --log_every 10 --train_batch_size 32 --eval_batch_size 50 "
        "--optimizer adamw --learning_rate 1e-3 --weight_decay 0.05 --num_workers 0 --device cpu"
    )
    assert train(flags, "--data_root", drawn, "--output_dir", tmp_path) == 0
    paths = RunPaths(tmp_path, "learn")
    assert read_json(paths.metrics)["accuracy"] > 0.5
    losses = [loss for _, loss in read_scalars(paths.tensorboard)["train/loss"]]
    assert losses[-1] < 0.8 * losses[0]


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


def test_epochs_are_steps_over_the_samples(drawn, tmp_path, capsys):
    flags = f"--name a --dataset synthetic {TINY_TRAIN} {SUBSETS}".replace("--num_steps 4", "")
    assert train(f"{flags} --epochs 2", "--data_root", drawn, "--output_dir", tmp_path) == 0
    assert "4 steps = 2.00 epochs of 8 samples at batch 4" in capsys.readouterr().out
    assert read_json(RunPaths(tmp_path, "a").env_stamp)["config"]["num_steps"] == 4


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
    assert "warning: 4 of the 4 images to evaluate were trained on" in capsys.readouterr().out


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


def test_a_loss_that_is_not_finite_names_step_samples_and_checkpoint(drawn, tmp_path, capsys):
    flags = (
        f"--name a --dataset synthetic {TINY_TRAIN} --eval_every 1 --log_every 1 --save_every 1 "
        "--num_steps 40 --warmup_steps 30 --learning_rate 1e38 --max_grad_norm 1e38 "
        "--tiny_infer_subset synthetic_tiny"
    )
    assert train(flags, "--data_root", drawn, "--output_dir", tmp_path) == 1
    error = capsys.readouterr().err
    paths = RunPaths(tmp_path, "a")
    found = re.fullmatch(
        r"error: the (?:loss|gradient) of step (\d+) is (?:nan|inf); its samples: "
        r"image_\d{5}(?:, image_\d{5}){3}; try a lower --learning_rate; after step \1, "
        rf"last good checkpoint: {paths.checkpoint}; --resume continues from step (\d+)\n",
        error,
    )
    assert int(found[2]) == int(found[1]) - 1
    weights = load_checkpoint(paths.checkpoint).state_dict.values()
    assert all(value.isfinite().all() for value in weights)


def test_a_full_disk_leaves_the_last_checkpoint(drawn, tmp_path, capsys, monkeypatch):
    """The second checkpoint finds no space; the first stays whole and loadable."""
    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to tell which file is synced")
    real_fsync, synced = os.fsync, []

    def fsync(descriptor):
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        if sum("ckpt.bin" in name for name in synced) == 2:
            raise OSError(28, "No space left on device")
        real_fsync(descriptor)

    flags = (
        f"--name a --dataset synthetic {TINY_TRAIN} {SUBSETS} --learning_rate 0.5 --eval_every 1 "
        "--num_steps 60"
    )
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        assert train(flags, "--data_root", drawn, "--output_dir", tmp_path) == 1
    error = capsys.readouterr().err
    paths = RunPaths(tmp_path, "a")
    assert "No space left on device" in error
    assert f"last good checkpoint: {paths.checkpoint}; --resume continues from step " in error
    assert load_checkpoint(paths.checkpoint).step == read_json(paths.metrics)["step"]
    assert not [path for path in files_below(tmp_path) if path.name.endswith(".tmp")]


class TestOnATerminal:
    """A real process with a real terminal (a pty) on stderr, interrupted after an evaluation."""

    @pytest.fixture(scope="class")
    @classmethod
    def interrupted(cls, drawn, tmp_path_factory) -> tuple[RunPaths, int, str, str]:
        """Paths, exit code, stdout, and what the terminal shows. Read only."""
        output = tmp_path_factory.mktemp("terminal")
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, 120))  # a new one has no width, and tqdm draws nothing
        flags = (
            f"--name a --dataset synthetic {TINY_TRAIN} {SUBSETS} --num_steps 1000000 "
            f"--eval_every 5 --log_every 2 --data_root {drawn} --output_dir {output}"
        )
        command = [sys.executable, "-u", "train.py", *flags.split()]
        shown, out = [], []

        def watch() -> None:
            while True:
                try:
                    shown.append(os.read(ours, 65536))
                except OSError:  # Linux says so when the other side is closed
                    return
                if not shown[-1]:
                    return

        with subprocess.Popen(
            command, cwd=REPO, stdout=subprocess.PIPE, stderr=theirs, text=True
        ) as process:
            os.close(theirs)
            watcher = threading.Thread(target=watch)
            watcher.start()
            for line in process.stdout:
                out.append(line)
                if line.startswith("eval step 10 "):
                    process.send_signal(signal.SIGINT)
        watcher.join()
        os.close(ours)
        return RunPaths(output, "a"), process.returncode, "".join(out), b"".join(shown).decode()

    def test_bars_show_loss_rate_and_eta_in_place_of_lines(self, interrupted):
        _, _, out, shown = interrupted
        assert re.search(r"train: .*/1000000 \[\d\d:\d\d<.*(step/s|s/step), loss=", shown)
        assert not re.search(r"^step \d", out, re.MULTILINE)

    def test_ctrl_c_leaves_a_whole_checkpoint_and_one_line(self, interrupted):
        paths, code, out, shown = interrupted
        assert code == 130
        assert "stopping after this step; a second signal stops at once\n" in out
        assert re.search(r"^stopped by SIGINT after step \d+; --resume continues\n", out, re.M)
        assert shown.endswith("error: interrupted\r\n")
        assert load_checkpoint(paths.checkpoint).step in (5, 10)


def test_off_a_terminal_there_is_a_line_every_n_steps(drawn, tmp_path, capsys):
    tiny(drawn, tmp_path, "--num_steps", 6, "--log_every", 3, "--eval_every", 6)
    captured = capsys.readouterr()
    steps = [line for line in captured.out.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in steps] == ["3/6", "6/6"]
    assert all("loss" in line and "images_per_second" in line for line in steps)
    assert captured.err == ""


def test_the_first_loss_of_a_fresh_head_is_log_c(drawn, tmp_path):
    paths = tiny(drawn, tmp_path, "--log_every", 1)
    (_, first), *_ = read_scalars(paths.tensorboard)["train/loss"]
    assert math.isclose(first, math.log(10), rel_tol=1e-5)
