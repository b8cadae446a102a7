"""utils/dataset.py: the table of data sets, opening a split, the labelmap."""

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest
from helpers import read_json
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import FrozenConfigDict

from utils.data.catalog import dataset_names, get_spec
from utils.data.image_files import decode_rgb
from utils.data.readers.flowers import FLOWER102_CLASSES
from utils.data.readers.synthetic import SYNTHETIC_CLASSES
from utils.data.subsets import select_subset
from utils.dataset import labelmap, open_split, open_subset, prepare_images
from utils.errors import InputError
from utils.files import write_json


class TestSpecs:
    def test_are_found_by_every_name(self):
        assert {get_spec(name).name for name in dataset_names()} == {
            "flower102",
            "CUB_200_2011",
            "car",
            "dog",
            "nabirds",
            "INat2017",
            "pet",
            "aircraft",
            "food101",
            "cifar10",
            "cifar100",
            "folder",
            "csv",
            "synthetic",
        }
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

    def test_real_flowers_start_as_they_should(self, real_flowers):
        split = open_split(get_spec("flowers102"), real_flowers.parent, "val")
        assert (split.ids[0], len(split)) == ("image_06773", 1020)
        assert split.classes == FLOWER102_CLASSES
        assert split.root == real_flowers.resolve()
        assert decode_rgb(split.path_of(0)).mode == "RGB"


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

    @settings(max_examples=50, deadline=None)
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

    def test_of_the_flowers(self):
        made = labelmap("flower102", FLOWER102_CLASSES)
        assert (made["num_classes"], made["classes"][50]) == (102, "petunia")


FLAG = "--tiny_train_subset"


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
            "name": "toy_tiny",
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
            "count": 3,
            "classes": 2,
        }

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
            "photo_004\nphoto_001\n",
            "photo_001\nphoto_004",
            "photo_004\r\nphoto_001\r\n",
            b"\xef\xbb\xbfphoto_004\r\nphoto_001",
            "\n  photo_001 \n\n\tphoto_004\n\n",
            "photo_004\rphoto_001\r",
        ],
    )
    def test_is_taken_in_split_order(self, tmp_path, split, content):
        chosen, identity = self.listed(tmp_path, content, split)
        assert chosen.ids.tolist() == ["photo_001", "photo_004"]
        assert chosen.labels.tolist() == [1, 1]
        text = json.dumps(["photo_001", "photo_004"], separators=(",", ":"))
        assert identity == {
            "name": "ids.txt",
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
            "count": 2,
            "classes": 1,
        }

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

    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def test_of_any_ids_in_any_order_is_those_ids(self, tmp_path_factory, make_split, data):
        split = make_split(Path("unused"), [0] * 12, photos=False)
        ids = data.draw(st.lists(st.sampled_from(split.ids.tolist()), unique=True, min_size=1))
        path = tmp_path_factory.getbasetemp() / "any.txt"
        path.write_text(data.draw(st.sampled_from(["\n", "\r\n", "\n\n"])).join(ids), newline="")
        assert select_subset(split, str(path), 1, FLAG).split.ids.tolist() == sorted(ids)


def data_config(root: Path, **changes) -> FrozenConfigDict:
    """What `open_subset` reads of a config."""
    values = {
        "dataset": "synthetic",
        "data_root": str(root),
        "train_split": "train",
        "eval_split": "val",
        "tiny_train_subset": None,
        "tiny_infer_subset": None,
        "train_batch_size": 4,
        "eval_batch_size": 2,
        "val_fraction": None,
        "split_seed": None,
    }
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
