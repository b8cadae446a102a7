"""The soak tests, short; and that they notice what they are there to notice."""

import errno
import json
import random
import shutil
import subprocess
import sys

import pytest
import torch
from helpers import REPO, read_json

from scripts.dev import soak
from scripts.dev.soak_tests import damage, disk, kills, runs
from scripts.dev.soak_tests import watch as watch_module
from utils.data_utils import EMA, RunPaths, checkpoint_paths
from utils.errors import RunError
from utils.sealed import save_archive


def soaked(tmp_path, *flags):
    """The figures of a soak, through the CLI."""
    report = tmp_path / "figures.json"
    assert soak.main([*map(str, flags), "--json", str(report)]) == 0
    return read_json(report)


class TestKills:
    def test_a_killed_run_ends_as_one_that_was_not(self, drawn, tmp_path, capsys):
        figures = soaked(tmp_path, "kills", "--kills", 2, "--seed", 1, "--data_root", drawn)
        assert figures["kills"] == 2
        assert figures["looks at the files"] > 10
        assert figures["things compared"] > 20
        assert "kills: nothing was lost" in capsys.readouterr().out

    def test_a_run_that_ends_by_itself_was_not_killed(self):
        pace = kills.Pace(start=60.0, step=60.0)
        for seed in range(3):  # in its beginning and later
            with runs.session(["--help"]) as run:
                assert kills.kill_at_random(run, pace, random.Random(seed)) is None
                assert run.code() == 0

    def test_a_run_that_fails_is_said(self):
        with pytest.raises(RunError, match=r"--name x ended with code 2: error: .*--nothing"):
            runs.run_to_its_end(["--name", "x", "--nothing"])


class TestWatch:
    @pytest.fixture
    def copied(self, finished_run, tmp_path):
        shutil.copytree(finished_run.run, tmp_path / "run")
        return RunPaths(tmp_path, "run")

    def test_a_whole_run_is_fine(self, copied):
        with watch_module.watched(copied) as watch:
            watch.look()
        assert watch.had_state
        assert watch.files_read > 3

    @pytest.mark.parametrize("name", ["metrics.json", "fiftyone/predictions.jsonl"])
    def test_half_a_file_is_noticed(self, copied, name):
        path = copied.run / name
        path.write_bytes(path.read_bytes()[:-9])
        with (
            pytest.raises(RunError, match=rf"{path.name} cannot be parsed"),
            watch_module.watched(copied),
        ):
            pass

    @pytest.mark.parametrize("variant", ["", EMA])
    def test_half_a_best_checkpoint_is_noticed(self, copied, variant):
        path = checkpoint_paths(copied, variant).checkpoint
        path.write_bytes(copied.checkpoint.read_bytes()[:-9])
        with (
            pytest.raises(RunError, match=rf"{path.name} is not whole"),
            watch_module.watched(copied),
        ):
            pass

    def test_states_that_are_lost_are_noticed(self, copied):
        watch = watch_module.Watch(copied)
        watch.look()
        watch.check()
        shutil.rmtree(copied.last.parent)
        watch.look()
        with pytest.raises(RunError, match="no whole state any more"):
            watch.check()

    def test_one_whole_state_is_enough(self, copied):
        shutil.copy(copied.last, copied.older(1))
        copied.last.write_bytes(b"half")
        assert watch_module.has_whole_state(copied)
        copied.older(1).write_bytes(b"")
        assert not watch_module.has_whole_state(copied)


