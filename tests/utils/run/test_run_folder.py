"""utils/run/folder.py: whether a run can start under its name, or be resumed."""

import os
import shutil
from pathlib import Path

import pytest
from helpers import CHOICES
from ml_collections import FrozenConfigDict

from utils.cli.resolve import parse_eval, parse_train
from utils.data_utils import RunPaths
from utils.errors import InputError
from utils.files import write_json
from utils.run.folder import check_run_can_start, keep_previous_run, write_retention


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


@pytest.mark.parametrize(
    "flag",
    ["checkpoint", "pretrained", "resume", "tiny_train_subset", "tiny_infer_subset"],
)
def test_an_input_in_a_folder_that_would_be_moved_is_refused(tmp_path, monkeypatch, flag):
    """However it is spelled, and though only a link to it lies there."""
    own = tmp_path / "out" / "a" / "checkpoints" / "ckpt.bin"
    leave_a_run(tmp_path / "out", "finished")
    (tmp_path / "there").touch()
    (tmp_path / "out" / "tb" / "a").mkdir(parents=True)
    events = tmp_path / "out" / "tb" / "a" / "events.out.tfevents.1"
    for path in (own, events, own.with_name("ab"), tmp_path / "out" / "beside"):
        path.touch()
    (tmp_path / "link").symlink_to(tmp_path / "out" / "a")
    (tmp_path / "file").symlink_to(own)
    own.with_name("leads_out").symlink_to(tmp_path / "there")
    monkeypatch.chdir(own.parent)

    def start(output: Path, path: Path) -> None:
        if flag == "checkpoint":
            start_evaluation(output, path)
        else:
            start_training(output, f"--{flag}", path)

    for output, path in (
        (tmp_path / "out", own),
        (tmp_path / "out", events),
        (tmp_path / "out", tmp_path / "link" / "checkpoints" / "ckpt.bin"),
        (tmp_path / "out", tmp_path / "file"),
        *([] if flag == "resume" else [(tmp_path / "out", own.with_name("leads_out"))]),
        (Path("../.."), Path("ckpt.bin")),
    ):
        said = rf"^--{flag} .* is in .*, where --name a is written; choose another --name or --"
        with pytest.raises(InputError, match=said):
            start(output, path)
    start(tmp_path / "out", Path("../../beside"))
    start(tmp_path / "out", tmp_path / "there")


def test_a_run_that_goes_on_may_read_what_lies_in_its_own_folder(tmp_path):
    paths = leave_a_run(tmp_path / "out", "unfinished")
    flags = (
        "--name",
        "a",
        "--output_dir",
        tmp_path / "out",
        "--resume",
        "--pretrained",
        paths.last,
    )
    check_run_can_start(parse_train([*map(str, flags)], CHOICES), is_resumed=True)


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


def test_a_cache_in_a_folder_that_would_be_moved_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"^--cache_dir .*/a/cache is in .*/a, where --name a is"):
        start_training(tmp_path, "--cache", "disk", "--cache_dir", tmp_path / "a" / "cache")


@pytest.mark.parametrize("root", ["a", "a/photos", "a/photos/../list.csv", "tb/a", "link", "A"])
def test_data_in_the_folder_of_the_run_are_refused(tmp_path, checkpoint, monkeypatch, root):
    """Whether it exists or not: images may be still to be drawn there."""
    output = tmp_path / "out"
    leave_a_run(output, "finished")
    (tmp_path / "out" / "a" / "photos").mkdir()
    (output / "link").symlink_to("a/photos")
    if root == "A":  # as on a Mac, whose names fold
        monkeypatch.setattr("utils.run.inputs.identity", lambda path: path.name.lower() == "a")
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


def leave_a_run_with_events(output: Path, mark: str) -> RunPaths:
    paths = leave_a_run(output, "finished")
    write_retention(paths, (paths.checkpoint, paths.last))
    paths.tensorboard.mkdir(parents=True)
    (paths.tensorboard / f"events.out.tfevents.{mark}").touch()
    return paths


def assert_is_whole(paths: RunPaths, mark: str) -> None:
    assert paths.last.exists()
    assert [path.name for path in paths.tensorboard.iterdir()] == [f"events.out.tfevents.{mark}"]
    note = paths.retention.read_text()
    assert note.startswith(f"run: {paths.name}\n")
    assert f"location: {paths.run}\n" in note


class Killed(BaseException):
    """The end of a process."""


@pytest.mark.parametrize("killed_at", ["tb/a", "a~2/.RETENTION.txt"])
@pytest.mark.parametrize("is_begun_anew", [True, False])
def test_a_move_that_was_killed_is_finished_by_the_next(
    tmp_path, monkeypatch, killed_at, is_begun_anew
):
    one, two, three = (RunPaths(tmp_path, f"a~{number}") for number in (1, 2, 3))
    paths = leave_a_run_with_events(tmp_path, "1")
    keep_previous_run(paths)
    leave_a_run_with_events(tmp_path, "2")

    def killed(move):
        def call(path: Path, target: Path) -> Path:
            if str(path.relative_to(tmp_path)).startswith(killed_at):
                raise Killed
            return move(path, target)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed(Path.rename))
        patch.setattr(Path, "replace", killed(Path.replace))
        with pytest.raises(Killed):
            keep_previous_run(paths)
    assert two.last.exists()
    assert two.tensorboard.exists() is (killed_at != "tb/a")
    if is_begun_anew:  # somebody was quicker: its events are its own
        if killed_at == "tb/a":
            paths.tensorboard.rename(three.tensorboard)  # as older code did
        leave_a_run_with_events(tmp_path, "3")
        keep_previous_run(paths)
        assert_is_whole(three, "3")
    else:
        assert keep_previous_run(paths) is None
        assert {path.name for path in tmp_path.iterdir()} == {"a~1", "a~2", "tb"}
    assert_is_whole(one, "1")
    assert_is_whole(two, "2")
    assert list(tmp_path.glob("tb/a")) == []


def test_events_whose_run_was_thrown_away_join_no_other(tmp_path):
    paths = leave_a_run_with_events(tmp_path, "1")
    keep_previous_run(paths)
    shutil.rmtree(RunPaths(tmp_path, "a~1").tensorboard)
    leave_a_run_with_events(tmp_path, "2")
    shutil.rmtree(paths.run)
    assert keep_previous_run(paths) == RunPaths(tmp_path, "a~2")
    assert not RunPaths(tmp_path, "a~1").tensorboard.exists()


def test_processes_that_do_not_write_look_at_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    monkeypatch.setitem(os.environ, "RANK", "1")
    flags = {"name": "a", "output_dir": str(tmp_path), "resume": "/gone.bin"}
    check_run_can_start(FrozenConfigDict(flags))
