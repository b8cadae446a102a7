"""Run several processes on one machine: they train as one does, fail together, and resume.

A launch takes seconds, so each test looks at all that its launch shows. Where torchrun itself is
not what is tested, the same processes are forked from one that has imported torch.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import Together
from helpers import REPO, SUBSETS, TINY_EVAL, TINY_TRAIN, evaluate, read_json, read_scalars, train
from layouts_own import write_folder

from utils.data.batches import sample_order
from utils.data.catalog import get_spec
from utils.data_utils import RunPaths
from utils.dataset import open_split
from utils.run.snapshot import load_newest, load_snapshot

RUN = (
    f"--dataset synthetic {TINY_TRAIN} --train_batch_size 8 --num_steps 8 --eval_every 3 "
    "--log_every 1 --save_every 2 --eval_batch_size 7"
)
CLOSE = 1e-5  # as promised


@pytest.fixture(autouse=True)
def _one_thread():
    """As torchrun sets it: the number of threads moves the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def torchrun(count: int, flags: str, *more) -> subprocess.Popen:
    """A launch of train.py; stdout and stderr are one pipe."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={count}"]
    # A port of its own for each launch: tests may run side by side.
    command += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]
    return subprocess.Popen(
        [*command, "train.py", *flags.split(), *map(str, more)],
        cwd=REPO,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture
def run_forked(tmp_path_factory):
    """Runs a script in forked processes: the first exit code that is not 0, and their output."""

    def run(count: int, script: str, flags: str, *more) -> tuple[int, str]:
        output = tmp_path_factory.mktemp("forked") / "output.txt"
        together = Together(count, script, [*flags.split(), *map(str, more)], output)
        return next(filter(None, together.end()), 0), together.said()

    return run


def errors(output: str) -> list[str]:
    """What the processes said went wrong, torchrun's own report aside."""
    return re.findall(r"^error: .*$", output, re.MULTILINE)


def assert_close(paths: RunPaths, reference: RunPaths) -> None:
    """Losses at the same steps, and the weights, within what is promised."""
    one, other = (read_scalars(each.tensorboard) for each in (paths, reference))
    for tag in ("train/loss", "train/accuracy", "train/lr", "eval/loss"):
        assert [step for step, _ in one[tag]] == [step for step, _ in other[tag]]
        differences = [abs(a - b) for (_, a), (_, b) in zip(one[tag], other[tag], strict=True)]
        assert max(differences) < CLOSE, tag
    weights = [load_snapshot(each.last).parts["learner"]["model"] for each in (paths, reference)]
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], rtol=0, atol=CLOSE)


FLAGS = {
    "mixed": "--preset strong --gradient_accumulation_steps 2 --num_workers 1 --ema_decay 0.5 "
    "--patch_dropout 0.5",
    "joint": (
        "--head parts --contrastive_scope effective --gradient_accumulation_steps 2 --freeze 1 "
        "--grad_checkpointing"
    ),
}


@pytest.mark.parametrize("kind", FLAGS)
def test_two_processes_train_as_one(drawn, tmp_path, kind, run_forked):
    where = ("--data_root", drawn, "--output_dir", tmp_path)
    line = f"{RUN} {SUBSETS} {FLAGS[kind]}"
    assert train(f"--name one {line}", *where) == 0
    code, output = run_forked(2, "train.py", f"--name two {line}", *where)
    assert code == 0, output
    paths, reference = RunPaths(tmp_path, "two"), RunPaths(tmp_path, "one")
    assert_close(paths, reference)
    assert output.count("artifacts of two") == 1  # one speaks
    stamp = read_json(paths.env_stamp)
    assert (stamp["processes"], len(stamp["hosts"])) == (2, 2)
    assert stamp["config_hash"] == read_json(reference.env_stamp)["config_hash"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "tb", "two"]


def test_every_sample_is_evaluated_once(drawn, finished_run, tmp_path, run_forked):
    """Of 100, in batches of 7: 15 batches, of which two processes get 8 and 7."""
    where = ("--data_root", drawn, "--output_dir", tmp_path)
    flags = f"--eval_batch_size 7 --num_workers 0 --checkpoint {finished_run.checkpoint}"
    flags += " --export_features"
    code, output = run_forked(2, "eval.py", f"--name all {flags}", *where)
    assert code == 0, output
    assert evaluate(f"--name one {flags}", *where) == 0
    paths, reference = RunPaths(tmp_path, "all"), RunPaths(tmp_path, "one")
    assert np.allclose(*(np.load(each.features) for each in (paths, reference)), atol=1e-5)
    assert paths.metrics.read_bytes() == reference.metrics.read_bytes()
    assert paths.per_class.read_bytes() == reference.per_class.read_bytes()
    digests = [read_json(each.env_stamp)["predictions_digest"] for each in (paths, reference)]
    assert digests[0] == digests[1]


