"""utils/data_utils.py: run paths, kept runs, retention, subsets, seeds."""

import hashlib
import json
import random
import re
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import FrozenConfigDict

from utils.data_utils import (
    RunPaths,
    check_run_name,
    derive_seed,
    keep_previous_run,
    open_subset,
    prepare_images,
    seed_everything,
    seed_worker,
    select_subset,
    write_retention,
)
from utils.errors import InputError

FLAG = "--tiny_train_subset"


class TestRunPaths:
    def test_are_those_of_the_contract(self):
        paths = RunPaths(Path("output"), "demo")
        assert {
            "run": paths.run,
            "tensorboard": paths.tensorboard,
            "checkpoint": paths.checkpoint,
            "predictions": paths.predictions,
            "labelmap": paths.labelmap,
            "env_stamp": paths.env_stamp,
            "metrics": paths.metrics,
            "per_class": paths.per_class,
            "retention": paths.retention,
        } == {
            "run": Path("output/demo"),
            "tensorboard": Path("output/tb/demo"),
            "checkpoint": Path("output/demo/checkpoints/ckpt.bin"),
            "predictions": Path("output/demo/fiftyone/predictions.jsonl"),
            "labelmap": Path("output/demo/labelmap.json"),
            "env_stamp": Path("output/demo/env_stamp.json"),
            "metrics": Path("output/demo/metrics.json"),
            "per_class": Path("output/demo/per_class.csv"),
            "retention": Path("output/demo/RETENTION.txt"),
        }

    def test_artifacts_are_those_that_are_there(self, tmp_path):
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

    def test_an_output_folder_that_is_a_file_is_refused(self, tmp_path):
        (tmp_path / "f").touch()
        for output in (tmp_path / "f", tmp_path / "f" / "deeper"):
            with pytest.raises(InputError, match=r"--output_dir .*f is a file, not a folder"):
                check_run_name(RunPaths(output, "demo"))

    def test_a_tensorboard_folder_that_is_a_file_is_refused(self, tmp_path):
        (tmp_path / "tb").touch()
        with pytest.raises(InputError, match=r"--output_dir .*tb is a file, not a folder"):
            check_run_name(RunPaths(tmp_path, "demo"))


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
    def test_takes_half_a_run_too(self, tmp_path, run, tb):
        paths = self.make(tmp_path, "demo", "half", run=run, tb=tb)
        kept = keep_previous_run(paths)
        assert kept.name == "demo~1"
        assert (kept.run.exists(), kept.tensorboard.exists()) == (run, tb)

    @pytest.mark.parametrize(("run", "tb"), [(True, False), (False, True)])
    def test_skips_a_number_that_is_half_taken(self, tmp_path, run, tb):
        self.make(tmp_path, "demo~1", "older", run=run, tb=tb)
        kept = keep_previous_run(self.make(tmp_path, "demo", "newer"))
        assert kept.name == "demo~2"
        assert (kept.run / "what").read_text() == "newer"
        older = RunPaths(tmp_path, "demo~1")
        assert (older.run.exists(), older.tensorboard.exists()) == (run, tb)

    def test_leaves_other_runs_alone(self, tmp_path):
        other = self.make(tmp_path, "demo2", "other")
        keep_previous_run(self.make(tmp_path, "demo", "x"))
        assert (other.run / "what").read_text() == "other"

    def test_keeps_the_note_true(self, tmp_path):
        paths = self.make(tmp_path, "demo", "x")
        write_retention(paths, has_checkpoint=False)
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
        write_retention(paths, has_checkpoint=True)
        text = paths.retention.read_text("utf-8")
        assert int(re.search(r"retention: at least (\d+) days", text)[1]) >= 90
        until = date.fromisoformat(re.search(r"keep until: (\S+)", text)[1])
        assert until >= before + timedelta(days=90)
        assert f"location: {paths.run.resolve()}\n" in text
        for artifact in (
            "demo/checkpoints/ckpt.bin", "demo/fiftyone/predictions.jsonl", "demo/metrics.json",
            "demo/per_class.csv", "demo/labelmap.json", "demo/env_stamp.json", "tb/demo",
        ):  # fmt: skip
            assert f"  - {artifact}\n" in text
        assert "never committed" in text

    def test_of_an_evaluation_names_no_checkpoint(self, tmp_path):
        paths = RunPaths(tmp_path, "demo")
        write_retention(paths, has_checkpoint=False)
        assert "ckpt.bin" not in paths.retention.read_text("utf-8")


