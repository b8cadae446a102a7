"""utils/dataset.py: the table of data sets, opening a split, the labelmap."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import read_json
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts_own import write_csv
from ml_collections import FrozenConfigDict

from utils.data.catalog import SPECS, dataset_names, get_spec
from utils.data.readers.synthetic import SYNTHETIC_CLASSES
from utils.data.subsets import select_subset
from utils.dataset import (
    labelmap,
    open_data,
    open_eval_data,
    open_split,
    prepare_images,
)
from utils.errors import InputError
from utils.files import write_json


class TestSpecs:
    def test_are_found_by_every_name(self):
        assert [get_spec(spec.name) for spec in SPECS] == list(SPECS)
        assert {get_spec(name).name for name in dataset_names()} == {spec.name for spec in SPECS}
        assert len(set(dataset_names())) == len(dataset_names())
        assert get_spec("flowers-102") is get_spec("flower102")
        with pytest.raises(InputError, match=r"unknown dataset 'birds'; known: flower102.*synth"):
            get_spec("birds")

    def test_open_split_reads_the_drawn_data(self, drawn):
        spec = get_spec("synthetic")
        split = open_split(spec, drawn, "val")
        assert (split.dataset, split.name, len(split)) == ("synthetic", "val", 100)
        assert split.classes == SYNTHETIC_CLASSES
        assert split.root.is_absolute()
        for path, sample_id in zip(split.paths[:5], split.ids, strict=False):
            assert path == f"jpg/{sample_id}.jpg"
            assert (split.root / path).is_file()
        with pytest.raises(InputError, match=r"synthetic has no split 'dev'; it has train, val"):
            open_split(spec, drawn, "dev")

    def test_open_split_of_synthetic_is_the_same_before_it_is_drawn(self, drawn, tmp_path):
        spec = get_spec("synthetic")
        for name in spec.splits:
            planned = open_split(spec, tmp_path / "absent", name)
            assert planned.identity() == open_split(spec, drawn, name).identity()
            assert planned.paths.tolist() == open_split(spec, drawn, name).paths.tolist()
        assert not (tmp_path / "absent").exists()

    def test_open_split_makes_a_relative_root_absolute(self, drawn, monkeypatch):
        monkeypatch.chdir(drawn.parent)
        split = open_split(get_spec("synthetic"), Path(drawn.name), "val")
        assert split.root == drawn.resolve()

    def test_a_split_without_images_is_refused(self, tmp_path):
        from scipy.io import savemat

        (tmp_path / "jpg").mkdir()
        savemat(tmp_path / "imagelabels.mat", {"labels": np.array([[1, 2]])})
        numbers = {"trnid": [[1, 2]], "valid": [[]], "tstid": [[]]}
        savemat(tmp_path / "setid.mat", {k: np.array(v) for k, v in numbers.items()})
        spec = get_spec("flower102")
        assert len(open_split(spec, tmp_path, "train")) == 2
        with pytest.raises(InputError, match=r"split val of .* has no images"):
            open_split(spec, tmp_path, "val")


class TestLabelmap:
    def test_checksum_is_over_the_compact_json_of_the_classes(self):
        made = labelmap("toy", ("rose", "Schlüsselblume", 'a "b"'))
        text = '["rose","Schlüsselblume","a \\"b\\""]'
        assert made == {
            "dataset": "toy",
            "num_classes": 3,
            "classes": ["rose", "Schlüsselblume", 'a "b"'],
            "checksum": hashlib.sha256(text.encode("utf-8")).hexdigest(),
        }

    @settings(max_examples=20)
    @given(classes=st.lists(st.text(), min_size=1, max_size=6), has_parents=st.booleans())
    def test_is_written_as_it_is_and_checks(self, tmp_path_factory, classes, has_parents):
        path = tmp_path_factory.getbasetemp() / "labelmap.json"
        parents = tuple((f"above {name}", "all") for name in classes) if has_parents else ()
        write_json(path, labelmap("toy", classes, parents))
        read = read_json(path)
        assert read == labelmap("toy", classes, parents)
        assert ("parents" in read) is has_parents
        if has_parents:
            assert read["parents"] == [list(names) for names in parents]
        text = json.dumps(read["classes"], ensure_ascii=False, separators=(",", ":"))
        assert read["checksum"] == hashlib.sha256(text.encode("utf-8")).hexdigest()


FLAG = "--tiny_train_subset"


class TestTinySubset:
    @settings(max_examples=150)
    @given(
        labels=st.lists(st.integers(0, 4), min_size=1, max_size=60), batch_size=st.integers(1, 12)
    )
    def test_is_at_most_two_batches_of_two_classes(self, make_split, labels, batch_size):
        split = make_split(Path("unused"), labels, num_classes=5, photos=False)
        chosen = select_subset(split, "toy_tiny", batch_size, FLAG)
        assert len(chosen) == min(2 * batch_size, len(labels))
        assert len(set(chosen.ids)) == len(chosen)
        order = {sample_id: i for i, sample_id in enumerate(split.ids)}
        positions = [order[sample_id] for sample_id in chosen.ids]
        assert positions == sorted(positions)
        assert [split.labels[p] for p in positions] == chosen.labels.tolist()
        assert (len(set(chosen.labels)) > 1) is (len(set(labels)) > 1)
        assert chosen.classes == split.classes  # the class list is the whole dataset's
        again = select_subset(split, "toy_tiny", batch_size, FLAG)
        assert again.subset == chosen.subset
        assert again.ids.tolist() == chosen.ids.tolist()
        assert chosen.subset["count"] == len(chosen)
        assert chosen.subset["classes"] == len(set(chosen.labels))

    def test_is_the_same_on_every_machine(self, drawn):
        """These ids were drawn once; another machine must draw the same."""
        data = open_data(flags_for(drawn, tiny_infer_subset="synthetic_tiny"))
        digests = sorted(
            (hashlib.sha256(f"42:{sample_id}".encode()).digest(), str(sample_id))
            for sample_id in data.full_eval.ids
        )
        assert sorted(data.eval.ids) == sorted(sample_id for _, sample_id in digests[:4])

    def test_none_is_the_whole_split(self, make_split):
        split = make_split(Path("unused"), [0, 1, 0], photos=False)
        assert select_subset(split, None, 1, FLAG) is split
        assert split.subset == "none"


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
            "photo_004\nphoto_001\n",
            "photo_001\nphoto_004",
            "photo_004\r\nphoto_001\r\n",
            b"\xef\xbb\xbfphoto_004\r\nphoto_001",
            "\n  photo_001 \n\n\tphoto_004\n\n",
            "photo_004\rphoto_001\r",
        ],
    )
    def test_is_taken_in_split_order(self, tmp_path, split, content):
        chosen = self.listed(tmp_path, content, split)
        assert chosen.ids.tolist() == ["photo_001", "photo_004"]
        assert chosen.labels.tolist() == [1, 1]
        text = json.dumps(["photo_001", "photo_004"], separators=(",", ":"))
        assert chosen.subset == {
            "name": "ids.txt",
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
            "count": 2,
            "classes": 1,
        }

    @pytest.mark.parametrize(
        "name",
        [
            "photo_001.jpg",
            "unused/jpg/photo_001.jpg",
            "jpg/photo_001",
            "PHOTO_001",
            "Photo_001.JPG",
        ],
    )
    def test_takes_files_for_ids(self, tmp_path, split, name, caplog):
        with caplog.at_level("INFO", logger="fine_vit"):
            chosen = self.listed(tmp_path, f"photo_004\n{name}", split)
        assert chosen.ids.tolist() == ["photo_001", "photo_004"]
        assert chosen.subset == self.listed(tmp_path, "photo_004\nphoto_001", split).subset
        said = f"1 of 2 lines are not the ids themselves (first: {name!r} is photo_001)"
        assert caplog.messages == [f"{FLAG}: {said}"]

    def test_takes_no_name_that_two_samples_may_mean(self, tmp_path, split):
        paths = np.array(["jpg/photo_000.jpg", "jpg/Photo_000.jpg", *split.paths[2:]])
        with pytest.raises(InputError, match=r"first: 'JPG/photo_000.jpg'"):
            self.listed(tmp_path, "JPG/photo_000.jpg", replace(split, paths=paths))

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", r"ids.txt lists no sample id"),
            ("\n \r\n", r"ids.txt lists no sample id"),
            ("photo_001\n photo_001", r"ids.txt lists photo_001 more than once"),
            (
                "photo_001\nphoto_009\nx\n",
                r"2 of 3 ids are not in split val of toy \(first: 'photo_009'\)",
            ),
            (
                "photo_001.png",
                r"1 of 1 ids are not in split val of toy \(first: 'photo_001.png', did",
            ),
            ("photo_001\njpg/photo_001.jpg", r"lists jpg/photo_001.jpg more .* also as photo_001$"),
            (b"\xff\xfep\x00", r"ids.txt is not a readable UTF-8 text file"),
            (b"\x89PNG\r\n\x1a\n\x00\xff", r"ids.txt is not a readable UTF-8 text file"),
        ],
    )
    def test_that_is_wrong_is_refused(self, tmp_path, split, content, message):
        with pytest.raises(InputError, match=message) as caught:
            self.listed(tmp_path, content, split)
        assert str(caught.value).startswith(FLAG)

    def test_that_is_missing_is_refused(self, tmp_path, split):
        with pytest.raises(InputError, match=r"--tiny_train_subset .*absent.* is not a readable"):
            select_subset(split, str(tmp_path / "absent"), 1, FLAG)


def flags_for(root: Path | None, **changes) -> FrozenConfigDict:
    """What `open_data` reads of a run's flags."""
    values = {
        "name": "run",
        "dataset": "synthetic",
        "class_depth": None,
        "unknown_classes": "refuse",
        "preset": "vit",
        "img_size": 32,
        "skip_bad_images": 0,
        "cache": "none",
        "data_root": None if root is None else str(root),
        "output_dir": "out",
        "train_split": "train",
        "eval_split": None,
        "tiny_train_subset": None,
        "tiny_infer_subset": None,
        "train_batch_size": 4,
        "eval_batch_size": 2,
        "val_fraction": None,
        "split_seed": None,
    }
    return FrozenConfigDict({**values, **changes})


