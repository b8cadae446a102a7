"""Interrupt runs and resume them: they end with the same bits, or one line says why not."""

import errno
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from forked import started
from helpers import (
    REPO,
    evaluate,
    files_below,
    read_json,
    read_scalars,
    rows_of,
    train,
)
from interruptions import (
    LONG,
    Crash,
    assert_same_end,
    crash,
    is_equal,
    signals,
    untimed_scalars,
    when_logged,
)

from utils import files
from utils.data.images import openers
from utils.data_utils import EMA, RunPaths, checkpoint_paths
from utils.evaluation import evaluate as evaluating
from utils.run.checkpoint import load_checkpoint
from utils.run.scalars import EventLog
from utils.run.snapshot import SnapshotStore, load_newest, load_snapshot
from utils.run.tensor_file import load_archive, save_archive


@pytest.fixture
def start(drawn, tmp_path):
    """Starts or resumes a run of a name in `tmp_path`; returns the exit code."""

    def call(name: str, flags: str = "", *more) -> int:
        where = ("--data_root", drawn, "--output_dir", tmp_path)
        return train(f"--name {name} {LONG} {flags}", *where, *more)

    return call


@pytest.fixture(scope="module")
def whole(drawn, tmp_path_factory):
    """Paths of the run with these flags that nothing interrupted; each is made once."""
    made = {}

    def paths(flags: str = "") -> RunPaths:
        if flags not in made:
            output = tmp_path_factory.mktemp("whole")
            line = f"--name whole {LONG} {flags}"
            assert train(line, "--data_root", drawn, "--output_dir", output) == 0
            made[flags] = RunPaths(output, "whole")
        return made[flags]

    return paths


# --- The same bits --------------------------------------------------------------------------------

RECIPES = [
    "--preset strong --dropout 0.1 --ema_decay 0.5 --num_workers 2",
    "--optimizer adamw --layer_decay 0.7 --learning_rate 1e-3 --cache disk",
    "--head parts --contrastive_scope effective --gradient_accumulation_steps 2 --drop_path 0.2 "
    "--patch_dropout 0.5",
]


@pytest.mark.parametrize("flags", RECIPES)
def test_interrupted_runs_end_with_the_same_bits(start, whole, tmp_path, flags):
    paths = RunPaths(tmp_path, "run")
    with when_logged("^step 3/", signals(signal.SIGTERM)):
        assert start("run", flags) == 143
    header = load_snapshot(paths.last).header
    assert (header.step, header.epoch, header.samples_of_epoch) == (3, 1, 4)
    # Logged right before the evaluation, which is interrupted and done again.
    with when_logged("^step 8/", signals(signal.SIGINT)):
        assert start("run", f"{flags} --resume") == 130
    assert load_snapshot(paths.last).parts["progress"]["evaluated"] == 4
    with when_logged("^step 9/", crash), pytest.raises(Crash):
        start("run", f"{flags} --resume")
    assert load_snapshot(paths.last).header.step == 8
    assert start("run", f"{flags} --resume") == 0
    assert_same_end(paths, whole(flags))


def test_scalars_of_an_evaluation_that_was_cut_off_twice_are_not_doubled(start, whole, tmp_path):
    with when_logged("^step 8/", signals(signal.SIGTERM)):
        assert start("run") == 143
    # Logged after the evaluation, and before the snapshot that knows of it.
    with when_logged("^eval step 8 ", crash), pytest.raises(Crash):
        start("run", "--resume")
    assert start("run", "--resume") == 0
    assert_same_end(RunPaths(tmp_path, "run"), whole())


def test_there_is_a_snapshot_before_the_first_step(start, whole, tmp_path):
    with when_logged("^step 3/", crash), pytest.raises(Crash):
        start("run", "--save_every 100")
    assert load_snapshot(RunPaths(tmp_path, "run").last).header.step == 0
    assert start("run", "--resume") == 0
    assert_same_end(RunPaths(tmp_path, "run"), whole())


