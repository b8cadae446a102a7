"""utils/data/readers/flowers.py: the official layout, read exactly or refused in one line."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import savemat
from scipy.sparse import csc_array

from utils.data.readers import flowers
from utils.data.readers.flowers import LABELS_FILE, SPLITS_FILE, read_layout
from utils.errors import InputError

# Six images of three classes, two in each official split.
LABELS = [1, 2, 3, 1, 2, 3]
SPLITS = {"trnid": [5, 1], "valid": [4, 2], "tstid": [3, 6]}


def write_layout(root: Path, labels=LABELS, compressed: bool = False, **splits) -> Path:
    """Both .mat files below `root`, as MATLAB row vectors; arrays are written as they are."""

    def row(values):
        return np.array([values]) if isinstance(values, list) else values

    root.mkdir(parents=True, exist_ok=True)
    variables = {name: row(values) for name, values in {**SPLITS, **splits}.items()}
    savemat(root / LABELS_FILE, {"labels": row(labels)}, do_compression=compressed)
    savemat(root / SPLITS_FILE, variables, do_compression=compressed)
    return root


class TestReadLayout:
    def test_gives_labels_from_0_and_the_files_order(self, tmp_path):
        labels, splits = read_layout(write_layout(tmp_path), num_classes=3)
        assert labels.tolist() == [0, 1, 2, 0, 1, 2]
        assert {name: numbers.tolist() for name, numbers in splits.items()} == {
            "train": [5, 1],
            "val": [4, 2],
            "test": [3, 6],
            "trainval": [5, 1, 4, 2],
        }
        assert labels.dtype == np.int64
        assert all(numbers.dtype == np.int64 for numbers in splits.values())

    @settings(max_examples=30)
    @given(data=st.data(), count=st.integers(3, 60), num_classes=st.integers(1, 102))
    def test_gives_back_what_was_written(self, tmp_path_factory, data, count, num_classes):
        order = data.draw(st.permutations(range(1, count + 1)))
        labels = data.draw(st.lists(st.integers(1, num_classes), min_size=count, max_size=count))
        one, two = sorted(data.draw(st.tuples(st.integers(0, count), st.integers(0, count))))
        parts = {"trnid": order[:one], "valid": order[one:two], "tstid": order[two:]}
        dtype = data.draw(st.sampled_from([np.uint8, np.uint16, np.int32, np.float64]))
        parts = {name: np.array([part], dtype=dtype) for name, part in parts.items()}
        root = tmp_path_factory.getbasetemp() / "layout"
        write_layout(root, np.array([labels], dtype=dtype), data.draw(st.booleans()), **parts)
        read, splits = read_layout(root, num_classes)
        assert (read + 1).tolist() == labels
        assert splits["train"].tolist() == order[:one]
        assert splits["val"].tolist() == order[one:two]
        assert splits["test"].tolist() == order[two:]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"labels": LABELS[:-1]}, r"imagelabels.mat has 5 labels.*setid.mat names 6 images"),
            ({"labels": [0, 2, 3, 1, 2, 3]}, r"imagelabels.mat has labels 0 to 3, not 1 to 3"),
            ({"labels": [1, 2, 3, 1, 2, 4]}, r"imagelabels.mat has labels 1 to 4, not 1 to 3"),
            ({"labels": [1.0, 2, 3, 1, 2, 2.5]}, r"imagelabels.mat has no 'labels' made of whole"),
            ({"labels": csc_array([LABELS])}, r"imagelabels.mat has no 'labels' made of whole"),
            *(
                ({"trnid": bad}, r"setid.mat must name each image from 1 to 6 once")
                for bad in ([5, 5], [5, 4], [5, 0], [5, 7], [5, -1])
            ),
            ({"tstid": "36"}, r"setid.mat has no 'tstid' made of whole numbers"),
        ],
    )
    def test_refuses_lists_that_contradict(self, tmp_path, changes, message):
        with pytest.raises(InputError, match=message):
            read_layout(write_layout(tmp_path, **changes), num_classes=3)


class TestNames:
    def test_of_classes_and_images(self):
        assert len(flowers.FLOWER102_CLASSES) == len(set(flowers.FLOWER102_CLASSES)) == 102
        assert all(name == name.strip() and name for name in flowers.FLOWER102_CLASSES)
        assert flowers.FLOWER102_CLASSES[0] == "pink primrose"
        assert flowers.FLOWER102_CLASSES[101] == "blackberry lily"
        assert flowers.image_id(1) == "image_00001"
        assert flowers.image_path(8189) == "jpg/image_08189.jpg"


class TestRealFlowers:
    def test_have_the_official_splits(self, real_flowers):
        labels, splits = read_layout(real_flowers, num_classes=102)
        assert {name: len(numbers) for name, numbers in splits.items()} == {
            "train": 1020,
            "val": 1020,
            "test": 6149,
            "trainval": 2040,
        }
        assert flowers.image_id(splits["val"][0]) == "image_06773"
        assert splits["trainval"].tolist() == [*splits["train"], *splits["val"]]
        assert len(labels) == 8189
        assert np.bincount(labels[splits["train"] - 1]).tolist() == [10] * 102
        assert np.bincount(labels[splits["val"] - 1]).tolist() == [10] * 102
        assert np.unique(labels).tolist() == list(range(102))

    def test_have_the_official_names(self, real_flowers):
        names = real_flowers.parent / "flowers102_names.json"
        if not names.is_file():
            pytest.skip(f"no {names.name} beside the flowers")
        official = json.loads(names.read_text(encoding="utf-8"))
        assert list(flowers.FLOWER102_CLASSES) == official
