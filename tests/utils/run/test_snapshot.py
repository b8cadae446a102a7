"""utils/run/snapshot.py: whatever fails, there is a whole state under one of the names."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import files
from utils.data_utils import RunPaths
from utils.errors import InputError
from utils.run import snapshot
from utils.run.snapshot import (
    Header,
    SnapshotStore,
    load_newest,
    load_snapshot,
    older_snapshots,
)
from utils.run.tensor_file import load_archive, save_archive
from utils.schema import is_dict, is_text, list_of


class Thing:
    """A part with tensors and plain data."""

    STATE: ClassVar = {"weights": is_dict, "names": list_of(is_text)}

    def __init__(self, step: int) -> None:
        self.step = step

    def state_dict(self) -> dict:
        weights = {"w": torch.full((3,), float(self.step)), "b": torch.arange(4)}
        return {"weights": weights, "names": ["rose", "lily"]}

    def load_state_dict(self, state: dict) -> None:
        raise AssertionError


def header(step: int) -> Header:
    return Header(
        run_id="20260101T000000Z-01234567",
        step=step,
        epoch=0,
        samples_of_epoch=4 * step,
        config={"num_steps": 10, "classes": ["rose", "lily"], "rate": 0.1, "none": None},
        experiment={"num_steps": 10},
        data={"dataset": {"checksum": "0" * 64}, "carving": None},
    )


def save_one(store: SnapshotStore, step: int) -> None:
    store.save(header(step), {"thing": Thing(step)})


def step_of(path: Path) -> int:
    return load_snapshot(path).header.step


def kept_steps(paths: RunPaths) -> list[int]:
    """The steps of the states that are there, newest first."""
    return [step_of(path) for path in (paths.last, *older_snapshots(paths)) if path.exists()]


def names_in(paths: RunPaths) -> list[str]:
    return sorted(path.name for path in paths.last.parent.iterdir())


def save(paths: RunPaths, keep: int, *steps: int) -> None:
    for step in steps:
        save_one(SnapshotStore(paths, keep), step)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture
def paths(tmp_path) -> RunPaths:
    return RunPaths(tmp_path, "run")


@pytest.fixture
def warnings_of(caplog):
    """The warnings that a call logs."""

    def call(function: Callable, *args: object) -> tuple[object, list[str]]:
        caplog.clear()
        with caplog.at_level("WARNING", logger="fine_vit"):
            result = function(*args)
        return result, [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]

    return call


class TestRoundTrip:
    def test_gives_back_header_and_parts(self, paths):
        save(paths, 1, 3)
        loaded = load_snapshot(paths.last, {"thing": Thing})
        assert loaded.header == header(3)
        expected = Thing(3).state_dict()
        assert loaded.parts["thing"]["names"] == expected["names"]
        for name, tensor in expected["weights"].items():
            assert torch.equal(loaded.parts["thing"]["weights"][name], tensor)

    def test_gives_equal_bytes_for_equal_snapshots(self, paths, tmp_path):
        other = RunPaths(tmp_path, "other")
        save(paths, 0, 3)
        save(other, 2, 3)
        assert paths.last.read_bytes() == other.last.read_bytes()

    @pytest.mark.parametrize("number", [1, 2, 3])
    def test_an_older_one_becomes_the_newest_and_those_between_stay(self, paths, number):
        save(paths, 3, 1, 2, 3, 4)
        content = paths.older(number).read_bytes()
        SnapshotStore(paths, 3).promote(paths.older(number))
        assert paths.last.read_bytes() == content
        assert kept_steps(paths) == [4 - number, 4, 3, 2]


class TestRotation:
    @settings(max_examples=25)
    @given(keeps=st.lists(st.integers(0, 4), min_size=1, max_size=8))
    def test_keeps_the_newest_however_often_it_is_told_otherwise(self, tmp_path_factory, keeps):
        paths = RunPaths(tmp_path_factory.mktemp("keeps"), "run")
        expected: list[int] = []
        for step, keep in enumerate(keeps):
            save(paths, keep, step)
            expected = [step, *expected][: keep + 1]
            assert kept_steps(paths) == expected

    @settings(max_examples=25)
    @given(numbers=st.sets(st.integers(1, 12), max_size=5), keep=st.integers(0, 4))
    def test_copes_with_gaps(self, tmp_path_factory, numbers, keep):
        """Whoever removed states by hand loses no more than what is too old."""
        paths = RunPaths(tmp_path_factory.mktemp("gaps"), "run")
        save(paths, 0, 50)
        for number in numbers:
            other = RunPaths(paths.output_dir, "other")
            save(other, 0, 50 - number)
            shutil.copy(other.last, paths.older(number))
        save(paths, keep, 51)
        steps = kept_steps(paths)
        assert steps[: min(keep, 1) + 1] == [51, 50][: min(keep, 1) + 1]
        assert steps == sorted(steps, reverse=True)
        assert len(steps) <= keep + 1
        assert set(steps) <= {51, 50, *(50 - number for number in numbers)}

    def test_looks_at_no_more_files_than_there_are(self, paths, monkeypatch):
        looked, is_whole = [], snapshot.is_whole_snapshot
        note = lambda path: looked.append(path) or is_whole(path)  # noqa: E731
        monkeypatch.setattr(snapshot, "is_whole_snapshot", note)
        save(paths, 1_000_000, *range(4))
        assert kept_steps(paths) == [3, 2, 1, 0]
        paths.last.with_name("last~3.bin").rename(paths.older(2**31 - 1))
        save(paths, 2**31 - 1, 4)
        assert [step_of(paths.older(number)) for number in (1, 2, 3)] == [3, 2, 1]
        assert len(looked) < 40

    @pytest.mark.parametrize("keep", [1, 2, 3])
    def test_no_damaged_state_displaces_a_whole_one(self, paths, keep, monkeypatch):
        save(paths, keep, *range(keep + 1))
        newer = [paths.last, *(paths.older(number) for number in range(1, keep))]
        for path in newer:
            damage(path)

        def refuse(path: Path, target: Path) -> None:
            raise AssertionError(f"{path} takes the place of {target}")

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", refuse)
            with pytest.raises(AssertionError, match=r"\.tmp takes the place of .*last\.bin$"):
                save(paths, keep, 9)
        assert step_of(paths.older(keep)) == 0
        save(paths, keep, 9)
        assert [step_of(paths.last), step_of(paths.older(keep))] == [9, 0]
        store = SnapshotStore(paths, keep)
        for step in range(10, 11 + keep):
            save_one(store, step)
        assert kept_steps(paths) == list(range(10 + keep, 9, -1))

    @pytest.mark.parametrize("keep", [0, 1, 3])
    @pytest.mark.parametrize("gone", ["last.bin", "last~1.bin", "folder", "run"])
    def test_needs_none_of_those_before(self, paths, keep, gone):
        store = SnapshotStore(paths, keep)
        for step in (1, 2, 3):
            save_one(store, step)
        names = {"folder": paths.last.parent, "run": paths.run}
        if gone in names:
            shutil.rmtree(names[gone])
        else:
            paths.last.with_name(gone).unlink(missing_ok=True)
        save_one(store, 4)
        assert kept_steps(paths)[0] == 4
        save_one(store, 5)
        assert kept_steps(paths)[: keep + 1][:2] == [5, 4][: keep + 1]

    @pytest.mark.parametrize("gone", ["run", "checkpoints", "file"])
    def test_begins_again_if_its_own_file_is_removed_under_its_hands(self, paths, gone):
        store = SnapshotStore(paths, 1)
        save_one(store, 1)
        content, times = paths.last.read_bytes(), []

        def write(file) -> None:
            times.append(file)
            file.write(content)
            if len(times) == 1:
                named = {"run": paths.run, "checkpoints": paths.last.parent}
                if gone in named:
                    shutil.rmtree(named[gone])
                else:
                    Path(file.name).unlink()

        store.replace(write)
        assert (len(times), kept_steps(paths)) == (2, [1, 1] if gone == "file" else [1])
        assert {name[0] for name in names_in(paths)} == {"l"}  # nothing temporary is left

    def test_what_took_the_place_of_a_snapshot_is_looked_at(self, paths):
        store = SnapshotStore(paths, 2)
        save_one(store, 1)
        save_one(store, 2)
        paths.last.write_bytes(b"somebody else's")
        save_one(store, 3)
        assert kept_steps(paths) == [3, 1]

    def test_one_that_cannot_be_read_counts_as_damaged(self, paths):
        save(paths, 1, 1, 2)
        paths.last.unlink()
        paths.last.symlink_to(paths.last)  # also root cannot read it
        save(paths, 1, 3)
        assert kept_steps(paths) == [3, 1]

    def test_sorts_by_number_and_leaves_other_files_alone(self, paths):
        save(paths, 12, *range(1, 13))
        for name in ("last~x.bin", "last~.bin", "ckpt.bin", "last~1.bin.old"):
            (paths.last.parent / name).write_bytes(b"mine")
        assert kept_steps(paths) == list(range(12, 0, -1))  # and not ~1, ~10, ~11, ~2
        save(paths, 0, 13)
        assert names_in(paths) == sorted(
            ["last.bin", "last~x.bin", "last~.bin", "ckpt.bin", "last~1.bin.old"]
        )


@pytest.fixture
def saved(paths) -> Callable[[int], RunPaths]:
    """A run with the states of steps 1 to 4, as many as are kept."""

    def make(keep: int) -> RunPaths:
        save(paths, keep, 1, 2, 3, 4)
        return paths

    return make


@pytest.mark.parametrize("keep", [0, 1, 3])
class TestFailure:
    """A save that fails leaves the states before it, and the next one is as if it had not been."""

    def check(self, paths: RunPaths, keep: int) -> None:
        assert kept_steps(paths) == [4, 3, 2, 1][: keep + 1]
        assert not [name for name in names_in(paths) if name.endswith(".tmp")]
        save(paths, keep, 6)
        assert kept_steps(paths) == [6, 4, 3, 2, 1][: keep + 1]

    def test_to_write(self, saved, keep, monkeypatch):
        paths = saved(keep)

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(files, "sync", full)
            with pytest.raises(OSError, match="No space left"):
                save(paths, keep, 5)
        self.check(paths, keep)

    def test_to_read_back_what_was_written(self, saved, keep, monkeypatch):
        paths = saved(keep)

        def flip(descriptor: int) -> None:
            os.pwrite(descriptor, b"\xff", 200)

        with monkeypatch.context() as patch:
            patch.setattr(files, "sync", flip)
            with pytest.raises(OSError, match=r"last\.bin.* reads back otherwise than it was"):
                save(paths, keep, 5)
        self.check(paths, keep)

    def test_to_rename_any_file(self, tmp_path, keep, monkeypatch):
        """Where a rename fails, the run may as well have been killed before it."""
        rename = Path.replace
        for allowed in range(keep + 1):  # so many older states make room, then the new one moves
            paths = RunPaths(tmp_path, f"run{allowed}")
            save(paths, keep, 1, 2, 3, 4)
            left = [allowed]

            def replace(path, target, left=left):
                if not left[0]:
                    raise PermissionError(13, "Permission denied")
                left[0] -= 1
                return rename(path, target)

            with monkeypatch.context() as patch:
                patch.setattr(Path, "replace", replace)
                with pytest.raises(PermissionError, match="Permission denied"):
                    save(paths, keep, 5)
            assert load_newest(paths).header.step == 4
            # What made room for one that did not come is gone, and no other.
            expected = [4, 3, 2, 1][: keep + 1] if allowed == 0 else [4, 3, 2, 1][:keep]
            assert kept_steps(paths) == expected
            assert not [name for name in names_in(paths) if name.endswith(".tmp")]
            save(paths, keep, 6)
            assert kept_steps(paths)[: min(keep, 1) + 1] == [6, 4][: min(keep, 1) + 1]
            assert len(kept_steps(paths)) <= keep + 1

    def test_to_sync_the_folder_comes_after_the_new_state(self, saved, keep, monkeypatch):
        paths = saved(keep)

        def fail(folder: Path) -> None:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(files, "sync_folder", fail)
            with pytest.raises(OSError, match="Input/output error"):
                save(paths, keep, 5)
        assert load_newest(paths).header.step == 5
        save(paths, keep, 6)
        assert kept_steps(paths) == [6, 5, 4, 3][: keep + 1]


def test_a_whole_state_is_there_at_every_moment_after_a_damaged_one(paths, monkeypatch):
    """A run that went back to `last~1.bin` saves again, and is killed before the last rename."""
    save(paths, 1, 1, 2)
    damage(paths.last)
    assert load_newest(paths).header.step == 1
    rename = Path.replace

    def replace(path, target):
        if target == paths.last:
            raise PermissionError(13, "killed here")
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        with pytest.raises(PermissionError, match="killed here"):
            save(paths, 1, 3)
    assert load_newest(paths).header.step == 1


class TestNewest:
    def test_is_last_and_nothing_is_said(self, paths, warnings_of):
        save(paths, 2, 1, 2, 3)
        newest, lines = warnings_of(load_newest, paths)
        assert newest.header.step == 3
        assert lines == []

    @pytest.mark.parametrize("damaged", [1, 2, 3])
    def test_that_is_whole_is_taken_and_named(self, paths, warnings_of, damaged):
        save(paths, 3, 1, 2, 3, 4)
        candidates = [paths.last, *older_snapshots(paths)]
        for path in candidates[:damaged]:
            damage(path)
        newest, lines = warnings_of(load_newest, paths)
        assert newest.header.step == 4 - damaged
        *troubles, last = lines
        for line, path in zip(troubles, candidates[:damaged], strict=True):
            assert line.startswith(f"warning: checkpoint {path} is damaged")
        assert last == (f"warning: going back to {candidates[damaged]}, step {4 - damaged}")

    def test_may_lack_last(self, paths, warnings_of):
        """Killed between two renames."""
        save(paths, 1, 1, 2)
        paths.last.unlink()
        newest, lines = warnings_of(load_newest, paths)
        assert newest.header.step == 1
        assert lines == [f"warning: going back to {paths.older(1)}, step 1"]

    @pytest.mark.parametrize("content", [b"", b"text", bytes(5000)])
    def test_of_damaged_ones_alone_is_refused_by_the_newest(self, paths, content, warnings_of):
        save(paths, 2, 1, 2, 3)
        for path in (paths.last, *older_snapshots(paths)):
            path.write_bytes(content)
        with pytest.raises(InputError, match=r"^checkpoint .*/last\.bin is truncated, damaged"):
            warnings_of(load_newest, paths)

    def test_of_none_is_refused(self, paths):
        with pytest.raises(InputError, match=r"run has no snapshot to resume from; start it"):
            load_newest(paths)

    def test_of_a_foreign_one_goes_back(self, paths, warnings_of):
        save(paths, 1, 1, 2)
        save_archive(paths.last, {"format": "fine-vit checkpoint", "version": 2})
        newest, lines = warnings_of(load_newest, paths)
        assert newest.header.step == 1
        assert "last.bin is not a snapshot of a run" in lines[0]


class TestForeign:
    @pytest.mark.parametrize(
        "payload",
        [{}, {"format": "fine-vit checkpoint"}, {"format": None}, {"w": torch.ones(2)}],
    )
    def test_is_refused(self, paths, payload):
        save_archive(paths.last, payload)
        with pytest.raises(InputError, match=r"last\.bin is not a snapshot of a run; name a run's"):
            load_snapshot(paths.last)

    @pytest.mark.parametrize("version", [0, 4, None, "1", [1]])
    def test_version_is_refused(self, paths, version):
        save(paths, 0, 1)
        save_archive(paths.last, {**load_archive(paths.last), "version": version})
        with pytest.raises(InputError, match=r"last\.bin has format version .*, this code reads 3"):
            load_snapshot(paths.last)

    @pytest.mark.parametrize("older", [{"version": 1}, {"version": 2}, {"data_rules": 1}])
    def test_old_version_is_refused_in_one_line_that_says_what_to_do(self, paths, older):
        save(paths, 0, 1)
        save_archive(paths.last, {**load_archive(paths.last), **older})
        message = r"^\S*last\.bin was saved by an older version .*decodes images .*finish that .*$"
        with pytest.raises(InputError, match=message):
            load_snapshot(paths.last)

    @pytest.mark.parametrize("field", [*Header._fields, "parts"])
    @pytest.mark.parametrize("value", [..., None, -1.5])
    def test_field_is_refused(self, paths, field, value):
        save(paths, 0, 1)
        payload = {**load_archive(paths.last), field: value}
        save_archive(paths.last, {k: v for k, v in payload.items() if v is not ...})
        if (field, value) == ("stamp", ...):  # older ones do not have it
            assert load_snapshot(paths.last).header.stamp == {}
            return
        with pytest.raises(InputError, match=rf"last\.bin has no usable {field}; name a run's"):
            load_snapshot(paths.last)

    @pytest.mark.parametrize("state", [None, {}, {"weights": {}, "names": [1]}, {"names": []}])
    def test_part_is_refused(self, paths, state):
        save(paths, 0, 1)
        save_archive(paths.last, {**load_archive(paths.last), "parts": {"thing": state}})
        with pytest.raises(InputError, match=r"last\.bin has no usable parts\.thing; name"):
            load_snapshot(paths.last, {"thing": Thing})
