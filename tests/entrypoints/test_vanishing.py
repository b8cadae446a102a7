"""Take away files of a run at work: it goes on, or one line says what it needs."""

import shutil
from pathlib import Path

import pytest
from helpers import SUBSETS, evaluate, files_below, read_json, train
from interruptions import LONG, assert_same_end, when_logged

from utils.data_utils import RunPaths
from utils.run.snapshot import load_snapshot


@pytest.fixture(scope="module")
def whole(drawn, tmp_path_factory) -> RunPaths:
    """The run that nothing disturbed."""
    output = tmp_path_factory.mktemp("whole")
    assert train(f"--name whole {LONG}", "--data_root", drawn, "--output_dir", output) == 0
    return RunPaths(output, "whole")


@pytest.fixture
def paths(tmp_path) -> RunPaths:
    return RunPaths(tmp_path / "out", "run")


@pytest.fixture
def start(drawn, paths):
    """Starts or resumes the run; returns the exit code."""

    def call(*more) -> int:
        where = ("--data_root", drawn, "--output_dir", paths.output_dir)
        return train(f"--name run {LONG}", *where, *more)

    return call


def remove(path: Path) -> None:
    """At once, as far as those who write in it can tell."""
    gone = path.rename(path.parent / "gone")
    if gone.is_dir():
        shutil.rmtree(gone)
    else:
        gone.unlink()


# --- What a run writes ----------------------------------------------------------------------------

GONE = {
    "last.bin": lambda paths: [paths.last],
    "all snapshots": lambda paths: [*paths.last.parent.glob("last*")],
    "checkpoints": lambda paths: [paths.last.parent],
    "stamp": lambda paths: [paths.env_stamp],
    "labelmap and note": lambda paths: [paths.labelmap, paths.retention],
    "run": lambda paths: [paths.run],
    "events": lambda paths: [paths.tensorboard],
    "tb": lambda paths: [paths.tensorboard.parent],
    "output": lambda paths: [paths.output_dir],
}


@pytest.mark.parametrize("gone", GONE)
def test_a_run_goes_on_without_what_somebody_removed(start, whole, paths, gone, capsys):
    """Before the first evaluation: what that leaves is not there yet."""
    with when_logged("^step 3/", lambda: [remove(path) for path in GONE[gone](paths)]):
        assert start() == 0
    assert_same_end(paths, whole)
    assert files_below(paths.run) == files_below(whole.run)
    assert paths.labelmap.read_bytes() == whole.labelmap.read_bytes()
    said = capsys.readouterr()
    assert said.err == ""
    for path in (paths.labelmap, paths.retention):  # the stamp is written again at evaluations
        warning = f"warning: {path} was removed; it is written again"
        is_gone = gone in ("run", "output") or path in GONE[gone](paths)
        assert said.out.count(warning) == is_gone
    is_gone = gone in ("events", "tb", "output")
    assert said.out.count("was removed; scalars go on in a new file") == is_gone


@pytest.mark.parametrize("place", ["run", "tensorboard"])
def test_a_folder_that_became_a_file_is_one_line(start, paths, place, capsys):
    folder = getattr(paths, place)

    def replace() -> None:
        remove(folder)
        folder.write_text("somebody else's")

    with when_logged("^step 3/", replace):
        assert start() == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(folder) in error
    assert folder.read_text() == "somebody else's"


def test_an_evaluation_goes_on_without_its_folder(finished_run, drawn, tmp_path):
    paths = RunPaths(tmp_path / "out", "again")
    flags = f"--device cpu --num_workers 0 --checkpoint {finished_run.checkpoint}"
    where = ("--data_root", drawn, "--output_dir", paths.output_dir)
    with when_logged("^eval step ", lambda: remove(paths.output_dir)):
        assert evaluate(f"--name again {flags}", *where) == 0
    assert read_json(paths.env_stamp)["status"] == "finished"
    left = files_below(paths.run)
    assert evaluate(f"--name twice {flags}", *where) == 0
    assert files_below(RunPaths(paths.output_dir, "twice").run) == left