@pytest.fixture
def flowers(tmp_path: Path, drawn: Path) -> Path:
    """Real flowers' lists and an empty folder for their images."""
    root = tmp_path / "photos" / "flower102"
    (root / "jpg").mkdir(parents=True)
    for name in ("imagelabels.mat", "setid.mat"):
        shutil.copy(drawn / name, root)
    return root


class TestOpenData:
    def test_decides_what_the_flags_left_open_and_reads_both_splits(self, drawn, tmp_path):
        data = open_data(flags_for(drawn))
        assert data.decided == {
            "dataset": "synthetic",
            "data_root": str(drawn),
            "class_depth": None,
            "train_split": "train",
            "eval_split": "val",
            "val_fraction": None,
            "split_seed": None,
            "tiny_train_subset": None,
            "tiny_infer_subset": None,
        }
        assert (data.train, data.eval) == (data.full_train, data.full_eval)
        assert (len(data.train), len(data.eval)) == (200, 100)
        ids = tmp_path / "ids.txt"
        ids.write_text(data.train.ids[3])
        data = open_data(
            flags_for(
                drawn,
                tiny_train_subset=str(ids),
                tiny_infer_subset="synthetic_tiny",
                eval_split="test",
            )
        )
        assert (len(data.full_train), len(data.train), len(data.eval)) == (200, 1, 4)
        facts = data.facts()
        assert (facts["selected_on"], facts["carving"]) == ("test", None)
        assert facts["dataset"].items() >= data.full_train.identity().items()
        assert facts["dataset"]["eval_checksum"] == data.full_eval.checksum()
        assert facts["tiny_train_subset"] == data.train.subset
        assert facts["tiny_infer_subset"]["name"] == "synthetic_tiny"

    def test_prepare_images_draws_what_is_not_there_and_checks_it(self, tmp_path):
        flags = flags_for(tmp_path / "drawn")
        data = open_data(flags)
        train, evaluated = prepare_images(data, flags)
        assert (len(train.values), len(set(evaluated.values.tolist()))) == (200, 100)
        again = open_data(flags_for(tmp_path / "drawn"))
        assert again.facts() == data.facts()
        Path(data.eval.path_of(0)).unlink()
        with pytest.raises(InputError, match=r"1 of 100 images of split val are missing"):
            prepare_images(data, flags)