class TestCompare:
    def test_any_other_bit_is_named(self, finished_run):
        left = {
            "model": {"weight": torch.tensor([0.0])},
            "scalar eval/loss": [(2, 0.5)],
            "x": b"",
        }
        runs.check_same(left, finished_run, dict(left))
        other = {**left, "model": {"weight": torch.tensor([1e-45])}, "scalar eval/loss": []}
        with pytest.raises(RunError, match=r"left: model, scalar eval/loss differ$"):
            runs.check_same(left, finished_run, other)
        with pytest.raises(RunError, match=r"left: x differs$"):
            runs.check_same(left, finished_run, {k: left[k] for k in left if k != "x"})
        with pytest.raises(RunError, match=r"left: y differs$"):
            runs.check_same(left, finished_run, {**left, "y": 1})

    def test_what_is_missing_is_named(self, finished_run, tmp_path):
        with pytest.raises(RunError, match=r"ckpt_ema\.bin is missing"):
            runs.weights_left(finished_run)  # it averaged no weights
        with pytest.raises(RunError, match=r"last\.bin cannot be read"):
            runs.all_left(RunPaths(tmp_path, "no"))

    def test_what_is_left_behind_is_named(self, finished_run, tmp_path):
        runs.check_nothing_unfinished(finished_run)
        left = tmp_path / "run" / "checkpoints" / ".last.bin.1.tmp"
        left.parent.mkdir(parents=True)
        left.touch()
        with pytest.raises(RunError, match=r"\.last\.bin\.1\.tmp was left behind"):
            runs.check_nothing_unfinished(RunPaths(tmp_path, "run"))


class TestDamage:
    def test_damage_is_noticed_and_the_state_before_is_used(self, drawn, tmp_path, capsys):
        figures = soaked(tmp_path, "damage", "--ways", 12, "--resumes", 1, "--data_root", drawn)
        assert [figures[kind] for kind in damage.KINDS] == [4, 4, 4]
        assert "--resume ended as an undisturbed run" in capsys.readouterr().out

    @pytest.mark.parametrize("kind", damage.KINDS)
    def test_damage_is_damage(self, kind):
        data = bytes(6000) + random.Random(0).randbytes(6000) + bytes(6000)
        for number in range(50):
            damaged = damage.KINDS[kind](data, random.Random(number))
            assert damaged != data
            assert len(damaged) <= len(data)

    def test_damage_that_is_not_noticed_is_said(self, finished_run, tmp_path):
        shutil.copytree(finished_run.run, tmp_path / "run")
        paths = RunPaths(tmp_path, "run")
        first = torch.load(paths.last, weights_only=True)
        save_archive(paths.older(1), {**first, "run_id": "before"})
        with pytest.raises(RunError, match=r"way 1: not noticed, .*last\.bin was loaded"):
            damage.check_is_noticed(paths, "way 1")


EVERY_CALL = """
import builtins, json, os, sys
from pathlib import Path
from scripts.dev.soak_tests.full_disk import FullDisk

folder, fail_from = Path(sys.argv[1]), int(sys.argv[2]) or None
disk = FullDisk(folder, fail_from)
disk.install()
calls = {
    "mkdir": lambda: (folder / "new").mkdir(),
    "rename": lambda: (folder / "there").rename(folder / "moved"),
    "os.open": lambda: os.close(os.open(folder / "descriptor", os.O_WRONLY | os.O_CREAT)),
    "open": lambda: (folder / "text").write_text("t" * 10),  # opens and writes
    "elsewhere": lambda: folder.with_suffix(".txt").write_text("not counted"),
    "read": lambda: builtins.open(folder / "read").close(),
    "sync": lambda: os.fsync(os.open(folder, os.O_RDONLY)),
}
refused = []
for name, call in calls.items():
    try:
        call()
    except OSError as error:
        refused.append([name, error.errno])
print(json.dumps([len(disk.operations), disk.failed, refused]))
"""


def use_every_call(folder, fail_from):
    """Counted operations, the first that failed, and which calls were refused with which errno."""
    folder.mkdir()
    for name in ("there", "read"):
        (folder / name).write_text(name)
    command = [sys.executable, "-c", EVERY_CALL, folder, str(fail_from)]
    done = subprocess.run(command, cwd=REPO, text=True, capture_output=True, check=True)
    return json.loads(done.stdout)


