"""Run the soak tests in short versions, and check that they notice what they look for."""

import builtins
import errno
import functools
import io
import os
import random
import shutil

import pytest
import torch

from scripts.dev import soak
from scripts.dev.soak_tests import artifacts, damage, disk, kills, limits, runs, watch
from scripts.dev.soak_tests.full_disk import FullDisk
from utils.data_utils import RunPaths
from utils.errors import RunError
from utils.run.tensor_file import save_archive


@pytest.fixture
def copied(finished_run, tmp_path):
    """A finished run that a test may damage; it averaged no weights."""
    shutil.copytree(finished_run.run, tmp_path / "run")
    return RunPaths(tmp_path, "run")


class TestKills:
    def test_a_killed_run_ends_with_the_results_of_an_undisturbed_one(
        self, drawn, capsys, monkeypatch
    ):
        monkeypatch.setattr(kills, "STEPS_A_KILL", 10)
        monkeypatch.setattr(kills, "MAX_EXTRA_STEPS", 0)  # killed as soon as step 3 is reported
        assert soak.main(["kills", "--kills", "1", "--data_root", str(drawn)]) == 0
        assert "kills: nothing was lost" in capsys.readouterr().out

    def test_a_run_that_ends_by_itself_is_said(self, tmp_path):
        with pytest.raises(RunError, match="ended with code 0 before it was killed"):
            kills.kill_at_random(["--help"], tmp_path / "out", random.Random(0), 60.0)


class TestLimits:
    def test_few_open_files_change_nothing(self, drawn, capsys, monkeypatch, tmp_path):
        monkeypatch.setattr(limits, "LARGE_BATCHES", ["--num_steps", "2", "--num_workers", "2"])
        few = limits.limits(tmp_path)["96 open files"]
        monkeypatch.setattr(limits, "limits", lambda _: {"few files": few})
        assert soak.main(["limits", "--data_root", str(drawn)]) == 0
        assert "the same results" in capsys.readouterr().out

    def test_what_the_machine_does_not_allow_is_said(self, drawn, capsys, monkeypatch):
        monkeypatch.setattr(limits, "LARGE_BATCHES", ["--num_steps", "1", "--num_workers", "0"])
        refused = functools.partial(os._exit, limits.REFUSED)
        monkeypatch.setattr(limits, "limits", lambda _: {"no room": (refused, True)})
        assert soak.main(["limits", "--data_root", str(drawn)]) == 0
        assert "skipped" in capsys.readouterr().out


class TestWatch:
    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("metrics", "cannot be parsed"),
            ("predictions", "cannot be parsed"),
            ("checkpoint", "is not whole"),
        ],
    )
    def test_half_a_file_is_noticed(self, copied, name, message):
        path = getattr(copied, name)
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(RunError, match=f"{path.name} {message}"), watch.watched(copied):
            pass

    def test_lost_snapshots_are_noticed_and_one_whole_snapshot_is_enough(self, copied):
        seen = watch.Watch(copied)
        shutil.copy(copied.last, copied.older(1))
        copied.last.write_bytes(b"half")
        seen.look()
        seen.check()
        copied.older(1).write_bytes(b"")
        seen.look()
        with pytest.raises(RunError, match="no longer has a whole snapshot"):
            seen.check()


class TestCompare:
    def test_every_other_bit_is_named(self):
        left = {"model": {"weight": torch.tensor([0.0])}, "eval/loss": [(2, 0.5)], "x": b""}
        runs.check_same(left, dict(left), "here")
        other = {**left, "model": {"weight": torch.tensor([1e-45])}, "eval/loss": []}
        del other["x"]
        with pytest.raises(RunError, match=r"^here: differs .* in model, eval/loss, x$"):
            runs.check_same(left, other, "here")
        with pytest.raises(RunError, match=r"in y$"):
            runs.check_same(left, {**left, "y": 1}, "here")

    def test_missing_and_unfinished_files_are_named(self, copied):
        with pytest.raises(RunError, match=r"ckpt_ema\.bin"):
            runs.results_of(copied)
        (copied.last.parent / ".last.bin.1.tmp").touch()
        with pytest.raises(RunError, match=r"\.last\.bin\.1\.tmp was left behind"):
            runs.results_of(copied)


class TestDamage:
    def test_damage_is_noticed_and_the_snapshot_before_is_used(self, drawn, capsys):
        flags = ["damage", "--ways", "12", "--data_root", str(drawn)]
        assert soak.main(flags) == 0
        assert "page zeroed   4" in capsys.readouterr().out

    def test_damage_that_is_not_noticed_is_said(self, copied):
        first = torch.load(copied.last, weights_only=True)
        save_archive(copied.older(1), {**first, "run_id": "before"})
        with pytest.raises(RunError, match=r"way 1: not noticed, .*last\.bin was loaded"):
            damage.check_is_noticed(copied, "way 1")


