"""Runs whose processes are killed while they write, and disks that know less than others."""

import errno
import fcntl
import importlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from forked import CONTEXT
from helpers import SUBSETS, TINY_EVAL, TINY_TRAIN, evaluate, read_json, train
from layouts_own import write_csv, write_folder
from layouts_web import write_cifar10

from scripts.check_data import main as check_data
from utils.data.readers import synthetic
from utils.data.readers.cifar import CIFAR10
from utils.data_utils import RunPaths

READERS = "utils.data.readers."
FLAGS = f"--name demo --dataset synthetic {TINY_TRAIN} {SUBSETS} --num_steps 6 --save_every 1"


def _stand_still(place: str, pipe: object, call: str, argument: object) -> None:
    """Call a function, and stand still whenever another one has done its work."""
    module, _, name = place.rpartition(":")
    module = importlib.import_module(module)
    really = getattr(module, name)

    def standing(*args: object) -> object:
        really(*args)
        pipe.send("half")
        pipe.recv()

    setattr(module, name, standing)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123
    torch.set_num_threads(1)
    module, _, name = call.rpartition(":")
    function = importlib.import_module(module)
    for part in name.split("."):
        function = getattr(function, part)
    function(argument)


@contextmanager
def standing_still(place: str, call: str, argument: object) -> Iterator[tuple]:
    """A process that is in the middle of writing, and the pipe by which it goes on."""
    here, there = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_stand_still, args=(place, there, call, argument))
    process.start()
    there.close()
    assert here.recv() == "half"
    try:
        yield process, here
    finally:
        process.kill()
        process.join()