class TestDataRoot:
    def test_is_the_flag_or_else_the_environments(self, tmp_path, flowers, monkeypatch):
        for root in (flowers, flowers.parent):
            monkeypatch.setenv("DATA_ROOT", str(tmp_path / "elsewhere"))
            data = open_data(flags_for(root, dataset="flower102"))
            assert data.decided["data_root"] == str(root)
            monkeypatch.setenv("DATA_ROOT", str(root))
            data = open_data(flags_for(None, dataset="flower102"))
            assert data.decided["data_root"] == str(root)

    @pytest.mark.parametrize("value", [None, ""])
    def test_must_be_said(self, monkeypatch, value):
        if value is not None:
            monkeypatch.setenv("DATA_ROOT", value)
        with pytest.raises(InputError, match="--data_root PATH or `export DATA_ROOT=PATH`"):
            open_data(flags_for(None, dataset="flower102"))

    @pytest.mark.parametrize("folder", ["flowers-102", "flowers102", "flower102"])
    def test_may_be_a_parent(self, flowers, folder):
        flowers.rename(flowers.with_name(folder))
        data = open_data(flags_for(flowers.parent, dataset="flower102"))
        assert data.train.root == flowers.with_name(folder).resolve()

    def test_of_synthetic_is_not_the_environments_and_not_a_folder_of_photos(
        self, flowers, monkeypatch
    ):
        monkeypatch.setenv("DATA_ROOT", str(flowers.parent))
        data = open_data(flags_for(None, output_dir="elsewhere"))
        assert data.decided["data_root"] == "elsewhere/.synthetic"
        with pytest.raises(InputError, match="holds something other than synthetic flowers"):
            open_data(flags_for(flowers))

    @pytest.mark.parametrize("folder", ["flower102", "flowers-102", "flowers102"])
    def test_at_the_root_gets_the_shell_hint(self, folder):
        assert not Path(f"/{folder}").exists()
        with pytest.raises(InputError, match=f"--data_root /{folder} .*export DATA_ROOT=.*first"):
            open_data(flags_for(Path(f"/{folder}"), dataset="flower102"))

    def test_must_be_a_folder_that_holds_all_three(self, tmp_path, flowers):
        def said(root: Path) -> str:
            with pytest.raises(InputError) as caught:
                open_data(flags_for(root, dataset="flower102"))
            return str(caught.value)

        (tmp_path / "f").touch()
        assert said(tmp_path / "flower102").endswith("does not exist")
        assert "f is a file, not the folder" in said(tmp_path / "f")
        for entry in ("jpg", "imagelabels.mat", "setid.mat"):
            (flowers / entry).rename(flowers / "other")
            assert f"lacks {entry} of flower102; scripts/get_flowers" in said(flowers)
            (flowers / "other").rename(flowers / entry)

    @pytest.mark.parametrize("dataset", ["synthetic", "flower102"])
    def test_that_no_system_takes_is_bad_input(self, dataset):
        with pytest.raises(InputError, match="--data_root"):
            open_data(flags_for(Path("x" * 300), dataset=dataset))


