"""What a person sees and types at a terminal of any encoding, through the real programs."""

import os
import subprocess
import sys

import pytest
import torch
from helpers import REPO, TINY_TRAIN, evaluate, read_json, rows_of, train
from layouts_own import write_folder

from scripts.check_data import main as check_data
from utils.data_utils import RunPaths
from utils.run.tensor_file import load_archive, save_archive

# No UTF-8 anywhere: Python reads names and arguments as ASCII, too.
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}


def in_ascii(*command: object) -> subprocess.CompletedProcess:
    """A program at a terminal that has ASCII alone, and all of its output."""
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=REPO,
        env={**os.environ, **ASCII},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="ascii",
        check=False,
    )


@pytest.fixture
def photos(tmp_path):
    """Class folders, one of them with an accent."""
    return write_folder(tmp_path / "Gänseblümchen 花", split_folders=False)


class TestAsciiTerminal:
    def test_changes_nothing_of_what_a_run_writes(self, photos, tmp_path):
        where = ("--data_root", photos, "--output_dir", tmp_path / "out")
        done = in_ascii("train.py", "--name", "a", *TINY_TRAIN.split(), "--dataset=folder", *where)
        assert done.returncode == 0, done.stdout
        paths = RunPaths(tmp_path / "out", "a")
        assert "Épine noire" in read_json(paths.labelmap)["classes"]
        assert {row["filepath"] for row in rows_of(paths)} <= set(map(str, photos.rglob("*.JPG")))
        stamp = read_json(paths.env_stamp)
        assert stamp["config"]["data_root"] == str(photos)
        assert str(photos) in stamp["command"]

    def test_shows_every_finding(self, photos, tmp_path):
        damaged = photos / "Épine noire" / "zerstört.jpg"
        damaged.write_bytes(b"\xff\xd8\xff")
        done = in_ascii("scripts/check_data.py", "folder", photos, "--output", tmp_path / "report")
        assert done.returncode == 1
        finding, error = "unreadable: 1", "error: 1 images are missing or damaged"
        lines = done.stdout.splitlines()
        assert r"pine noire/zerst\xf6rt.jpg" in lines[lines.index(finding) + 1]
        assert lines[-1].startswith(error)
        assert r"pine noire/zerst\xf6rt.jpg" in lines[-1]

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("Gänse", r"G\xe4nse does not exist"),
            (b"caf\xe9", r"caf\xe9 is not UTF-8; rename it"),
            ("\x1b[2J\n\u202egnp", r"\x1b[2J\n\u202egnp does not exist"),
        ],
    )
    def test_calls_not_utf8_only_what_is_not(self, tmp_path, name, said):
        root = f"{tmp_path}/{os.fsdecode(name)}"
        done = in_ascii("eval.py", "--name", "a", "--checkpoint", root)
        assert done.returncode == 2
        assert f"/{said}" in done.stdout.replace("error: --checkpoint ", "")
        assert done.stdout.count("\n") == 1

    def test_is_named_where_python_is_not_started_anew(self, photos):
        """As in a notebook, which calls `main` with arguments of its own."""
        main = f"import train; train.main(['--name', 'a', '--data_root', {str(photos)!a}])"
        said = in_ascii("-c", main).stdout
        assert r"/G\xe4nsebl\xfcmchen \u82b1 is read as ascii; set PYTHONUTF8=1" in said
        assert said.count("\n") == 1


EVIL = "\x1b[2J\x1b]0;x\x07\u202egpj.\u2066"
SHOWN = r"\x1b[2J\x1b]0;x\x07\u202egpj.\u2066"


class TestNamesFromOutside:
    """Each is printed by other code; the log and the error line escape what a terminal obeys."""

    @pytest.mark.parametrize("flags", ["--{}", "--recipe={}", "--pretrained={}", "--dataset={}"])
    def test_in_a_command_line_are_escaped(self, refused, flags):
        error = refused(train, f"--name a {TINY_TRAIN}", flags.format(EVIL))
        assert SHOWN in error

    def test_in_weights_and_checkpoints_are_escaped(self, refused, finished_run, drawn, tmp_path):
        where = ("--data_root", drawn)
        torch.save({EVIL: torch.ones(2)}, tmp_path / "w")
        error = refused(train, f"--name a {TINY_TRAIN} --pretrained {tmp_path / 'w'}", *where)
        assert f"it holds {SHOWN}, ..." in error
        payload = load_archive(finished_run.checkpoint)
        config = {**payload["model_config"], EVIL: 1}
        for change in ({"version": EVIL}, {"model_config": config}):
            save_archive(tmp_path / "c", {**payload, **change})
            error = refused(evaluate, f"--name a --checkpoint {tmp_path / 'c'}", *where)
            assert SHOWN in error
            (tmp_path / "c").unlink()


class TestHome:
    """Shells leave `~` as it is in `--flag=~/x` and in quotes."""

    def test_is_where_a_path_says_so(self, photos, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        photos.rename(tmp_path / "photos")
        where = ("--data_root=~/photos", "--output_dir=~/out", "--cache=disk", "--cache_dir=~/c")
        assert train(f"--name a --dataset folder {TINY_TRAIN}", *where) == 0
        stamp = read_json(tmp_path / "out" / "a" / "env_stamp.json")
        assert stamp["config"]["data_root"] == str(tmp_path / "photos")
        assert (tmp_path / "c").is_dir()
        ids = [f"{row['sample_id']}\n" for row in rows_of(RunPaths(tmp_path / "out", "a"))]
        (tmp_path / "ids.txt").write_text("".join(ids), encoding="utf-8")
        monkeypatch.setenv("DATA_ROOT", "~/photos")
        more = ("--tiny_infer_subset=~/ids.txt", "--pretrained=~/out/a/checkpoints/ckpt.bin")
        assert train(f"--name b --dataset folder {TINY_TRAIN}", *where[1:2], *more) == 0
        assert check_data(["folder", "~/photos", "--output", "~/report", "--num_workers", "1"]) == 0
        assert (tmp_path / "report" / "report.json").is_file()

    def test_of_nobody_is_one_line(self, refused, monkeypatch):
        monkeypatch.setenv("DATA_ROOT", "~nobody-here/photos")
        error = refused(train, f"--name a --dataset folder {TINY_TRAIN}")
        assert "$DATA_ROOT: '~nobody-here/photos': there is no user nobody-here" in error