def test_an_evaluation_that_a_flag_makes_due_is_logged(start, tmp_path):
    """At the very step from which the run resumes."""
    with when_logged("^step 3/", signals(signal.SIGTERM)):
        assert start("run") == 143
    assert start("run", "--num_steps 3 --resume --allow_change num_steps") == 0
    paths = RunPaths(tmp_path, "run")
    assert [step for step, _ in read_scalars(paths.tensorboard)["eval/accuracy"]] == [3]
    assert read_json(paths.metrics)["step"] == 3


def test_scalars_are_on_the_disk_before_each_snapshot(start, monkeypatch):
    """A power cut must not leave a snapshot that counts on scalars which are gone."""
    calls = []

    def note(owner: type, name: str) -> None:
        method = getattr(owner, name)

        def noted(self, *args) -> None:
            calls.append(name)
            method(self, *args)

        monkeypatch.setattr(owner, name, noted)

    note(EventLog, "flush")
    note(SnapshotStore, "save")
    assert start("run") == 0
    saves = calls.count("save")
    assert saves == 6  # at 0, then every 2 of 10 steps, 4 and 8 among them
    assert calls[: 2 * saves] == ["flush", "save"] * saves


def test_the_stamp_lists_every_start(start, tmp_path):
    with when_logged("^step 6/", signals(signal.SIGTERM)):
        start("run")
    paths = RunPaths(tmp_path, "run")
    begun = read_json(paths.env_stamp)
    assert begun["status"] == "unfinished"
    left = paths.last.with_name(".last.bin.12345.tmp")  # by a writer that was killed
    left.write_bytes(b"half")
    assert start("run", "--resume") == 0
    assert not left.exists()
    ended = read_json(paths.env_stamp)
    assert ended["status"] == "finished"
    assert (ended["run_id"], ended["timestamp"]) == (begun["run_id"], begun["timestamp"])
    assert [session["from_step"] for session in ended["sessions"]] == [0, 6]
    assert ["--resume" in session["command"] for session in ended["sessions"]] == [False, True]
    assert ended["config_hash"] == begun["config_hash"]


# --- Signals --------------------------------------------------------------------------------------


def test_the_second_signal_stops_without_damage(start, whole, tmp_path):
    with when_logged("^step 3/", signals(signal.SIGTERM, signal.SIGTERM)):
        assert start("run") == 143
    paths = RunPaths(tmp_path, "run")
    assert load_snapshot(paths.last).header.step == 2  # as --save_every wrote it
    assert start("run", "--resume") == 0
    assert_same_end(paths, whole())


@pytest.mark.parametrize("pattern", ["^step 3/", "^step 4/"], ids=["training", "evaluating"])
def test_a_signal_that_loaders_get_too_saves_first(start, whole, tmp_path, capsys, pattern):
    """What ends a machine sends it to all processes."""

    def end_all() -> None:
        signal.raise_signal(signal.SIGTERM)
        loaders = multiprocessing.active_children()
        assert loaders
        # From elsewhere: by their main process's they end in good order.
        subprocess.run(["kill", *(str(loader.pid) for loader in loaders)], check=True)
        for loader in loaders:  # left for torch to find
            os.waitid(os.P_PID, loader.pid, os.WEXITED | os.WNOWAIT)

    with when_logged(pattern, end_all):
        assert start("run", "--num_workers 2") == 143
    assert capsys.readouterr().err == "error: terminated\n"
    paths = RunPaths(tmp_path, "run")
    assert load_snapshot(paths.last).header.step == int(pattern[6])
    # The process would have ended. In this one torch watches over its dead loaders until they are
    # waited for, and finds them when any child ends, as git does when the stamp is made.
    multiprocessing.active_children()
    assert start("run", "--num_workers 1 --resume") == 0  # another number is well, too
    assert_same_end(paths, whole())