class TestNames:
    @pytest.mark.parametrize("alias", ["flower102", "flowers-102", "flowers102"])
    @pytest.mark.parametrize("flag", ["tiny_train_subset", "tiny_infer_subset"])
    def test_of_dataset_and_named_subset_become_the_one(self, flowers, alias, flag):
        for subset in ("flower102_tiny", "flowers102_tiny"):
            data = open_data(flags_for(flowers, dataset=alias, **{flag: subset}))
            assert data.decided["dataset"] == "flower102"
            assert data.decided[flag] == "flower102_tiny"

    @pytest.mark.parametrize("flag", ["train_split", "eval_split"])
    def test_of_splits_must_be_known(self, drawn, flag):
        for split in ("train", "val", "test", "trainval"):
            assert open_data(flags_for(drawn, **{flag: split})).decided[flag] == split
        message = rf"--{flag} valid: synthetic has no split 'valid', did you mean 'val'\?; it has t"
        with pytest.raises(InputError, match=message):
            open_data(flags_for(drawn, **{flag: "valid"}))

    @pytest.mark.parametrize(
        "wanted",
        ["tiny", "flower102_tiny", "synthetic", "Synthetic_tiny", "", "no/such/file", "."],
    )
    def test_of_a_subset_that_is_unknown_are_refused(self, drawn, wanted):
        message = f"^--tiny_train_subset {wanted} is neither synthetic_tiny nor a file"
        with pytest.raises(InputError, match=message):
            open_data(flags_for(drawn, tiny_train_subset=wanted))

    def test_of_a_list_become_absolute_but_a_named_subset_beats_a_file(
        self, drawn, tmp_path, monkeypatch
    ):
        (tmp_path / "deep").mkdir()
        monkeypatch.chdir(tmp_path / "deep")
        sample_id = open_data(flags_for(drawn)).eval.ids[0]
        (tmp_path / "ids.txt").write_text(sample_id)
        Path("synthetic_tiny").write_text(sample_id)
        decided = open_data(flags_for(drawn, tiny_infer_subset="../ids.txt")).decided
        assert decided["tiny_infer_subset"] == str((tmp_path / "ids.txt").resolve())
        decided = open_data(flags_for(drawn, tiny_infer_subset="synthetic_tiny")).decided
        assert decided["tiny_infer_subset"] == "synthetic_tiny"

    def test_that_no_system_takes_are_bad_input(self, drawn):
        for flag in ("tiny_train_subset", "tiny_infer_subset"):
            with pytest.raises(InputError, match=f"^--{flag} x+: "):
                open_data(flags_for(drawn, **{flag: "x" * 300}))