def test_another_number_of_processes_resumes_with_the_same_order(drawn, tmp_path):
    """Stopped in two, SIGHUP to torchrun, which has a code of its own; resumed in one."""
    where = ("--data_root", drawn, "--output_dir", tmp_path)
    line = f"{RUN} {SUBSETS} --num_steps 40 --eval_every 20"
    assert train(f"--name whole {line}", *where) == 0
    with torchrun(2, f"--name run {line}", *where) as process:
        output = ""
        for text in process.stdout:
            output += text
            if text.startswith("step 3/"):
                process.send_signal(signal.SIGHUP)
    assert process.returncode == 1
    paths = RunPaths(tmp_path, "run")
    assert "stopped by SIGHUP after step" in output, output
    assert errors(output) == ["error: hung up"]
    assert 3 <= load_snapshot(paths.last).header.step < 40
    assert train(f"--name run {line} --resume", *where) == 0
    assert_close(paths, RunPaths(tmp_path, "whole"))
    stamp = read_json(paths.env_stamp)
    assert [session["processes"] for session in stamp["sessions"]] == [2, 1]


def test_three_processes_resume_with_the_same_bits(drawn, tmp_path, run_forked):
    """Of three the order of a sum counts; of two it does not."""
    flags = (
        f"--name run {RUN} {SUBSETS} --train_batch_size 6 --keep 3 --dropout 0.1 --head parts "
        "--gradient_accumulation_steps 2"
    )
    where = ("--data_root", drawn, "--output_dir")
    whole, again = (RunPaths(tmp_path / name, "run") for name in ("whole", "again"))
    code, output = run_forked(3, "train.py", flags, *where, whole.output_dir)
    assert code == 0, output
    shutil.copytree(whole.output_dir, again.output_dir)
    older = again.older(3)
    assert load_snapshot(older).header.step < 6
    line = f"--name run --resume {older} --output_dir"  # the flags are the run's, in all processes
    code, output = run_forked(3, "train.py", line, again.output_dir)
    assert code == 0, output
    ends = [load_snapshot(paths.last) for paths in (whole, again)]
    assert [end.header.step for end in ends] == [8, 8]
    # Each process draws its own dropout.
    ranks = ends[0].parts["random_state"]["ranks"]
    assert len({bytes(each["torch"].numpy()) for each in ranks}) == 3
    weights, others = (end.parts["learner"]["model"] for end in ends)
    for name, expected in weights.items():
        assert torch.equal(others[name], expected), name
    assert again.metrics.read_bytes() == whole.metrics.read_bytes()
    scalars, others = (read_scalars(paths.tensorboard) for paths in (whole, again))
    for tag in scalars.keys() - {"train/images_per_second", "data/wait_fraction"}:
        assert others[tag] == scalars[tag], tag


def test_a_run_of_one_process_resumes_in_two(drawn, tmp_path, run_forked):
    where = ("--data_root", drawn, "--output_dir")
    line = f"{RUN} {SUBSETS}"
    where, other = ((*where, tmp_path / name) for name in ("two", "one"))
    assert train(f"--name run {line.replace('--num_steps 8', '--num_steps 4')}", *where) == 0
    shutil.copytree(tmp_path / "two", tmp_path / "one")
    # The learning rate of the first steps is that of the short run.
    line = f"--name run {line} --resume --allow_change num_steps"
    code, output = run_forked(2, "train.py", line, *where)
    assert code == 0, output
    assert train(line, *other) == 0
    assert_close(RunPaths(tmp_path / "two", "run"), RunPaths(tmp_path / "one", "run"))


def test_bad_input_is_said_once(drawn, tmp_path, run_forked):
    where = ("--data_root", drawn, "--output_dir", tmp_path / "out")
    flags = f"--name run {RUN} {SUBSETS} --train_batch_size 6 --gradient_accumulation_steps 2"
    code, output = run_forked(2, "train.py", flags, *where)
    assert code == 2
    (error,) = errors(output)
    assert "2 processes cannot share micro-batches of 3 images evenly" in error
    assert not (tmp_path / "out").exists()