def test_an_evaluation_does_not_replace_an_unfinished_run(
    start, finished_run, drawn, tmp_path, capsys
):
    with when_logged("^step 3/", signals(signal.SIGTERM)):
        start("run")
    paths = RunPaths(tmp_path, "run")
    before = paths.last.read_bytes(), paths.env_stamp.read_bytes()
    capsys.readouterr()
    where = ("--checkpoint", finished_run.checkpoint, "--data_root", drawn)
    assert evaluate("--name run --device cpu", *where, "--output_dir", tmp_path) == 2
    assert "--name run is an unfinished training run" in capsys.readouterr().err
    assert (paths.last.read_bytes(), paths.env_stamp.read_bytes()) == before
    assert not (tmp_path / "run~1").exists()


@pytest.mark.parametrize("killed_at", ["^step {}/", "^cache: "])
def test_a_snapshot_that_was_chosen_is_the_newest_from_then_on(start, whole, tmp_path, killed_at):
    """Though the resumed run is killed before it saves again, or before its first step."""
    assert start("run", "--keep 3") == 0
    paths = RunPaths(tmp_path, "run")
    older = paths.older(2)
    step = load_snapshot(older).header.step
    assert step < load_snapshot(paths.last).header.step == 10
    with when_logged(killed_at.format(step + 1), crash), pytest.raises(Crash):
        start("run", f"--log_every 1 --save_every 100 --cache disk --resume {older}")
    assert load_snapshot(paths.last).header.step == step
    assert start("run", "--resume") == 0
    assert_same_end(paths, whole())


def test_a_run_uses_its_files_as_they_were_when_it_began(start, finished_run, tmp_path, capsys):
    """A list of ids that is edited meanwhile neither stops the run nor becomes part of it."""
    ids, lines = tmp_path / "ids.txt", [f"{row['sample_id']}\n" for row in rows_of(finished_run)]
    ids.write_text("".join(lines))
    flags = f"--tiny_infer_subset {ids}"
    with when_logged("^step 3/", ids.unlink):
        assert start("run", flags) == 0
    ids.write_text(lines[0])
    assert start("run", f"{flags} --resume") == 2
    assert "--resume: the data are not those of the run" in capsys.readouterr().err
    ids.write_text("".join(lines))
    assert start("run", f"{flags} --resume") == 0


# --- What may not differ --------------------------------------------------------------------------


@pytest.fixture
def interrupted(start, tmp_path):
    """A run that was stopped after step 6."""
    with when_logged("^step 6/", signals(signal.SIGTERM)):
        assert start("run") == 143
    return RunPaths(tmp_path, "run")


def test_an_unfinished_run_is_not_restarted_by_accident(start, interrupted, capsys):
    before = interrupted.last.read_bytes()
    assert start("run") == 2
    error = capsys.readouterr().err
    run, events = interrupted.run, interrupted.tensorboard
    assert error == (
        f"error: --name run is an unfinished run: `train.py --resume {run}` resumes it, "
        f"`rm -r {run} {events}` throws it away; or choose another name\n"
    )
    assert interrupted.last.read_bytes() == before
    assert start("other") == 0


def test_another_config_is_refused_with_the_differences(start, interrupted, capsys):
    before = interrupted.env_stamp.read_bytes()
    assert start("run", "--learning_rate 0.01 --resume") == 2
    error = capsys.readouterr().err
    assert "otherwise: --learning_rate 0.01 (the run's: 0.03); leave it out, or allow" in error
    assert error.endswith("--allow_change learning_rate\n")
    assert error.count("\n") == 1
    assert interrupted.env_stamp.read_bytes() == before


def test_a_finished_run_resumes_only_if_made_longer_and_keeps_its_warm_up(start, tmp_path):
    assert start("run") == 0
    paths = RunPaths(tmp_path, "run")
    before = paths.checkpoint.read_bytes(), untimed_scalars(paths)
    assert start("run", "--resume") == 0
    assert (paths.checkpoint.read_bytes(), untimed_scalars(paths)) == before
    assert start("run", "--num_steps 30 --resume --allow_change num_steps") == 0
    config = read_json(paths.env_stamp)["config"]
    assert (config["num_steps"], config["warmup_steps"], config["epochs"]) == (30, 1, 15.0)
    rates = dict(read_scalars(paths.tensorboard)["train/lr"])
    assert rates[12] == pytest.approx(0.03 * 0.5 * (1 + np.cos(np.pi * 10 / 29)), rel=1e-5)
    assert load_snapshot(paths.last).header.step == max(rates) == 30
    assert not (tmp_path / "run~1").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--resume --allow_change head", "head cannot change within a run"),
        ("--allow_change num_steps", "--allow_change means nothing without --resume"),
        ("--resume", "has no snapshot to resume from; start it without --resume"),
        ("--resume absent.bin", "absent.bin does not exist"),
    ],
)
def test_what_cannot_be_resumed_is_refused(start, tmp_path, capsys, flags, said):
    assert start("run", flags) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# --- Flags that are not given ---------------------------------------------------------------------


