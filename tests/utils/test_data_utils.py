"""Check run paths, kept runs, the retention note, and seeds."""

import hashlib
import random
import re
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.data_utils import RunPaths, derive_seed, seed_everything, seed_worker
from utils.errors import InputError
from utils.run.folder import check_run_name, keep_previous_run, write_retention


class TestRunPaths:
    def test_are_those_of_the_contract(self):
        paths = RunPaths(Path("output"), "demo")
        expected = {
            "run": "output/demo",
            "tensorboard": "output/tb/demo",
            "checkpoint": "output/demo/checkpoints/ckpt.bin",
            "predictions": "output/demo/fiftyone/predictions.jsonl",
            "labelmap": "output/demo/labelmap.json",
            "env_stamp": "output/demo/env_stamp.json",
            "metrics": "output/demo/metrics.json",
            "per_class": "output/demo/per_class.csv",
            "retention": "output/demo/RETENTION.txt",
        }
        assert {name: str(getattr(paths, name)) for name in expected} == expected

    def test_artifacts_are_those_that_exist(self, tmp_path):
        paths = RunPaths(tmp_path, "demo")
        assert paths.artifacts() == {}
        paths.tensorboard.mkdir(parents=True)
        paths.run.mkdir()
        paths.metrics.touch()
        assert paths.artifacts() == {"metrics": paths.metrics, "tensorboard": paths.tensorboard}


class TestCheckRunName:
    def test_writes_nothing(self, tmp_path):
        check_run_name(RunPaths(tmp_path / "not" / "there", "demo"))
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("folder", ["", "tb"])
    def test_names_that_fold_to_one_are_refused(self, tmp_path, folder):
        (tmp_path / folder / "Demo").mkdir(parents=True)
        check_run_name(RunPaths(tmp_path, "Demo"))
        check_run_name(RunPaths(tmp_path, "demo2"))
        with pytest.raises(InputError, match=r"--name demo differs only in case from the run Demo"):
            check_run_name(RunPaths(tmp_path, "demo"))

    @pytest.mark.parametrize(("file", "output"), [("f", "f"), ("f", "f/deeper"), ("tb", "")])
    def test_a_folder_that_is_a_file_is_refused(self, tmp_path, file, output):
        (tmp_path / file).touch()
        with pytest.raises(InputError, match=f"--output_dir .*{file} is a file, not a folder"):
            check_run_name(RunPaths(tmp_path / output, "demo"))


class TestKeepPreviousRun:
    def make(self, output: Path, name: str, content: str, run: bool = True, tb: bool = True):
        paths = RunPaths(output, name)
        if run:
            paths.run.mkdir(parents=True)
            (paths.run / "what").write_text(content)
        if tb:
            paths.tensorboard.mkdir(parents=True)
            (paths.tensorboard / "what").write_text(content)
        return paths

    def test_does_nothing_without_one(self, tmp_path):
        assert keep_previous_run(RunPaths(tmp_path / "output", "demo")) is None
        assert list(tmp_path.iterdir()) == []

    def test_numbers_them_in_turn(self, tmp_path):
        for number in range(1, 4):
            paths = self.make(tmp_path, "demo", f"run {number}")
            kept = keep_previous_run(paths)
            assert kept == RunPaths(tmp_path, f"demo~{number}")
            assert not paths.run.exists()
            assert not paths.tensorboard.exists()
        for number in range(1, 4):
            kept = RunPaths(tmp_path, f"demo~{number}")
            assert (kept.run / "what").read_text() == f"run {number}"
            assert (kept.tensorboard / "what").read_text() == f"run {number}"

    @pytest.mark.parametrize(("run", "tb"), [(True, False), (False, True)])
    def test_takes_half_a_run_too_and_skips_its_number(self, tmp_path, run, tb):
        half = keep_previous_run(self.make(tmp_path, "demo", "half", run=run, tb=tb))
        assert half.name == "demo~1"
        kept = keep_previous_run(self.make(tmp_path, "demo", "newer"))
        assert kept.name == "demo~2"
        assert (kept.run / "what").read_text() == "newer"
        assert (half.run.exists(), half.tensorboard.exists()) == (run, tb)

    def test_leaves_other_runs_alone(self, tmp_path):
        other = self.make(tmp_path, "demo2", "other")
        keep_previous_run(self.make(tmp_path, "demo", "x"))
        assert (other.run / "what").read_text() == "other"

    def test_keeps_the_note_true(self, tmp_path):
        paths = self.make(tmp_path, "demo", "x")
        write_retention(paths, ())
        before = paths.retention.read_text("utf-8")
        kept = keep_previous_run(paths)
        after = kept.retention.read_text("utf-8")
        assert f"location: {kept.run.resolve()}\n" in after
        keep_until = re.compile(r"^keep until: .*$", re.MULTILINE)
        assert keep_until.search(after)[0] == keep_until.search(before)[0]

    def test_takes_a_note_that_somebody_rewrote(self, tmp_path):
        paths = self.make(tmp_path, "demo", "x")
        paths.retention.write_bytes("behalten bis März".encode("latin-1"))
        kept = keep_previous_run(paths)
        assert kept.retention.read_bytes() == "behalten bis März".encode("latin-1")