class TestTinySubset:
    @settings(max_examples=150, deadline=None)
    @given(
        labels=st.lists(st.integers(0, 4), min_size=1, max_size=60), batch_size=st.integers(1, 12)
    )
    def test_is_at_most_two_batches_of_two_classes(self, make_split, labels, batch_size):
        split = make_split(Path("unused"), labels, num_classes=5, photos=False)
        chosen, identity = select_subset(split, "toy_tiny", batch_size, FLAG)
        assert len(chosen) == min(2 * batch_size, len(labels))
        assert len(set(chosen.ids)) == len(chosen)
        order = {sample_id: i for i, sample_id in enumerate(split.ids)}
        positions = [order[sample_id] for sample_id in chosen.ids]
        assert positions == sorted(positions)
        assert [split.labels[p] for p in positions] == chosen.labels.tolist()
        if len(set(labels)) > 1:
            assert len(set(chosen.labels)) > 1
        assert chosen.classes == split.classes  # the class list is the whole dataset's
        again = select_subset(split, "toy_tiny", batch_size, FLAG)
        assert again.identity == identity
        assert again.split.ids.tolist() == chosen.ids.tolist()
        assert identity["count"] == len(chosen)
        assert identity["classes"] == len(set(chosen.labels))

    @settings(max_examples=50, deadline=None)
    @given(batch_size=st.integers(1, 10))
    def test_of_one_class_is_of_one_class(self, make_split, batch_size):
        split = make_split(Path("unused"), [2] * 9, num_classes=3, photos=False)
        chosen, identity = select_subset(split, "toy_tiny", batch_size, FLAG)
        assert len(chosen) == min(2 * batch_size, 9)
        assert identity["classes"] == 1

    def test_finds_the_one_sample_of_another_class(self, make_split):
        for position in range(0, 40, 3):
            labels = [0] * 40
            labels[position] = 1
            split = make_split(Path("unused"), labels, photos=False)
            assert 1 in select_subset(split, "toy_tiny", 1, FLAG).split.labels

    def test_does_not_depend_on_seeds_or_place(self, make_split):
        labels = [i % 4 for i in range(40)]
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002 - the global generator must not matter
        one = select_subset(make_split(Path("a"), labels, photos=False), "toy_tiny", 4, FLAG)
        random.seed(2)
        np.random.seed(2)  # noqa: NPY002
        two = select_subset(make_split(Path("b"), labels, photos=False), "toy_tiny", 4, FLAG)
        assert one.identity == two.identity

    def test_is_the_same_on_every_machine(self, drawn):
        """These ids were drawn once; another machine must draw the same."""
        config = data_config(drawn, tiny_infer_subset="synthetic_tiny")
        _, subset = open_subset(config, "eval")
        digests = sorted(
            (hashlib.sha256(f"42:{sample_id}".encode()).digest(), str(sample_id))
            for sample_id in open_subset(data_config(drawn), "eval")[0].ids
        )
        assert sorted(subset.split.ids) == sorted(sample_id for _, sample_id in digests[:4])

    def test_identity(self, make_split):
        split = make_split(Path("unused"), [0, 1, 0], photos=False)
        identity = select_subset(split, "toy_tiny", 8, FLAG).identity
        text = '["photo_000","photo_001","photo_002"]'
        assert identity == {
            "name": "toy_tiny", "sha256": hashlib.sha256(text.encode()).hexdigest(),
            "count": 3, "classes": 2,
        }  # fmt: skip

    def test_none_is_the_whole_split(self, make_split):
        split = make_split(Path("unused"), [0, 1, 0], photos=False)
        chosen, identity = select_subset(split, None, 1, FLAG)
        assert chosen is split
        assert identity == "none"