def test_a_bad_image_of_one_process_ends_all_with_one_message(drawn, tmp_path, run_forked):
    """The last of the second batch, which the second process has; the step before it is saved."""
    data = shutil.copytree(drawn, tmp_path / "data")
    split = open_split(get_spec("synthetic"), data, "train")
    order = [position for _, position in sample_order(len(split), 42, 0, 64)]
    path = Path(split.path_of(order[15]))
    content = path.read_bytes()
    # Header and closing marker are whole, and the image's own data are not.
    path.write_bytes(content[: len(content) // 2] + b"\xff\xd8" * 40 + content[-2:])
    where = ("--data_root", data, "--output_dir", tmp_path / "out")
    line = f"{RUN} --tiny_infer_subset synthetic_tiny"
    code, output = run_forked(2, "train.py", f"--name run {line}", *where)
    assert code == 1
    (error,) = errors(output)
    assert path.name in error
    assert "--resume continues from step 1" in error
    assert load_snapshot(RunPaths(tmp_path / "out", "run").last).header.step == 1
    code, output = run_forked(2, "train.py", f"--name skip {line} --skip_bad_images 1", *where)
    assert code == 0, output
    paths = RunPaths(tmp_path / "out", "skip")
    assert read_json(paths.env_stamp)["skipped_images"]["count"] == 1
    assert train(f"--name one {line} --skip_bad_images 1", *where) == 0
    assert_close(paths, RunPaths(tmp_path / "out", "one"))
    line = f"--name again {TINY_EVAL} --checkpoint {paths.checkpoint} --eval_split train"
    code, output = run_forked(2, "eval.py", f"{line} --skip_bad_images 1", *where)
    assert code == 0, output
    metrics = read_json(RunPaths(tmp_path / "out", "again").metrics)
    assert (metrics["samples"], metrics["skipped_images"]) == (len(split) - 1, 1)


def test_other_images_are_found_alike_in_all_processes(tmp_path, run_forked):
    """Images of a heap: trained in two processes, renamed and replaced, evaluated, resumed."""
    root, output = write_folder(tmp_path / "photos", split_folders=False), tmp_path / "out"
    where = ("--data_root", root, "--output_dir", output)
    line = f"--name run --dataset folder {TINY_TRAIN}"
    code, said = run_forked(2, "train.py", line, *where)
    assert code == 0, said
    paths = RunPaths(output, "run")
    kept = load_newest(paths).parts["images"]["eval_ids"]
    first, second, *_ = sorted((root / "rose").iterdir())
    first.rename(first.with_name("another name.jpg"))
    look = f"--name look --num_workers 0 --checkpoint {paths.checkpoint}"
    code, said = run_forked(2, "eval.py", look, *where)
    assert code == 0, said
    metrics = [read_json(each.metrics) for each in (paths, RunPaths(output, "look"))]
    assert [each["samples"] for each in metrics] == [4, 4]
    assert [each["trained_on_images"] for each in metrics] == [0, 0]
    assert said.count("found by content: 4 of 18 images; 0 are in neither") == 1
    (root / "rose" / "another name.jpg").rename(first)
    shutil.copyfile(first, second)
    again = f"{line} --num_steps 6 --resume --allow_change num_steps"
    code, said = run_forked(2, "train.py", again, *where)
    assert code == 2, said
    assert "1 images replaced (first: rose/" in errors(said)[0]
    code, said = run_forked(2, "train.py", f"{again},data", *where)
    assert code == 0, said
    newest = load_newest(paths)
    assert newest.header.step == 6
    assert torch.equal(newest.parts["images"]["eval_ids"], kept)


LONG = f"--name run {RUN} {SUBSETS} --num_steps 5000 --eval_every 5000"


def test_processes_whose_launcher_was_killed_go_on_and_stop(drawn, tmp_path):
    where = ("--data_root", drawn, "--output_dir", tmp_path)
    paths, output = RunPaths(tmp_path, "run"), ""
    with torchrun(2, LONG, *where) as process:
        for text in process.stdout:  # which the processes hold open
            output += text
            if text.startswith("step 3/"):
                process.kill()
            if text == "warning: torchrun is gone; this run goes on without it\n":
                os.kill(read_json(paths.lock)["pid"], signal.SIGTERM)
    assert errors(output) == ["error: terminated"]
    stopped = re.search(r"^stopped by SIGTERM after step (\d+)", output, re.MULTILINE)
    assert load_snapshot(paths.last).header.step == int(stopped[1])
    assert "another process of this run is gone" not in output


def test_a_second_signal_ends_a_wait_for_a_process_that_stands_still(drawn, tmp_path):
    where = ("--data_root", str(drawn), "--output_dir", str(tmp_path / "out"))
    together = Together(2, "train.py", [*LONG.split(), *where], tmp_path / "output.txt")
    still, waiting = together.processes
    while "\nstep 3/" not in together.said():
        still.join(0.02)
        assert still.is_alive(), together.said()
    os.kill(still.pid, signal.SIGSTOP)
    while waiting.is_alive():
        waiting.terminate()  # at first taken for echoes, as of torchrun
        waiting.join(0.1)
    still.kill()  # continued, it does not always notice that the other is gone
    assert together.end() == [-signal.SIGKILL, 143]


@pytest.mark.parametrize("is_told", [False, True])
def test_a_process_notices_that_the_other_is_gone(drawn, tmp_path, is_told):
    """By itself, or told to end as well, as by torchrun."""
    where = ("--data_root", str(drawn), "--output_dir", str(tmp_path / "out"))
    together = Together(2, "train.py", [*LONG.split(), *where], tmp_path / "output.txt")
    killed, left = together.processes[:: -1 if is_told else 1]
    while "\nstep 3/" not in together.said():
        killed.join(0.02)
        assert killed.is_alive(), together.said()
    killed.kill()
    if is_told:
        left.terminate()
    assert sorted(together.end(120)) == [-signal.SIGKILL, 1]  # an exchange waits half an hour
    (error,) = errors(together.said())
    assert "another process of this run is gone" in error
    assert re.search(r"after step \d+, .*--resume continues from step \d+", error)
    # Not `last`: the kill may fall between the two names that a save changes.
    load_newest(RunPaths(tmp_path / "out", "run"))