class TestFiles:
    def test_every_file_and_folder_is_damaged_in_every_way(self, finished_run, tmp_path):
        paths, other = (RunPaths(tmp_path / name, "run") for name in ("output", "other"))
        for each in (paths, other):
            shutil.copytree(finished_run.output_dir, each.output_dir)
            each.lock.write_text("{}")
        cases = artifacts.cases_of(paths.output_dir, other.output_dir)
        files = [path for path in paths.output_dir.rglob("*") if path.is_file()]
        expected = {path.relative_to(paths.output_dir).as_posix() for path in files} - {".fine_vit"}
        folders = {"run/checkpoints", "run/fiftyone", "tb/run"}
        assert {name for name, *_ in cases} == expected | folders
        assert len(cases) == 6 * len(expected) + 3 * len(folders)
        for name, what, way, of_other in cases:
            path = paths.output_dir / name
            aside = path.rename(tmp_path / "aside")
            (shutil.copytree if aside.is_dir() else shutil.copyfile)(aside, path)
            way(path, of_other, random.Random(0))
            assert path.exists() != (what == "deleted")
            artifacts.remove(path) if path.exists() else None
            aside.rename(path)

    @pytest.mark.parametrize(
        ("code", "out", "err", "message"),
        [
            (0, [], [], "differs from an undisturbed run in a, env_stamp.json and says nothing"),
            (0, ["warning: of something else"], [], "says nothing"),
            (1, [], ["error: of something else"], "code 1: error: of something else"),
            (-9, [], [], "code -9: nothing"),
            (0, ["warning: output/x/y is gone"], [], None),
            (2, [], ["error: output/x/y is gone"], None),
        ],
    )
    def test_silence_is_a_broken_promise(self, tmp_path, monkeypatch, code, out, err, message):
        monkeypatch.setattr(artifacts, "everything_of", lambda paths: {"a": 1})
        monkeypatch.setattr(artifacts, "read_stamp", lambda paths: {"run_id": "", "sessions": []})
        run = runs.Training.__new__(runs.Training)
        run.output = tmp_path / "run"
        run.output.with_suffix(".out").write_text("\n".join(out))
        run.output.with_suffix(".err").write_text("\n".join(err))
        run.code = lambda: code
        told = (run, "x/y", RunPaths(tmp_path, "run"), {"a": 2}, {"run_id": "1", "sessions": []})
        if message is None:
            assert artifacts.outcome(*told).endswith("output/x/y is gone")
        else:
            with pytest.raises(RunError, match=message):
                artifacts.outcome(*told)


class TestDisk:
    def test_a_full_disk_costs_one_line(self, drawn, capsys):
        assert soak.main(["disk", "--disks", "3", "--data_root", str(drawn)]) == 0
        shown = capsys.readouterr().out
        assert "(mkdir .): code 1, all whole" in shown
        assert "disk: nothing was lost" in shown

    def test_disks_are_spread_over_the_run(self):
        assert disk.spread(10, 3) == [1, 5, 10]
        assert disk.spread(10, 1) == [1]
        assert disk.spread(3, None) == disk.spread(3, 9) == [1, 2, 3]

    @pytest.mark.parametrize(
        ("code", "errors"),
        [(0, [f"error: {disk.NO_SPACE}"]), (-9, []), (1, ["Traceback", f"error: {disk.NO_SPACE}"])],
    )
    def test_another_ending_is_a_broken_promise(self, code, errors):
        good = disk.Ended(1, [f"error: [Errno 28] {disk.NO_SPACE}"], [], "write x")
        disk.check_ending(good, "here")
        with pytest.raises(RunError, match="here: expected exit code 1 or 2 and one error line"):
            disk.check_ending(good._replace(code=code, errors=errors), "here")

    @pytest.mark.parametrize(
        ("fail_from", "count", "failed", "refused"),
        [
            (None, 6, None, []),
            (1, 5, "mkdir new", ["mkdir", "rename", "os.open", "open", "sync"]),
            (5, 7, "write text", ["open", "sync"]),  # closing the file tries again
        ],
    )
    def test_every_kind_of_write_is_counted_and_refused(
        self, tmp_path, monkeypatch, fail_from, count, failed, refused
    ):
        for name in ("mkdir", "rename", "replace", "open", "write", "fsync"):
            monkeypatch.setattr(os, name, getattr(os, name))  # as it was, after the test
        monkeypatch.setattr(io, "open", io.open)
        monkeypatch.setattr(builtins, "open", builtins.open)
        folder = tmp_path / "disk"
        folder.mkdir()
        (folder / "there").touch()
        calls = {
            "mkdir": lambda: (folder / "new").mkdir(),
            "rename": lambda: (folder / "there").rename(folder / "moved"),
            "os.open": lambda: os.close(os.open(folder / "descriptor", os.O_WRONLY | os.O_CREAT)),
            "open": lambda: (folder / "text").write_text("t" * 10),  # opens and writes
            "elsewhere": lambda: (tmp_path / "text").write_text("not counted"),
            "sync": lambda: os.fsync(os.open(folder, os.O_RDONLY)),
        }
        limited, found = FullDisk(folder, fail_from), []
        limited.install()
        for name, call in calls.items():
            try:
                call()
            except OSError as error:
                found.append((name, error.errno))
        assert (len(limited.operations), limited.failed) == (count, failed)
        assert found == [(name, errno.ENOSPC) for name in refused]
        if failed == "write text":  # half of it is written
            assert (folder / "text").read_text() == "ttttt"