class TestListedSubset:
    @pytest.fixture
    def split(self, make_split):
        return make_split(Path("unused"), [0, 1, 2, 0, 1], photos=False)

    def listed(self, tmp_path, content: str | bytes, split):
        path = tmp_path / "ids.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return select_subset(split, str(path), 1, FLAG)

    @pytest.mark.parametrize(
        "content",
        [
            "photo_004\nphoto_001\n", "photo_001\nphoto_004", "photo_004\r\nphoto_001\r\n",
            b"\xef\xbb\xbfphoto_004\r\nphoto_001", "\n  photo_001 \n\n\tphoto_004\n\n",
            "photo_004\rphoto_001\r",
        ],
    )  # fmt: skip
    def test_is_taken_in_split_order(self, tmp_path, split, content):
        chosen, identity = self.listed(tmp_path, content, split)
        assert chosen.ids.tolist() == ["photo_001", "photo_004"]
        assert chosen.labels.tolist() == [1, 1]
        text = json.dumps(["photo_001", "photo_004"], separators=(",", ":"))
        assert identity == {
            "name": "ids.txt", "sha256": hashlib.sha256(text.encode()).hexdigest(),
            "count": 2, "classes": 1,
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", r"ids.txt lists no sample id"),
            ("\n \r\n", r"ids.txt lists no sample id"),
            ("photo_001\nphoto_001\n", r"ids.txt lists photo_001 more than once"),
            ("photo_001\n photo_001", r"ids.txt lists photo_001 more than once"),
            (
                "photo_001\nphoto_009\nx\n",
                r"2 of 3 ids are not in split val of toy \(first: 'photo_009'\)",
            ),
            ("photo_001.jpg", r"1 of 1 ids are not in split val of toy"),
            ("PHOTO_001", r"1 of 1 ids are not in split val of toy"),
            (b"\xff\xfep\x00", r"ids.txt is no readable UTF-8 text file"),
            (b"\x89PNG\r\n\x1a\n\x00\xff", r"ids.txt is no readable UTF-8 text file"),
        ],
    )
    def test_that_is_wrong_is_refused(self, tmp_path, split, content, message):
        with pytest.raises(InputError, match=message) as caught:
            self.listed(tmp_path, content, split)
        assert str(caught.value).startswith(FLAG)

    def test_that_is_missing_is_refused(self, tmp_path, split):
        with pytest.raises(InputError, match=r"--tiny_train_subset .*absent.* no readable"):
            select_subset(split, str(tmp_path / "absent"), 1, FLAG)

    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def test_of_any_ids_in_any_order_is_those_ids(self, tmp_path_factory, make_split, data):
        split = make_split(Path("unused"), [0] * 12, photos=False)
        ids = data.draw(st.lists(st.sampled_from(split.ids.tolist()), unique=True, min_size=1))
        path = tmp_path_factory.getbasetemp() / "any.txt"
        path.write_text(data.draw(st.sampled_from(["\n", "\r\n", "\n\n"])).join(ids), newline="")
        assert select_subset(split, str(path), 1, FLAG).split.ids.tolist() == sorted(ids)


class TestSeeds:
    def test_derive_seed_is_a_hash_of_its_parts(self):
        digest = hashlib.sha256(b'[42,3,"image_00001"]').digest()
        assert derive_seed(42, 3, "image_00001") == int.from_bytes(digest[:8], "big") >> 1

    @settings(max_examples=200, deadline=None)
    @given(parts=st.lists(st.integers() | st.text(), max_size=4), more=st.integers() | st.text())
    def test_derive_seed_depends_on_every_part(self, parts, more):
        seed = derive_seed(*parts)
        assert 0 <= seed < 2**63
        assert seed == derive_seed(*parts)
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


def data_config(root: Path, **changes) -> FrozenConfigDict:
    """What `open_subset` reads of a config."""
    values = {
        "dataset": "synthetic", "data_root": str(root), "train_split": "train",
        "eval_split": "val", "tiny_train_subset": None, "tiny_infer_subset": None,
        "train_batch_size": 4, "eval_batch_size": 2, "val_fraction": None, "split_seed": None,
    }  # fmt: skip
    return FrozenConfigDict({**values, **changes})


class TestOpenSubset:
    def test_reads_each_phase_by_its_own_flags(self, drawn, tmp_path):
        (tmp_path / "ids.txt").write_text(open_subset(data_config(drawn), "train")[0].ids[3])
        config = data_config(
            drawn,
            tiny_train_subset=str(tmp_path / "ids.txt"),
            tiny_infer_subset="synthetic_tiny",
            eval_split="test",
        )
        split, subset = open_subset(config, "train")
        assert (split.name, len(split), len(subset.split)) == ("train", 200, 1)
        split, subset = open_subset(config, "eval")
        assert (split.name, len(split), len(subset.split)) == ("test", 100, 4)
        config = data_config(drawn, tiny_train_subset="synthetic_tiny")
        assert len(open_subset(config, "train")[1].split) == 8

    def test_names_the_flag_of_its_phase(self, drawn, tmp_path):
        (tmp_path / "ids.txt").write_text("nobody")
        for phase, flag in [("train", "tiny_train_subset"), ("eval", "tiny_infer_subset")]:
            config = data_config(drawn, **{flag: str(tmp_path / "ids.txt")})
            with pytest.raises(InputError, match=f"^--{flag} .*'nobody'"):
                open_subset(config, phase)

    def test_prepare_images_draws_what_is_not_there_and_checks_it(self, tmp_path):
        config = data_config(tmp_path / "drawn")
        split, subset = open_subset(config, "eval")
        prepare_images(config, [split], [subset.split])
        assert open_subset(config, "eval")[0].identity() == split.identity()
        (split.root / split.paths[0]).unlink()
        with pytest.raises(InputError, match=r"1 of 100 images of split val are missing"):
            prepare_images(config, [split], [subset.split])
