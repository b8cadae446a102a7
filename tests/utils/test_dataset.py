"""utils/dataset.py: the table of data sets, opening a split, the labelmap."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import read_json
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.dataset import dataset_names, get_spec, labelmap, open_split, write_labelmap
from utils.errors import InputError
from utils.images import decode_rgb
from utils.readers.flowers import FLOWER102_CLASSES
from utils.readers.synthetic import SYNTHETIC_CLASSES


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
    def test_is_written_as_it_is_and_checks(
        self, tmp_path_factory, make_split, classes, has_parents
    ):
        path = tmp_path_factory.getbasetemp() / "labelmap.json"
        parents = tuple((f"above {name}", "all") for name in classes) if has_parents else ()
        split = make_split(Path("unused"), [0], photos=False)
        write_labelmap(path, replace(split, classes=tuple(classes), parents=parents))
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