def temporaries(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*.tmp")]


class TestKilledWhileWriting:
    def test_a_run_goes_on_at_once_and_nothing_is_left(self, drawn, tmp_path, capsys):
        where = ("--data_root", str(drawn), "--output_dir", str(tmp_path))
        paths = RunPaths(tmp_path, "demo")
        argv = [*FLAGS.split(), *where]
        with standing_still("utils.run.snapshot:write_archive", "train:main", argv) as (run, pipe):
            pipe.send("go on")
            assert pipe.recv() == "half"  # the second time: a snapshot is there
            paths.lock.unlink()
            for flags in (FLAGS, f"{FLAGS} --resume", f"{FLAGS} --resume --take_over"):
                assert train(flags, *where) == 2
                said = capsys.readouterr().err
                assert f"--name demo is being written by process {run.pid} on" in said
            (half,) = temporaries(tmp_path)
            pipe.send("go on")
            assert pipe.recv() == "half"
            assert read_json(paths.lock)["pid"] == run.pid  # made again
        assert temporaries(tmp_path) == [half]
        assert train(f"{FLAGS} --resume", *where) == 0
        assert f"took over the run from process {run.pid}, which is dead" in capsys.readouterr().out
        assert temporaries(tmp_path) == []
        assert read_json(paths.env_stamp)["writer"] == "none"
        assert not paths.lock.exists()

    def test_what_moves_aside_holds_no_half_snapshot(self, drawn, tmp_path):
        """A run that was killed in its first save has none that could be resumed."""
        where = ("--data_root", str(drawn), "--output_dir", str(tmp_path))
        argv = [*FLAGS.split(), *where]
        with standing_still("utils.run.snapshot:write_archive", "train:main", argv):
            pass
        assert len(temporaries(tmp_path)) == 1
        assert train(f"{FLAGS} --num_steps 1", *where) == 0
        assert (tmp_path / "demo~1" / "env_stamp.json").exists()
        assert temporaries(tmp_path) == []

    @pytest.mark.parametrize("kind", ["drawn", "unpacked"])
    def test_a_folder_of_images_is_made_anew(self, tmp_path, kind):
        if kind == "drawn":
            place, call, make = "synthetic:_draw_into", "synthetic:draw", synthetic.draw
            root = target = tmp_path / ".synthetic"
        else:
            place, call, make = "cifar:_unpack", "cifar:CIFAR10.prepare", CIFAR10.prepare
            root = write_cifar10(tmp_path / "cifar")
            target = root / "png"
        users = target.with_name(f"{target.name}.7.tmp")
        users.mkdir()
        with standing_still(READERS + place, READERS + call, root):
            assert len(temporaries(tmp_path)) == 2
            make(root)  # at the same time: it does not wait, and leaves the other alone
            assert len(temporaries(tmp_path)) == 2
            shutil.rmtree(target)
        make(root)
        assert temporaries(tmp_path) == [users.name]
        assert sum(path.suffix in (".png", ".jpg") for path in target.rglob("*")) > 20


def refused_by(code: int):
    def call(*args: object) -> None:
        raise OSError(code, os.strerror(code))

    return call


class TestOtherFileSystems:
    def test_without_locks_and_syncs_a_run_trains_and_resumes(
        self, drawn, tmp_path, monkeypatch, capsys
    ):
        monkeypatch.setattr(os, "fsync", refused_by(errno.EINVAL))
        monkeypatch.setattr(fcntl, "lockf", refused_by(errno.ENOLCK))
        monkeypatch.setattr(fcntl, "flock", refused_by(errno.ENOTSUP))
        where = ("--data_root", drawn, "--output_dir", tmp_path)
        for flags in (f"{FLAGS} --num_steps 2", f"{FLAGS} --num_steps 4 --resume"):
            more = " --allow_change num_steps" if "resume" in flags else ""
            assert train(flags + more, *where) == 0
            said = capsys.readouterr()
            assert (said.out + said.err).count("has no locks") == 1
        assert temporaries(tmp_path) == []

    def test_that_give_all_files_one_number_are_read_whole(self, tmp_path, monkeypatch, capsys):
        photos = write_folder(tmp_path / "photos")
        count = sum(path.is_file() for path in photos.rglob("*"))
        for name, target in (("back", "../.."), ("self", ".")):
            (next((photos / "train").iterdir()) / name).symlink_to(target)
        really = os.stat

        def one_number(*args: object, **kwargs: object) -> os.stat_result:
            state = really(*args, **kwargs)
            named = {name: getattr(state, name) for name in dir(state) if name.startswith("st_")}
            return os.stat_result((state[0], 0, *state[2:10]), named)

        monkeypatch.setattr(os, "stat", one_number)
        report = tmp_path / "report"
        flags = ("--output", str(report), "--num_workers", "1")
        assert check_data(["folder", str(photos), *flags]) == 0
        found = json.loads((report / "report.json").read_text("utf-8"))
        assert sum(split["samples"] for split in found["splits"].values()) == count
        listed = write_csv(tmp_path / "csv")
        lines = listed.read_text("utf-8").splitlines()
        absolute = [lines[0], *(f"{listed.parent}/{line}" for line in lines[1:])]
        listed.write_text("\n".join(absolute), "utf-8")
        line = f"--name a --dataset csv {TINY_TRAIN} --output_dir {tmp_path}/photos.out"
        assert train(line, "--data_root", listed) == 0

    def test_that_do_not_replace_files_are_named_at_the_start(
        self, drawn, tmp_path, monkeypatch, capsys
    ):
        really = os.replace

        def replace(source: object, target: object) -> None:
            if os.path.lexists(target):
                raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
            really(source, target)

        monkeypatch.setattr(os, "replace", replace)
        assert train(FLAGS, "--data_root", drawn, "--output_dir", tmp_path) == 1
        said = capsys.readouterr().err
        assert "this disk does not replace files; use a folder on another disk" in said
        assert f"{tmp_path}/demo/env_stamp.json" in said
        assert "after step 0" in said
        assert said.count("\n") == 1

    def test_a_run_of_another_host_is_taken_over_by_a_flag(
        self, drawn, tmp_path, finished_run, capsys
    ):
        paths = RunPaths(tmp_path, "demo")
        elsewhere = {"pid": 7, "host": "gone.example", "machine": 1, "began": "5"}
        where = ("--data_root", drawn, "--output_dir", tmp_path)
        given = f"--name demo --checkpoint {finished_run.checkpoint} {TINY_EVAL}"
        for main, line in ((train, FLAGS), (evaluate, f"{given} --dataset synthetic")):
            paths.lock.write_text(json.dumps(elsewhere), "utf-8")
            before = sorted(tmp_path.rglob("*"))
            assert main(line, *where) == 2
            said = capsys.readouterr().err
            assert "process 7 on gone.example writes this run; if that process has ended" in said
            assert "--take_over" in said
            assert sorted(tmp_path.rglob("*")) == before
            assert main(f"{line} --take_over", *where) == 0
            assert "took over the run from process 7, on gone.exam" in capsys.readouterr().out
            assert not paths.lock.exists()