class TestRetention:
    def test_says_how_long_where_and_what(self, tmp_path):
        paths = RunPaths(tmp_path / "output", "demo")
        before = datetime.now(UTC).date()
        write_retention(paths, (paths.checkpoint, paths.last))
        text = paths.retention.read_text("utf-8")
        assert int(re.search(r"retention: at least (\d+) days", text)[1]) >= 90
        until = date.fromisoformat(re.search(r"keep until: (\S+)", text)[1])
        assert until >= before + timedelta(days=90)
        assert f"location: {paths.run.resolve()}\n" in text
        for artifact in (
            "demo/checkpoints/ckpt.bin",
            "demo/fiftyone/predictions.jsonl",
            "demo/metrics.json",
            "demo/per_class.csv",
            "demo/labelmap.json",
            "demo/env_stamp.json",
            "tb/demo",
        ):
            assert f"  - {artifact}\n" in text
        assert "never committed" in text

        write_retention(paths, ())  # of an evaluation
        assert "ckpt.bin" not in paths.retention.read_text("utf-8")


class TestSeeds:
    def test_derive_seed_is_a_hash_of_its_parts(self):
        digest = hashlib.sha256(b'[42,3,"image_00001"]').digest()
        assert derive_seed(42, 3, "image_00001") == int.from_bytes(digest[:8], "big") >> 1

    @settings(max_examples=50)
    @given(parts=st.lists(st.integers() | st.text(), max_size=4), more=st.integers() | st.text())
    def test_derive_seed_depends_on_every_part(self, parts, more):
        seed = derive_seed(*parts)
        assert 0 <= seed < 2**63
        assert seed != derive_seed(*parts, more)
        torch.Generator().manual_seed(seed)

    def test_derive_seed_tells_numbers_from_text_and_where_a_part_ends(self):
        seeds = {derive_seed(1, 2), derive_seed("1", 2), derive_seed(12), derive_seed("12")}
        assert len(seeds | {derive_seed(2, 1), derive_seed("1", "2")}) == 6

    @pytest.mark.parametrize("seed", [0, 42, 2**32 - 1])
    def test_seed_everything_seeds_every_library(self, seed):
        def draw():
            return random.random(), np.random.rand(), torch.rand(3).tolist()  # noqa: NPY002

        seed_everything(seed)
        first = draw()
        assert draw() != first
        seed_everything(seed)
        assert draw() == first
        seed_everything(seed ^ 1)
        assert draw() != first
        assert torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.benchmark

    def test_seed_worker_seeds_from_the_seed_of_its_process(self):
        def draw(worker):
            seed_worker(worker)
            return random.random(), np.random.rand()  # noqa: NPY002

        with torch.random.fork_rng():
            torch.manual_seed(7)
            first = draw(0)
            assert draw(1) == first  # torch's own seed tells workers apart
            torch.manual_seed(2**63 - 1)
            assert draw(0) != first