@pytest.mark.parametrize("flags", [*RECIPES, "--recipe small-data --patience 9 --augment none"])
@pytest.mark.parametrize("by_name", [True, False])
def test_resume_alone_is_enough(start, whole, drawn, tmp_path, capsys, flags, by_name):
    with when_logged("^step 3/", signals(signal.SIGTERM)):
        assert start("run", flags) == 143
    paths = RunPaths(tmp_path, "run")
    capsys.readouterr()
    again = f"--name run --output_dir {tmp_path} --resume" if by_name else f"--resume {paths.run}/"
    assert train(again) == 0
    assert "resuming at step 3 of 10\n" in capsys.readouterr().out
    assert_same_end(paths, whole(flags))
    configs = [load_snapshot(each.last).header.config for each in (paths, whole(flags))]
    own = ("name", "output_dir", "resume", "cache_dir")
    one, other = ({k: v for k, v in each.items() if k not in own} for each in configs)
    assert one == other


def test_the_weights_that_a_run_started_from_are_not_needed_any_more(
    start, whole, finished_run, tmp_path, capsys
):
    weights = shutil.copy(finished_run.checkpoint, tmp_path / "weights.bin")
    flags = "--img_size 48 --pretrained"
    with when_logged("^step 3/", signals(signal.SIGTERM)):
        assert start("run", f"{flags} {weights}") == 143
    assert f"pretrained {weights}: layout" in capsys.readouterr().out
    paths = RunPaths(tmp_path, "run")
    before = read_json(paths.env_stamp)
    other = shutil.copy(finished_run.last, tmp_path / "other.bin")
    assert train(f"--resume {paths.run} --pretrained {other}") == 2
    assert f"--pretrained {other} (the run's: {weights}); leave it" in capsys.readouterr().err
    Path(weights).unlink()
    assert train(f"--resume {paths.run}") == 0
    assert "layout" not in capsys.readouterr().out
    assert_same_end(paths, whole(f"{flags} {finished_run.checkpoint}"))
    after = read_json(paths.env_stamp)
    assert (before["config_hash"], before["config"]["pretrained"]) == (
        after["config_hash"],
        after["config"]["pretrained"],
    )