class TestDisk:
    def test_a_full_disk_costs_one_line(self, drawn, tmp_path, capsys):
        flags = ("--data_root", drawn, "--disks", 3, "--resume_every", 2)
        figures = soaked(tmp_path, "disk", *flags)
        assert figures["full disks"] >= 3
        assert figures["of them gone on from"] >= 2
        assert "full at write 1 (mkdir .): code 1, all whole" in capsys.readouterr().out

    def test_the_first_and_the_last_write_of_a_file_are_chosen(self):
        operations = ["mkdir a", *["write b"] * 9, "fsync .", "write c", "write d", "write d"]
        assert disk.chosen_writes(operations, 1) == list(range(1, 15))
        chosen = disk.chosen_writes(operations, 4)
        assert chosen == [1, 2, 6, 10, 11, 12, 13, 14]
        assert disk.spread(chosen, 3) == [1, 10, 14]
        assert disk.spread(chosen, 1) == [1]
        assert disk.spread(chosen, 99) == disk.spread(chosen, None) == chosen

    @pytest.mark.parametrize(
        ("code", "errors", "trouble"),
        [
            (0, "", "exit code 0, neither 1 nor 2"),
            (-9, "", "exit code -9, neither 1 nor 2"),
            (1, "", "not one error line"),
            (1, f"Traceback\nerror: {disk.NO_SPACE}\n", "not one error line"),
            (1, "error: no\n", "not one error line"),
        ],
    )
    def test_another_ending_is_a_broken_promise(self, code, errors, trouble):
        good = disk.Ended(1, f"error: [Errno errno.ENOSPC] {disk.NO_SPACE}\n", 3, "write x")
        disk.check_ending(good, "here")
        with pytest.raises(RunError, match=f"here: {trouble}"):
            disk.check_ending(good._replace(code=code, errors=errors), "here")

    def test_a_damaged_checkpoint_is_a_broken_promise(self, finished_run, tmp_path):
        shutil.copytree(finished_run.run, tmp_path / "run")
        paths = RunPaths(tmp_path, "run")
        disk.check_what_lies_there(paths, "here")
        paths.checkpoint.write_bytes(paths.checkpoint.read_bytes()[:-1])
        with pytest.raises(RunError, match=r"here: checkpoint .*ckpt\.bin is truncated"):
            disk.check_what_lies_there(paths, "here")

    def test_every_kind_of_write_is_counted_and_refused(self, tmp_path):
        """In processes of their own, since a disk stays full."""
        assert use_every_call(tmp_path / "never", 0) == [6, None, []]
        count, failed, refused = use_every_call(tmp_path / "first", 1)
        assert (count, failed) == (5, "mkdir new")
        calls = ("mkdir", "rename", "os.open", "open", "sync")
        assert refused == [[name, errno.ENOSPC] for name in calls]
        _, failed, refused = use_every_call(tmp_path / "later", 5)
        assert failed == "write text"
        assert refused == [["open", errno.ENOSPC], ["sync", errno.ENOSPC]]
        assert (tmp_path / "later" / "text").read_text() == "ttttt"  # half of it


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("kills --kills 0", "argument --kills: '0' is not a whole number above 0"),
        ("kills --model_type no", "argument --model_type: invalid choice: 'no'"),
        ("damage --ways x", "argument --ways: 'x' is not a whole number above 0"),
        ("disk --json none/figures.json", "--json none/figures.json: there is no folder none"),
        ("disk --folder scripts", "--folder scripts is there already"),
        ("disk --data_root scripts", "--data_root scripts"),
        ("", "the following arguments are required: command"),
    ],
)
def test_wrong_flags_are_refused_before_soaking(flags, message, capsys, monkeypatch):
    monkeypatch.chdir(REPO)
    assert soak.main(flags.split()) == 2
    error = capsys.readouterr().err
    assert f"error: {message}" in error
    assert error.count("\n") == 1
