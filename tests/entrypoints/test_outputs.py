"""Where a run is written: nothing of the user's is moved, and our traces say that they are ours."""

import os
import shutil
import socket
from pathlib import Path

import pytest
from helpers import SUBSETS, TINY_EVAL, TINY_TRAIN, evaluate, files_below, train
from layouts_own import write_folder

from utils.ownership import MARKER, is_ours

TRAIN = f"--name demo --dataset folder {TINY_TRAIN}"


@pytest.fixture
def photos(tmp_path) -> Path:
    return write_folder(tmp_path / "photos", split_folders=False)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestWhatStandsThere:
    """Every kind of it is tested in tests/utils/run/test_run_folder.py."""

    def test_photos_of_the_name_of_the_run_stay(self, refused, tmp_path, finished_run):
        own = write_folder(tmp_path / "output" / "flowers", split_folders=False)
        before = contents(tmp_path)
        for main, flags in (
            (train, f"--name flowers --dataset folder {TINY_TRAIN}"),
            (train, f"--name flowers --dataset folder {TINY_TRAIN} --resume"),
            (evaluate, f"--name flowers {TINY_EVAL} --checkpoint {finished_run.checkpoint}"),
        ):
            for root in (own, finished_run.output_dir / "gone"):
                error = refused(main, flags, "--data_root", root)
                assert "/flowers holds oak_leaf and is not the folder of a run; it stays" in error
        assert contents(tmp_path) == before

    def test_a_folder_of_a_clone_stays(self, drawn, tmp_path, monkeypatch, capsys):
        (tmp_path / "tests" / "utils").mkdir(parents=True)
        (tmp_path / "tests" / "conftest.py").write_text("precious")
        monkeypatch.chdir(tmp_path)
        flags = f"--name tests --dataset synthetic {TINY_TRAIN} {SUBSETS} --output_dir ."
        assert train(flags, "--data_root", drawn) == 2
        assert "tests holds conftest.py and is not the folder" in capsys.readouterr().err
        assert {path.name for path in files_below(tmp_path)} == {"tests", "utils", "conftest.py"}

    def test_data_inside_a_run_are_not_moved_with_it(self, refused, finished_run, drawn, tmp_path):
        run = shutil.copytree(finished_run.run, tmp_path / "output" / "run")
        shutil.copytree(drawn, run / "data")
        flags = f"--name run --dataset synthetic {TINY_TRAIN} {SUBSETS}"
        for more in ("", "--resume"):
            error = refused(train, f"{flags} {more}", "--data_root", run / "data")
            assert "/run/data is in " in error


class TestOurTraces:
    def test_in_a_folder_of_photos_are_marked_and_the_photos_are_not(self, photos, monkeypatch):
        """`cd photos; train.py --data_root .`"""
        before = contents(photos)
        monkeypatch.chdir(photos)
        assert train(f"{TRAIN} --data_root .") == 0
        assert is_ours(Path("output"))
        assert not any(map(is_ours, (photos, *(path.parent for path in before))))
        assert {path: path.read_bytes() for path in before} == before

    def test_beside_the_photos_say_themselves_what_they_are(self, photos, monkeypatch):
        """`cd photos; train.py --data_root . --output_dir .`: that folder is never marked."""
        monkeypatch.chdir(photos)
        assert train(f"{TRAIN} --data_root . --output_dir .") == 0
        ours = {path.name for path in photos.iterdir() if is_ours(path)}
        assert ours == {"demo", "tb"}
        assert not (photos / MARKER).exists()
        assert not is_ours(photos / "rose")

    @pytest.mark.parametrize(
        "flags", ["", "--cache disk --preset transfg", "--cache disk --cache_dir {}/deep/cache"]
    )
    def test_of_a_new_output_folder_are_all_marked(self, drawn, tmp_path, flags):
        output = tmp_path / "new" / "output"
        line = f"--name a --dataset synthetic {TINY_TRAIN} {SUBSETS} {flags.format(tmp_path)}"
        assert train(line, "--output_dir", output) == 0  # draws there first
        assert all(map(is_ours, (output, output / ".synthetic")))
        if "cache_dir" in flags:
            made = (tmp_path / "deep", tmp_path / "deep" / "cache")
            assert all(map(is_ours, made))
            assert all(map(is_ours, filter(Path.is_dir, made[1].iterdir())))
        assert not is_ours(tmp_path)


def make_pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    path.unlink(missing_ok=True)
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path has at most 107 bytes
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path.name)
    os.chdir(here)


class TestWhatIsNoFile:
    """It would be waited for; what opens files refuses it, whatever the flag."""

    @pytest.mark.parametrize("make", [make_pipe, make_socket])
    @pytest.mark.parametrize(
        ("flags", "said"),
        [
            ("--pretrained {}", "--pretrained {} is a {kind}; name a file"),
            ("--resume {}", "--resume {} is a {kind}; name a file"),
            ("--tiny_train_subset {}", "{} is neither folder_tiny nor a file"),
            ("--dataset csv --data_root {}", "{} cannot be read (it is a {kind}, not a file)"),
            ("--dataset flower102", "setid.mat cannot be read (it is a {kind}, not a file)"),
        ],
    )
    def test_in_training(self, refused, drawn, photos, tmp_path, make, flags, said):
        odd, root = tmp_path / "odd", photos
        if "flower102" in flags:
            root = shutil.copytree(drawn, tmp_path / "flowers")
            odd = root / "setid.mat"
        make(odd)
        kind = make.__name__.removeprefix("make_")
        error = refused(train, f"{TRAIN} --data_root {root} {flags.format(odd)}")
        assert said.format(odd, kind=kind) in error

    @pytest.mark.parametrize("name", ["ckpt.bin", "env_stamp.json", "checkpoints/last.bin"])
    def test_in_a_run(self, refused, drawn, finished_run, tmp_path, name):
        run = shutil.copytree(finished_run.run, tmp_path / "output" / "run")
        path = tmp_path / name if name == "ckpt.bin" else run / name
        make_pipe(path)
        if name == "ckpt.bin":
            error = refused(
                evaluate, f"--name a {TINY_EVAL} --checkpoint {path}", "--data_root", drawn
            )
            assert f"--checkpoint {path} is a pipe; name a file" in error
            return
        flags = f"--name run --dataset synthetic {TINY_TRAIN} {SUBSETS}"
        if name == "env_stamp.json":
            shutil.rmtree(run / "checkpoints")
            error = refused(train, flags, "--data_root", drawn)
            assert " and is not the folder of a run; it stays" in error
            return
        for snapshot in run.glob("checkpoints/last~*.bin"):
            snapshot.unlink()
        error = refused(train, f"{flags} --resume", "--data_root", drawn)
        assert f"{path} cannot be read (it is a pipe, not a file)" in error