def test_a_run_that_was_moved_is_resumed_from_any_folder(whole, drawn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    shutil.copytree(drawn, "flowers")
    with when_logged("^step 3/", signals(signal.SIGTERM)):
        assert train(f"--name run {LONG} --data_root flowers --cache disk --output_dir out") == 143
    Path("out").rename("moved")
    monkeypatch.chdir(tmp_path / "there")
    assert train("--resume ../moved/run") == 0
    assert_same_end(RunPaths(tmp_path / "moved", "run"), whole("--cache disk"))
    assert {path.name for path in tmp_path.iterdir()} == {"there", "flowers", "moved"}
    assert list(Path().iterdir()) == []
    assert (tmp_path / "moved" / ".cache").is_dir()


def test_data_that_moved_are_where_the_environment_says(drawn, tmp_path, monkeypatch):
    data = shutil.copytree(drawn, tmp_path / "flowers")
    flags = f"{LONG} --dataset flower102 --data_root {data} --output_dir {tmp_path}"
    flags = flags.replace("synthetic_tiny", "flower102_tiny")
    with when_logged("^step 3/", signals(signal.SIGTERM)):
        assert train(f"--name run {flags}") == 143
    monkeypatch.setenv("DATA_ROOT", str(data.rename(tmp_path / "moved")))
    assert train(f"--resume {tmp_path / 'run'}") == 0


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--seed 7", "--seed 7 (the run's: 42); leave it out, or start another run"),
        ("--no-export_logits", "--export_logits off (the run's: on); leave it out, or allow the"),
        ("--recipe small-data", "--recipe small-data (the run's: none); leave it out, or start"),
        ("--dataset pets", "--dataset pets (the run's: synthetic); leave it out, or start"),
        ("--preset strong", "--preset strong (the run's: vit); leave it out, or start"),
        ("--epochs 9", "epochs 5.0 -> 9.0, num_steps 10 -> 18; leave them out, or name what may"),
        ("--eval_split test", "--eval_split test (the run's: val); leave it out, or start"),
        ("--head parts", "--head parts (the run's: token); leave it out, or start"),
        ("--slide_step 8", "--slide_step means nothing without --split overlap"),
    ],
)
def test_a_flag_that_contradicts_the_run_is_refused_by_name(start, tmp_path, capsys, flag, said):
    assert start("run") == 0
    before = files_below(tmp_path)
    capsys.readouterr()
    assert train(f"--name run --output_dir {tmp_path} --resume {flag}") == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert files_below(tmp_path) == before


def test_flags_that_change_no_result_and_those_that_agree_are_free(interrupted, drawn, tmp_path):
    moved = shutil.copytree(drawn, tmp_path / "moved")
    flags = "--num_workers 1 --cache disk --device cpu --keep 5 --log_every 7 --seed 42 --tta flip"
    flags += " --allow_change tta --eval_split val --dataset synthetic --num_steps 10"
    assert train(f"--resume {interrupted.run} --data_root {moved} {flags}") == 0
    config = read_json(interrupted.env_stamp)["config"]
    assert (config["data_root"], config["keep"], config["tta"]) == (str(moved), 5, "flip")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--resume {0}", "{0} is a folder without snapshots; name that of a run"),
        ("--resume", "the following arguments are required: --name"),
        ("--resume {0}/run --output_dir {0}/b", "{0}/b is not where the run of --resume"),
        ("--resume {0}/run~1", "'run~1' is not a run name"),
    ],
)
def test_a_folder_that_cannot_be_resumed_is_one_line(interrupted, tmp_path, capsys, flags, said):
    shutil.copytree(interrupted.run, tmp_path / "run~1")
    assert train(flags.format(tmp_path)) == 2
    error = capsys.readouterr().err
    assert said.format(tmp_path) in error
    assert error.count("\n") == 1


def test_the_folder_of_another_run_starts_a_new_one(interrupted, whole, tmp_path):
    assert train(f"--name fork --output_dir {tmp_path} --resume {interrupted.run}") == 0
    fork = RunPaths(tmp_path, "fork")
    weights = [load_snapshot(each.last).parts["learner"]["model"] for each in (fork, whole())]
    assert is_equal(*weights)
    assert load_snapshot(interrupted.last).header.step == 6


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mixup", "lots"),
        ("model_type", "unknown"),
        ("data_root", "a\x00b"),
        ("depth", 10**6),
        ("embed_dim", 48),
    ],
)
def test_a_snapshot_with_flags_that_cannot_be_is_one_line(interrupted, capsys, key, value):
    payload = load_archive(interrupted.last)
    of = payload["config"]["model"] if key in payload["config"]["model"] else payload["config"]
    of[key] = value
    save_archive(interrupted.last, payload)
    assert train(f"--resume {interrupted.run}") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --resume: the snapshot")
    assert key in error or "null byte" in error
    assert error.count("\n") == 1


# --- Which snapshot -------------------------------------------------------------------------------