CARVED = {"fraction": 0.25, "seed": 7}


def checkpoint_of(dataset: str, classes: Sequence[str], **fields: object) -> dict[str, object]:
    """What `open_eval_data` reads of a checkpoint; of an older version, which knows no images."""
    values = {"class_depth": 0, "carving": {}, "trained_images": []}
    return {"dataset": dataset, "classes": list(classes), **values, **fields}


class TestHeldOutVal:
    @pytest.fixture
    def heap(self, tmp_path) -> Path:
        """A CSV of 18 images without a column of splits."""
        return write_csv(tmp_path / "own", with_split=False)

    def test_is_a_fifth_of_data_in_one_heap_unless_told(self, heap, caplog):
        with caplog.at_level("INFO", logger="fine_vit"):
            data = open_data(flags_for(heap, dataset="csv"))
        assert [data.decided[key] for key in ("val_fraction", "split_seed")] == [0.2, 42]
        assert data.facts()["carving"] == {"fraction": 0.2, "seed": 42}
        assert (data.eval.name, len(data.eval), len(data.train)) == ("val", 4, 14)
        assert "val is held out of train: 4 images, a share of 0.2 of each class" in caplog.text
        data = open_data(flags_for(heap, dataset="csv", val_fraction=0.5, split_seed=1))
        assert data.facts()["carving"] == {"fraction": 0.5, "seed": 1}

    def test_is_refused_where_it_means_nothing(self, drawn):
        with pytest.raises(InputError, match=r"^--split_seed means nothing without"):
            open_data(flags_for(drawn, split_seed=3))
        with pytest.raises(InputError, match=r"^--val_fraction: synthetic has a val split of its"):
            open_data(flags_for(drawn, val_fraction=0.3))

    def test_of_an_evaluation_is_that_of_the_training_run(self, heap):
        trained = open_data(flags_for(heap, dataset="csv", val_fraction=0.25, split_seed=7))
        checkpoint = checkpoint_of("csv", trained.train.classes, carving=CARVED)
        data = open_eval_data(flags_for(heap, dataset=None), checkpoint)
        assert data.eval.identity() == trained.eval.identity()
        assert data.decided == {
            "dataset": "csv",
            "data_root": str(heap),
            "class_depth": None,
            "eval_split": "val",
            "val_fraction": 0.25,
            "split_seed": 7,
            "tiny_infer_subset": None,
        }
        assert data.facts()["carving"] == CARVED

    def test_of_other_data_is_not_held_out(self, heap):
        for carving in (CARVED, {}):
            classes = open_data(flags_for(heap, dataset="csv")).train.classes
            checkpoint = checkpoint_of("flower102", classes, carving=carving)
            data = open_eval_data(flags_for(heap, dataset="csv"), checkpoint)
            decided = [data.decided[key] for key in ("eval_split", "val_fraction", "split_seed")]
            assert decided == ["train", None, None]
            assert data.facts()["carving"] is None


class TestOpenEvalData:
    def test_takes_the_dataset_of_the_checkpoint(self, flowers, monkeypatch):
        classes = open_data(flags_for(flowers, dataset="flower102")).train.classes
        checkpoint = checkpoint_of("flower102", classes)
        with pytest.raises(InputError, match="no data for flower102"):
            open_eval_data(flags_for(None, dataset=None), checkpoint)
        monkeypatch.setenv("DATA_ROOT", str(flowers))
        data = open_eval_data(flags_for(None, dataset=None), checkpoint)
        assert (data.decided["dataset"], data.decided["data_root"]) == ("flower102", str(flowers))
        with pytest.raises(InputError, match="unknown dataset 'birds'"):
            open_eval_data(flags_for(None, dataset=None), checkpoint_of("birds", ["a", "b"]))

    def test_checks_split_and_subset(self, drawn):
        checkpoint = checkpoint_of("synthetic", SYNTHETIC_CLASSES)
        with pytest.raises(InputError, match="--eval_split dev: synthetic has no split"):
            open_eval_data(flags_for(drawn, dataset=None, eval_split="dev"), checkpoint)
        flags = flags_for(drawn, dataset=None, tiny_infer_subset="flower102_tiny")
        with pytest.raises(InputError, match="flower102_tiny is neither synthetic_tiny"):
            open_eval_data(flags, checkpoint)