# --- What a run reads -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "flags"),
    [
        ("^step 3/", ""),  # in training
        ("^step 3/", "--num_workers 2"),
        ("^step 4/", "--log_every 1"),  # in the evaluation that follows
        ("^step 3/", "--skip_bad_images 1"),
    ],
)
def test_a_run_without_its_images_saves_its_state(
    whole, drawn, paths, tmp_path, capsys, pattern, flags
):
    """It goes on from there once they are back, though none of its snapshots was left."""
    data = shutil.copytree(drawn, tmp_path / "data")
    line = f"--name run {LONG} --save_every 100 {flags}"
    where = ("--data_root", data, "--output_dir", paths.output_dir)

    def lose() -> None:
        (data / "jpg").rename(data / "gone")
        remove(paths.last.parent)

    with when_logged(pattern, lose):
        assert train(line, *where) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{data}/jpg/image_" in error
    assert "No such file or directory" in error
    step = load_snapshot(paths.last).header.step
    assert f"--resume continues from step {step}\n" in error
    assert step >= int(pattern[6])
    (data / "gone").rename(data / "jpg")
    assert train(line, *where, "--resume") == 0
    left_out = load_snapshot(paths.last).parts["bad_images"]["ids"]
    assert len(left_out) == ("skip" in flags)  # not the one that was too many
    if not flags:
        assert_same_end(paths, whole)


def test_images_that_we_drew_are_drawn_again(whole, paths, capsys):
    line = f"--name run {LONG} --output_dir {paths.output_dir}"
    with when_logged("^step 3/", lambda: remove(paths.output_dir)):
        assert train(line) == 0
    assert capsys.readouterr().err == ""
    assert_same_end(paths, whole)


# --- What would be moved --------------------------------------------------------------------------


def test_images_of_a_list_in_a_folder_that_would_be_moved_are_refused(start, paths, drawn, capsys):
    output = paths.output_dir
    assert start("--num_steps", 1) == 0
    shutil.copytree(drawn / "jpg", paths.run / "crops")
    (output / "there").symlink_to("run/crops")
    capsys.readouterr()
    names = sorted(path.name for path in (drawn / "jpg").iterdir())[:20]
    flags = f"{LONG.replace(SUBSETS, '').replace('synthetic', 'csv')} --num_steps 1"
    flags += f" --data_root {output}/list.csv --output_dir {output}"
    for folder in ("run/crops", "there"):
        rows = [
            f"{folder}/{name},{i % 2},{'train' if i < 12 else 'val'}"
            for i, name in enumerate(names)
        ]
        (output / "list.csv").write_text("\n".join(["path,label,split", *rows]))
        before = files_below(output)
        assert train(f"--name run {flags}") == 2
        error = capsys.readouterr().err
        assert (
            f"the folder of images {output}/{folder} is in {paths.run}, where --name run" in error
        )
        assert error.count("\n") == 1
        assert files_below(output) == before
    assert train(f"--name other {flags}") == 0


def test_weights_of_the_run_itself_are_refused_and_a_run_outlives_those_of_another(
    start, paths, drawn, capsys
):
    assert start("--num_steps", 1) == 0
    weights, output = paths.checkpoint, paths.output_dir
    flags = f"{LONG} --num_steps 2 --pretrained {weights} --data_root {drawn} --output_dir {output}"
    assert train(f"--name run {flags}") == 2
    assert f"--pretrained {weights} is in {paths.run}, where --name" in capsys.readouterr().err
    assert train(f"--name other {flags}") == 0
    assert start("--num_steps", 1, "--seed", 3) == 0  # moves what `other` began with
    capsys.readouterr()
    assert train(f"--name other {flags} --resume") == 2
    assert f"{weights} (the run's: {weights}, as it was then); leave" in capsys.readouterr().err
    other = RunPaths(output, "other")
    assert train(f"--resume {other.run} --num_steps 4 --allow_change num_steps") == 0
    assert train(f"--resume {other.run} --pretrained {output / 'run~1/checkpoints/ckpt.bin'}") == 0


def test_a_snapshot_in_its_own_folder_goes_on_though_the_stamp_is_gone(start, paths):
    assert start() == 0
    remove(paths.env_stamp)
    assert start("--resume", paths.older(1)) == 0
    assert not RunPaths(paths.output_dir, "run~1").run.exists()