def test_a_damaged_snapshot_falls_back_to_the_one_before(start, whole, interrupted, capsys):
    data = bytearray(interrupted.last.read_bytes())
    data[len(data) // 2] ^= 1
    interrupted.last.write_bytes(data)
    assert start("run", "--resume") == 0
    out = capsys.readouterr().out
    assert f"warning: checkpoint {interrupted.last} is damaged" in out
    assert f"going back to {interrupted.older(1)}, step " in out
    assert_same_end(interrupted, whole())


def test_that_no_snapshot_is_whole_is_one_line(start, interrupted, capsys):
    for path in (interrupted.last, interrupted.older(1)):
        path.write_bytes(b"")
    assert start("run", "--resume") == 2
    error = capsys.readouterr().err
    assert "last.bin is truncated" in error
    assert error.count("\n") == 1


def test_a_snapshot_of_another_run_starts_a_new_one(start, whole, interrupted, tmp_path):
    untouched = interrupted.last.read_bytes(), interrupted.env_stamp.read_bytes()
    assert start("fork", f"--resume {interrupted.last}") == 0
    fork = RunPaths(tmp_path, "fork")
    weights = [load_snapshot(each.last).parts["learner"]["model"] for each in (fork, whole())]
    assert is_equal(*weights)
    assert fork.checkpoint.exists()
    assert (interrupted.last.read_bytes(), interrupted.env_stamp.read_bytes()) == untouched
    assert read_json(fork.env_stamp)["run_id"] != read_json(interrupted.env_stamp)["run_id"]


def test_a_best_checkpoint_that_is_lost_starts_anew(start, interrupted, capsys):
    interrupted.checkpoint.write_bytes(interrupted.checkpoint.read_bytes()[:-100])
    assert start("run", "--resume") == 0
    assert "the best checkpoint starts anew" in capsys.readouterr().out
    assert load_checkpoint(interrupted.checkpoint).metrics["step"] >= 8


# --- One writer -----------------------------------------------------------------------------------


HOLD = """\
import sys
from pathlib import Path
from utils.data_utils import RunPaths
from utils.run.lock import run_lock
with run_lock(RunPaths(Path(sys.argv[1]), "run")):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_that_is_being_written_is_refused(start, finished_run, drawn, tmp_path, capsys):
    paths = RunPaths(tmp_path, "run")
    where = ("--data_root", drawn, "--output_dir", tmp_path)
    flags = f"--name run --device cpu --checkpoint {finished_run.checkpoint}"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        cwd=REPO,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "held\n"
        said = f"--name run is being written by process {process.pid} on "
        assert start("run") == 2
        assert said in capsys.readouterr().err
        assert evaluate(flags, *where) == 2
        assert said in capsys.readouterr().err
        assert not paths.run.exists()
        process.kill()
    assert start("run", "--num_steps 1") == 0
    assert f"took over the run from process {process.pid}, which is dead" in capsys.readouterr().out


# --- Failures -------------------------------------------------------------------------------------


def test_an_image_that_vanishes_is_one_line_and_nothing_is_lost(drawn, tmp_path, capsys):
    data = shutil.copytree(drawn, tmp_path / "data")
    where = ("--data_root", data, "--output_dir", tmp_path / "out")
    line = f"--name run {LONG}"

    def vanish() -> None:
        for path in (data / "jpg").iterdir():
            path.rename(path.with_suffix(".gone"))

    with when_logged("^step 3/", vanish):
        assert train(line, *where) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(r"image_\d{5}\.jpg", error)
    assert "--resume continues from step 3" in error
    for path in (data / "jpg").iterdir():
        path.rename(path.with_suffix(".jpg"))
    assert train(f"{line} --resume", *where) == 0


@pytest.mark.parametrize("where", ["training", "evaluation"])
def test_a_shortage_between_steps_loses_no_step(start, whole, tmp_path, capsys, monkeypatch, where):
    """Neither is a step at which the rhythm saves before."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    owner, name = {"training": (openers, "open_file"), "evaluation": (evaluating, "until_stop")}[
        where
    ]
    with (
        monkeypatch.context() as patch,
        when_logged("^step 3/", lambda: patch.setattr(owner, name, refuse)),
    ):
        assert start("run") == 1
    error = capsys.readouterr().err
    assert "Too many open files; fewer --num_workers" in error
    assert f"--resume continues from step {3 if where == 'training' else 4}" in error
    assert start("run", "--resume") == 0
    assert_same_end(RunPaths(tmp_path, "run"), whole())


