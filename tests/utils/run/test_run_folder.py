"""utils/run/folder.py: whether a run can start under its name, or be resumed."""

import os
from pathlib import Path

import pytest
from helpers import CHOICES
from ml_collections import FrozenConfigDict

from utils.cli.resolve import parse_eval, parse_train
from utils.data_utils import RunPaths
from utils.errors import InputError
from utils.files import write_json
from utils.run.folder import check_run_can_start


def start_training(output: Path, *argv: object) -> None:
    base = ["--name", "a", "--dataset", "synthetic", "--output_dir", output]
    check_run_can_start(parse_train([str(text) for text in [*base, *argv]], CHOICES))


def start_evaluation(output: Path, checkpoint: Path, *argv: object) -> None:
    base = ["--name", "a", "--output_dir", output, "--checkpoint", checkpoint]
    check_run_can_start(parse_eval([str(text) for text in [*base, *argv]], CHOICES))


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A file that nobody opens."""
    (tmp_path / "ckpt.bin").touch()
    return tmp_path / "ckpt.bin"


def leave_a_run(output: Path, status: str, snapshot: str = "last.bin") -> RunPaths:
    """What an earlier run `a` left."""
    paths = RunPaths(output, "a")
    write_json(paths.env_stamp, {"run_id": "1", "status": status})
    paths.last.parent.mkdir(parents=True)
    paths.last.with_name(snapshot).touch()
    return paths


def test_a_name_that_differs_only_in_case_is_refused(tmp_path, checkpoint):
    (tmp_path / "out" / "A").mkdir(parents=True)
    with pytest.raises(InputError, match=r"^--name a differs only in case from the run A in"):
        start_training(tmp_path / "out")
    with pytest.raises(InputError, match=r"^--name a differs only in case from the run A in"):
        start_evaluation(tmp_path / "out", checkpoint)


def test_an_output_folder_that_no_system_takes_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"^--output_dir .*xxx"):
        start_training(tmp_path / ("x" * 300))


def test_a_run_that_is_unfinished_is_neither_restarted_nor_replaced(tmp_path, checkpoint):
    leave_a_run(tmp_path, "unfinished")
    with pytest.raises(InputError, match=r"^--name a is an unfinished run: add --resume"):
        start_training(tmp_path)
    with pytest.raises(InputError, match=r"^--name a is an unfinished training run; choose"):
        start_evaluation(tmp_path, checkpoint)
    start_training(tmp_path, "--resume")


@pytest.mark.parametrize("snapshot", ["last.bin", "last~1.bin"])
def test_a_run_that_finished_can_be_repeated_and_resumed(tmp_path, checkpoint, snapshot):
    leave_a_run(tmp_path, "finished", snapshot)
    start_training(tmp_path)
    start_training(tmp_path, "--resume")
    start_evaluation(tmp_path, checkpoint)


def test_what_is_resumed_must_be_there(tmp_path):
    with pytest.raises(InputError, match=r"^--resume: .*/a has no snapshot to resume from; start"):
        start_training(tmp_path, "--resume")
    with pytest.raises(InputError, match=rf"^--resume {tmp_path} is a folder; name a file$"):
        start_training(tmp_path, "--resume", tmp_path)
    with pytest.raises(InputError, match=r"^--resume .*/gone.bin does not exist; name a file$"):
        start_training(tmp_path, "--resume", tmp_path / "gone.bin")
    (tmp_path / "there.bin").touch()
    start_training(tmp_path, "--resume", tmp_path / "there.bin")


def test_a_checkpoint_of_the_run_itself_is_refused(tmp_path, monkeypatch):
    own = tmp_path / "out" / "a" / "checkpoints" / "ckpt.bin"
    leave_a_run(tmp_path / "out", "finished")
    own.touch()
    (tmp_path / "link").symlink_to(tmp_path / "out" / "a")
    monkeypatch.chdir(own.parent)
    message = "^--name a is the run that --checkpoint .* lies in; choose another name$"
    for output, checkpoint in (
        (tmp_path / "out", own),
        (tmp_path / "out", tmp_path / "link" / "checkpoints" / "ckpt.bin"),
        (Path("../.."), Path("ckpt.bin")),
    ):
        with pytest.raises(InputError, match=message):
            start_evaluation(output, checkpoint)
    other = tmp_path / "out" / "ab" / "ckpt.bin"
    other.parent.mkdir()
    other.touch()
    start_evaluation(tmp_path / "out", other)


def test_processes_that_do_not_write_look_at_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    monkeypatch.setitem(os.environ, "RANK", "1")
    flags = {"name": "a", "output_dir": str(tmp_path), "resume": "/gone.bin"}
    check_run_can_start(FrozenConfigDict(flags))
