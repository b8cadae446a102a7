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
    with pytest.raises(InputError, match=r"^--name a is an unfinished run: `train.py --resume "):
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
    with pytest.raises(InputError, match=rf"^--resume {tmp_path} is a folder without snapshots; "):
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


PHOTO = "rose/1.jpg"


def put_photos(folder: Path) -> None:
    (folder / PHOTO).parent.mkdir(parents=True)
    (folder / PHOTO).write_text("precious")


def put_link(folder: Path) -> None:
    target = folder.parent.parent / "elsewhere"
    write_json(target / "env_stamp.json", {"run_id": "1", "status": "finished"})
    folder.parent.mkdir(exist_ok=True)
    folder.symlink_to(target)


def put_file(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("precious")


@pytest.mark.parametrize(
    ("place", "put", "said"),
    [
        ("a", put_photos, "a holds rose and is not the folder of a run; it stays as it is: choose"),
        ("a", put_link, "a is a symbolic link, which is never moved; it stays"),
        ("a", lambda path: path.symlink_to("nowhere"), "a is a link that leads nowhere"),
        ("a", put_file, "a is a file, not a folder"),
        ("a", os.mkfifo, "a is a pipe, not a folder"),
        ("tb/a", put_photos, "tb/a holds rose, which TensorBoard did not write; it stays"),
        ("tb/a", put_link, "tb/a holds env_stamp.json, which TensorBoard did not write"),
        ("tb/a", put_file, "tb/a is a file, not a folder"),
        ("tb", put_file, "tb is a file, not a folder"),
        ("tb", lambda path: put_file(path / "1.jpg"), r"tb holds images \(1.jpg\); choose another"),
        (".a.lock", os.mkfifo, "[.]a.lock is a pipe, not the lock of a run; move it away"),
        (".a.lock", put_link, "[.]a.lock is a symbolic link, not the lock of a run"),
        (".a.lock", lambda path: path.write_bytes(bytes(5000)), "lock is a file of over 4096"),
    ],
)
def test_what_is_not_ours_stays_as_it_is(tmp_path, checkpoint, place, put, said):
    output = tmp_path / "out"
    output.mkdir()
    if "/" in place:
        (output / place).parent.mkdir()
    put(output / place)
    for start in (
        lambda: start_training(output),
        lambda: start_evaluation(output, checkpoint),
        lambda: start_training(output, "--resume", checkpoint),
    ):
        with pytest.raises(InputError, match=said):
            start()


def test_a_run_that_is_resumed_may_lie_behind_a_link_but_not_beside_photos(tmp_path):
    leave_a_run(tmp_path / "big", "unfinished")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").symlink_to(tmp_path / "big" / "a")
    start_training(tmp_path / "out", "--resume")
    put_photos(tmp_path / "out" / "tb" / "a")
    with pytest.raises(InputError, match="tb/a holds rose, which TensorBoard did not write"):
        start_training(tmp_path / "out", "--resume")


@pytest.mark.parametrize("root", ["a", "a/photos", "a/photos/../list.csv", "tb/a", "link", "A"])
def test_data_in_the_folder_of_the_run_are_refused(tmp_path, checkpoint, monkeypatch, root):
    """Whether it exists or not: images may be still to be drawn there."""
    output = tmp_path / "out"
    leave_a_run(output, "finished")
    (tmp_path / "out" / "a" / "photos").mkdir()
    (output / "link").symlink_to("a/photos")
    if root == "A":  # as on a Mac, whose names fold
        monkeypatch.setattr("utils.run.folder.identity", lambda path: path.name.lower() == "a")
        monkeypatch.setattr(Path, "exists", lambda path: True)
        monkeypatch.setattr("utils.run.folder.check_run_name", lambda paths: None)
    for start in (start_training, lambda *more: start_evaluation(output, checkpoint, *more[1:])):
        with pytest.raises(InputError, match=rf"^--data_root .*{root} is in .*, where --name a is"):
            start(output, "--data_root", output / root)
    monkeypatch.setenv("DATA_ROOT", str(output / root))
    start_training(output)  # --dataset synthetic draws elsewhere
    with pytest.raises(InputError, match=r"^\$DATA_ROOT .* is in .*, where --name a is written"):
        start_training(output, "--dataset", "folder")


def test_a_class_or_split_of_the_images_is_not_an_output_folder(tmp_path, checkpoint):
    files = (
        "train/rose/1.jpg",
        "train/rose/more/2.PNG",
        "train/fern/3.jpg",
        "val/Acer/rubrum/4.jpg",
    )
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    data = ("--dataset", "folder", "--data_root", tmp_path)
    for output in ("train", "train/rose", "train/fern", "val"):
        with pytest.raises(InputError, match=r"^--output_dir .* is a folder of the images in --da"):
            start_training(tmp_path / output, *data)
    put_file(tmp_path / "list.csv")
    for root in (tmp_path, tmp_path / "list.csv"):  # in an evaluation the checkpoint says of what
        with pytest.raises(InputError, match=r"^--output_dir .* is a folder of the images in --da"):
            start_training(tmp_path / "train" / "rose", "--dataset", "csv", "--data_root", root)
        with pytest.raises(InputError, match=r"^--output_dir .* is a folder of the images in --da"):
            start_evaluation(tmp_path / "train" / "rose", checkpoint, "--data_root", root)
    (tmp_path / "notes").mkdir()
    for output in (".", "train/new", "notes"):
        start_training(tmp_path / output, *data)
    leave_a_run(tmp_path / "old", "finished")
    put_file(tmp_path / "old" / "drawn.png")
    (tmp_path / "old" / "tb").mkdir()
    start_training(tmp_path / "old", *data)  # it is passed over


@pytest.mark.parametrize("root", [".", "..", "ab", "../photos"])
def test_data_above_and_beside_it_are_not(tmp_path, root):
    leave_a_run(tmp_path / "out", "finished")
    start_training(tmp_path / "out", "--data_root", tmp_path / "out" / root)


def test_processes_that_do_not_write_look_at_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    monkeypatch.setitem(os.environ, "RANK", "1")
    flags = {"name": "a", "output_dir": str(tmp_path), "resume": "/gone.bin"}
    check_run_can_start(FrozenConfigDict(flags))