def test_an_output_that_is_read_only_ends_the_run_in_one_line(start, tmp_path, capsys, monkeypatch):
    paths = RunPaths(tmp_path, "run")

    def refuse(descriptor: int) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(paths.run))

    with when_logged("^step 3/", lambda: monkeypatch.setattr(files, "sync", refuse)):
        assert start("run") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "Read-only file system" in error
    assert "; --resume continues from step 2" in error
    assert load_newest(paths).header.step == 2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the address space")
def test_memory_that_runs_out_is_one_line_that_names_the_flags(drawn, tmp_path):
    output = tmp_path / "output.txt"
    line = (
        "--name run --dataset synthetic --model_type testing --num_steps 2 --num_workers 0 "
        "--device cpu --train_batch_size 4000 --eval_every 9 --img_size 224 "
        f"--data_root {drawn} --output_dir {tmp_path}"
    )
    process = started("train.py", line.split(), output, room=400_000_000)
    process.join()
    (error,) = re.findall("^error: .*$", output.read_text("utf-8"), re.MULTILINE)
    assert process.exitcode == 1, error
    assert "less is needed with more --gradient_accumulation_steps (now 1" in error
    assert "--eval_batch_size (now " in error


# --- Averaged weights, patience -------------------------------------------------------------------


def test_averaged_weights_lie_beside_the_raw_ones(start, drawn, tmp_path):
    assert start("run", "--ema_decay 0.9") == 0
    paths = RunPaths(tmp_path, "run")
    averaged = checkpoint_paths(paths, EMA)
    assert averaged.checkpoint.name == "ckpt_ema.bin"
    raw, mean = load_checkpoint(paths.checkpoint), load_checkpoint(averaged.checkpoint)
    assert raw.state_dict.keys() == mean.state_dict.keys()
    assert not is_equal(raw.state_dict, mean.state_dict)
    scalars = read_scalars(paths.tensorboard)
    assert [step for step, _ in scalars["eval_ema/loss"]] == [4, 8, 10]
    assert scalars["eval_ema/loss"] != scalars["eval/loss"]
    # eval.py knows no difference.
    where = ("--data_root", drawn, "--output_dir", tmp_path)
    flags = "--name again --eval_batch_size 2 --tiny_infer_subset synthetic_tiny --device cpu"
    assert evaluate(flags, "--checkpoint", averaged.checkpoint, *where) == 0
    again = RunPaths(tmp_path, "again")
    assert again.metrics.read_bytes() == averaged.metrics.read_bytes()
    stamps = [read_json(each.env_stamp) for each in (paths, again)]
    assert stamps[0]["ema_predictions_digest"] == stamps[1]["predictions_digest"]
    assert stamps[0]["predictions_digest"] != stamps[0]["ema_predictions_digest"]
    assert len(averaged.predictions.read_text("utf-8").splitlines()) == len(rows_of(paths))


def test_patience_counts_across_an_interruption(start, finished_run, tmp_path, capsys):
    """With a learning rate that moves no weight, no evaluation is better than the first."""
    flags = f"--pretrained {finished_run.checkpoint} --learning_rate 1e-60"
    flags += " --num_steps 20 --eval_every 2 --patience 3"
    with when_logged("^eval step 6", signals(signal.SIGTERM)):
        assert start("run", flags) == 143
    for _ in range(2):  # the second time there is nothing left to do
        assert start("run", f"{flags} --resume") == 0
        assert "ended at step 8: 3 evaluations were no better" in capsys.readouterr().out
    paths = RunPaths(tmp_path, "run")
    assert load_snapshot(paths.last).header.step == 8
    assert [step for step, _ in read_scalars(paths.tensorboard)["eval/loss"]] == [2, 4, 6, 8]
    assert read_json(paths.env_stamp)["status"] == "finished"
    assert read_json(paths.metrics)["step"] == 2  # of equal accuracies the earliest is kept
