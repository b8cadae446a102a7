"""utils/data/readers/flowers.py: the official layout, read exactly or refused in one line."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import REPO
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

    @settings(max_examples=30, deadline=None)
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

    def test_takes_column_vectors(self, tmp_path):
        columns = {name: np.array(values)[:, None] for name, values in SPLITS.items()}
        labels, splits = read_layout(
            write_layout(tmp_path, np.array(LABELS)[:, None], **columns), num_classes=3
        )
        assert labels.tolist() == [0, 1, 2, 0, 1, 2]
        assert splits["train"].tolist() == [5, 1]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"labels": LABELS[:-1]}, r"imagelabels.mat has 5 labels.*setid.mat names 6 images"),
            ({"labels": [*LABELS, 1]}, r"imagelabels.mat has 7 labels.*setid.mat names 6 images"),
            ({"labels": []}, r"imagelabels.mat has 0 labels"),
            ({"labels": [0, 2, 3, 1, 2, 3]}, r"imagelabels.mat has labels 0 to 3, not 1 to 3"),
            ({"labels": [1, 2, 3, 1, 2, 4]}, r"imagelabels.mat has labels 1 to 4, not 1 to 3"),
            ({"labels": [1.0, 2, 3, 1, 2, 2.5]}, r"imagelabels.mat has no whole-number variable"),
            ({"labels": [1, 2, 3, 1, 2, np.nan]}, r"imagelabels.mat has no whole-number variable"),
            ({"labels": "abcdef"}, r"imagelabels.mat has no whole-number variable 'labels'"),
            ({"labels": [1 + 1j] * 6}, r"imagelabels.mat has no whole-number variable"),
            ({"labels": np.array([1, "a"], dtype=object)}, r"imagelabels.mat has no whole-number"),
            ({"labels": {"a": 1}}, r"imagelabels.mat has no whole-number variable"),
            ({"trnid": [5]}, r"imagelabels.mat has 6 labels.*setid.mat names 5 images"),
            ({"trnid": [5, 5]}, r"setid.mat must name each image from 1 to 6 once"),
            ({"trnid": [5, 4]}, r"setid.mat must name each image from 1 to 6 once"),
            ({"trnid": [5, 0]}, r"setid.mat must name each image from 1 to 6 once"),
            ({"trnid": [5, 7]}, r"setid.mat must name each image from 1 to 6 once"),
            ({"trnid": [5, -1]}, r"setid.mat must name each image from 1 to 6 once"),
            ({"trnid": [5, 1.5]}, r"setid.mat has no whole-number variable 'trnid'"),
            ({"tstid": "36"}, r"setid.mat has no whole-number variable 'tstid'"),
        ],
    )
    def test_refuses_lists_that_contradict(self, tmp_path, changes, message):
        with pytest.raises(InputError, match=message):
            read_layout(write_layout(tmp_path, **changes), num_classes=3)

    @pytest.mark.parametrize("bad", [np.inf, 1e300])
    @pytest.mark.filterwarnings("error")  # a warning would be a second line on stderr
    def test_refuses_numbers_that_no_integer_holds(self, tmp_path, bad):
        with pytest.raises(InputError, match=r"imagelabels.mat has "):
            read_layout(write_layout(tmp_path, labels=[1, 2, 3, 1, 2, bad]), num_classes=3)

    def test_refuses_sparse_labels(self, tmp_path):
        with pytest.raises(InputError, match=r"imagelabels.mat"):
            read_layout(write_layout(tmp_path, labels=csc_array([LABELS])), num_classes=3)

    def test_refuses_lists_that_are_all_empty(self, tmp_path):
        with pytest.raises(InputError, match=r"\.mat"):
            read_layout(write_layout(tmp_path, [], trnid=[], valid=[], tstid=[]), num_classes=3)

    @pytest.mark.parametrize("variable", ["trnid", "valid", "tstid"])
    def test_refuses_a_missing_split(self, tmp_path, variable):
        write_layout(tmp_path)
        rest = {name: values for name, values in SPLITS.items() if name != variable}
        savemat(tmp_path / SPLITS_FILE, rest)
        with pytest.raises(
            InputError, match=f"setid.mat has no whole-number variable '{variable}'"
        ):
            read_layout(tmp_path, num_classes=3)

    def test_refuses_files_that_were_swapped(self, tmp_path):
        write_layout(tmp_path)
        (tmp_path / LABELS_FILE).rename(tmp_path / "x")
        (tmp_path / SPLITS_FILE).rename(tmp_path / LABELS_FILE)
        (tmp_path / "x").rename(tmp_path / SPLITS_FILE)
        with pytest.raises(InputError, match=r"imagelabels.mat has no whole-number variable"):
            read_layout(tmp_path, num_classes=3)


class TestDamage:
    """Whatever lies there: an InputError that names the file."""

    @pytest.fixture(params=[LABELS_FILE, SPLITS_FILE])
    def damaged(self, tmp_path, request):
        """Of a good layout, the file to damage; the fixture's user reads it again."""
        return write_layout(tmp_path) / request.param

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\n",
            b"MATLAB 5.0 MAT-file",
            b"\x00" * 200,
            b"PK\x03\x04" + b"\x00" * 100,
            b"<!DOCTYPE html><html>404 Not Found</html>" * 10,
            b"\x89HDF\r\n\x1a\n" + b"\x00" * 600,
            b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(384) + b"\x89HDF\r\n\x1a\n",
            b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM",
        ],
    )
    def test_foreign_content(self, damaged, content):
        damaged.write_bytes(content)
        with pytest.raises(InputError, match=damaged.name):
            read_layout(damaged.parent, num_classes=3)

    def test_absent_or_a_folder(self, damaged):
        damaged.unlink()
        with pytest.raises(InputError, match=damaged.name):
            read_layout(damaged.parent, num_classes=3)
        damaged.mkdir()
        with pytest.raises(InputError, match=damaged.name):
            read_layout(damaged.parent, num_classes=3)

    @pytest.mark.parametrize("compressed", [False, True])
    @pytest.mark.parametrize("name", [LABELS_FILE, SPLITS_FILE])
    def test_cut_anywhere(self, tmp_path, name, compressed):
        path = write_layout(tmp_path, compressed=True) / name
        whole = path.read_bytes()
        for size in range(len(whole)):
            path.write_bytes(whole[:size])
            with pytest.raises(InputError, match=name):
                read_layout(tmp_path, num_classes=3)

    @settings(max_examples=150, deadline=None)
    @given(content=st.binary(max_size=400), name=st.sampled_from([LABELS_FILE, SPLITS_FILE]))
    def test_random_bytes(self, tmp_path_factory, content, name):
        root = write_layout(tmp_path_factory.getbasetemp() / "random")
        (root / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            read_layout(root, num_classes=3)

    @pytest.mark.parametrize("damage", ["zeros", "flip", "noise"])
    def test_bytes_that_changed(self, tmp_path, damage):
        """A file half written, a bit flipped, a sector of noise: refused or read, never a crash.

        In a process of its own, because a crash of the reader would take the tests along. Of
        compressed files, as the official and the drawn ones are: of damaged uncompressed ones
        scipy 1.17.1 can crash (research.md).
        """
        write_layout(tmp_path, compressed=True)
        code = """
import random, sys, warnings
from pathlib import Path
from utils.errors import InputError
from utils.data.readers.flowers import LABELS_FILE, SPLITS_FILE, read_layout

warnings.simplefilter("ignore")
root, damage = Path(sys.argv[1]), sys.argv[2]
draw = random.Random(0)
for name in (LABELS_FILE, SPLITS_FILE):
    whole = (root / name).read_bytes()
    for number in range(300):
        content = bytearray(whole)
        start = draw.randrange(len(whole))
        if damage == "zeros":  # of a download that had reserved its space
            content[start:] = bytes(len(whole) - start)
        elif damage == "flip":
            content[start] ^= 1 << draw.randrange(8)
        else:
            content[start : start + 16] = draw.randbytes(len(content[start : start + 16]))
        (root / name).write_bytes(content)
        print(name, number, start, flush=True)
        try:
            read_layout(root, num_classes=3)
        except InputError:
            pass
    (root / name).write_bytes(whole)
print("done")
"""
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), damage],
            cwd=REPO,
            capture_output=True,
            text=True,
            check=False,
        )
        last = done.stdout.splitlines()[-1]
        assert last == "done", f"exit {done.returncode} at {last}: {done.stderr[-300:]}"


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
