"""utils/data/readers/food101.py: the official lists, read exactly or refused in one line."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts_birds import edit_lines
from layouts_web import write_food101
from PIL import Image

from utils.data.readers import food101
from utils.errors import InputError

NAMES = ("Apple pie", "Creme brulee", "Ramen")


@pytest.fixture
def root(tmp_path):
    """The lists of 12 training and 6 test images; the folder of images is empty."""
    return write_food101(tmp_path / "food-101", photos=False)


class TestRead:
    def test_gives_the_split_in_the_order_of_its_list(self, root):
        train, test = food101.read(root, "train"), food101.read(root, "test")
        assert train.classes == test.classes == NAMES
        assert train.parents == test.parents == ()
        assert train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert test.labels.tolist() == [0] * 2 + [1] * 2 + [2] * 2
        assert train.ids.tolist() == (root / "meta" / "train.txt").read_text().split()
        assert train.ids[0] == "apple_pie/1005649"
        assert train.paths[0] == "images/apple_pie/1005649.jpg"

    def test_names_photos_that_are_there(self, tmp_path):
        root = write_food101(tmp_path)
        paths = [*food101.read(root, "train").paths, *food101.read(root, "test").paths]
        photos = {np.asarray(Image.open(root / path)).tobytes() for path in paths}
        assert len(photos) == len(paths) == 18
        assert {path.relative_to(root).as_posix() for path in root.rglob("*.jpg")} == set(paths)
        assert sorted(path.name for path in root.iterdir()) == sorted(food101.ENTRIES)

    def test_has_every_class_where_a_split_lacks_one(self, tmp_path):
        test = food101.read(write_food101(tmp_path, test_classes=[0, 2], photos=False), "test")
        assert test.classes == NAMES
        assert test.labels.tolist() == [0, 0, 2, 2]

    @pytest.mark.parametrize("split", ["train", "test"])
    def test_agrees_with_torchvision(self, root, split):
        from torchvision.datasets import Food101

        theirs, ours = Food101(root.parent, split), food101.read(root, split)
        assert [root / path for path in ours.paths] == theirs._image_files
        assert ours.labels.tolist() == theirs._labels
        assert [name.lower().replace(" ", "_") for name in ours.classes] == theirs.classes

    def test_takes_the_order_of_classes_from_classes_txt(self, root):
        for name in ("classes.txt", "labels.txt"):
            edit_lines(root / "meta" / name, lambda lines: lines[::-1])
        train = food101.read(root, "train")
        assert train.classes == NAMES[::-1]
        assert train.labels.tolist() == [2] * 4 + [1] * 4 + [0] * 4

    @settings(max_examples=40, deadline=None)
    @given(data=st.data(), newline=st.sampled_from(["\n", "\r\n", "\n\n", " \n"]))
    def test_gives_back_what_was_written(self, tmp_path_factory, data, newline):
        word = st.text("abcxyz_", min_size=1, max_size=8)
        keys = data.draw(st.lists(word, min_size=1, max_size=6, unique=True))
        numbers = data.draw(st.lists(st.integers(0, 10**7), min_size=2, unique=True))
        lines = [f"{data.draw(st.sampled_from(keys))}/{number}" for number in numbers]
        meta = tmp_path_factory.getbasetemp() / "food_lists" / "meta"
        meta.mkdir(parents=True, exist_ok=True)
        names = [f"Dish {number}" for number in range(len(keys))]
        for file, of_file in {
            "classes": keys,
            "labels": names,
            "train": lines[1:],
            "test": lines[:1],
        }.items():
            text = "".join(line + newline for line in of_file)
            (meta / f"{file}.txt").write_text(text, encoding="utf-8", newline="")
        train = food101.read(meta.parent, "train")
        assert train.ids.tolist() == lines[1:]
        assert [keys[label] for label in train.labels] == [line.split("/")[0] for line in lines[1:]]
        assert train.classes == tuple(names)

    def test_takes_less_than_a_second_of_the_full_size(self, root):
        keys = [f"dish_{number:03d}" for number in range(101)]
        for file, first, count in (("train", 0, 750), ("test", 750, 250)):
            lines = [f"{key}/{first + number}" for key in keys for number in range(count)]
            (root / "meta" / f"{file}.txt").write_text("\n".join(lines), encoding="utf-8")
        for file in ("classes", "labels"):
            (root / "meta" / f"{file}.txt").write_text("\n".join(keys), encoding="utf-8")
        start = time.process_time()
        train = food101.read(root, "train")
        assert time.process_time() - start < 1
        assert len(train.ids) == 75750


# File, edit, message.
DAMAGES = [
    *(
        (name, lambda lines: [], rf"{name} is empty$")
        for name in ("classes.txt", "labels.txt", "train.txt", "test.txt")
    ),
    *(
        (
            "train.txt",
            lambda lines, bad=bad: [lines[0], bad],
            rf"train.txt line 2: '{bad}' is no class/image",
        )
        for bad in ("ramen", "ramen/", "ramen/a/b", "/ramen/1/", "../ramen/1")
    ),
    *(
        (
            "train.txt",
            lambda lines, bad=bad: [lines[0], bad],
            r"train.txt line 2: .*classes.txt lacks '(pho|\.\.|)'",
        )
        for bad in ("pho/1", "../1", "/1")
    ),
    (
        "train.txt",
        lambda lines: [*lines, lines[0]],
        r"train.txt has the image 'apple_pie/1005649' more than once",
    ),
    ("train.txt", lambda lines: [r"ramen/..\1"], r"train.txt: .* is no path below the data root"),
    (
        "test.txt",
        lambda lines: [*lines, "apple_pie/1005649"],
        r"train.txt has the image 'apple_pie/1005649', and so has the other split",
    ),
    (
        "classes.txt",
        lambda lines: lines[:2],
        r"labels.txt has 3 lines, but .*classes.txt has 2; each class needs a line in both",
    ),
    ("labels.txt", lambda lines: [*lines, "Pho"], r"labels.txt has 4 lines, .*classes.txt has 3"),
    (
        "classes.txt",
        lambda lines: [lines[0], lines[0], lines[2]],
        r"classes.txt gives line 1 and line 2 the same class 'apple_pie'",
    ),
    (
        "labels.txt",
        lambda lines: [lines[0], lines[1], "Apple_pie"],
        r"labels.txt gives line 1 and line 3 the same class name 'Apple pie'",
    ),
    ("labels.txt", lambda lines: [lines[0], "_", lines[2]], r"labels.txt line 2 has no name"),
]


class TestRefusals:
    @pytest.mark.parametrize(("name", "edit", "message"), DAMAGES)
    def test_of_a_damaged_list(self, root, name, edit, message):
        edit_lines(root / "meta" / name, edit)
        with pytest.raises(InputError, match=message):
            food101.read(root, "train")

    @pytest.mark.parametrize("name", ["classes.txt", "labels.txt", "train.txt", "test.txt"])
    def test_of_a_file_that_cannot_be_read(self, root, name):
        path = root / "meta" / name
        path.write_bytes(b"1 \xff\n")
        with pytest.raises(InputError, match=rf"{name} is not UTF-8 \(byte 2\)"):
            food101.read(root, "train")
        path.unlink()
        with pytest.raises(InputError, match=f"{name} does not exist"):
            food101.read(root, "train")
        path.mkdir()
        with pytest.raises(InputError, match=f"{name} is a folder, not a file"):
            food101.read(root, "train")

    @pytest.mark.parametrize(("split", "other"), [("train", "test"), ("test", "train")])
    def test_of_an_image_that_the_other_split_has(self, root, split, other):
        shared = (root / "meta" / f"{split}.txt").read_text().splitlines()[0]
        edit_lines(root / "meta" / f"{other}.txt", lambda lines: [*lines, shared])
        with pytest.raises(
            InputError, match=rf"{split}.txt has the image '{shared}', and so has the other split$"
        ):
            food101.read(root, split)

    @settings(max_examples=40, deadline=None)
    @given(
        content=st.binary(max_size=60),
        name=st.sampled_from(["classes.txt", "labels.txt", "train.txt"]),
    )
    def test_of_random_bytes(self, tmp_path_factory, content, name):
        root = write_food101(tmp_path_factory.getbasetemp() / "food_random", photos=False)
        # Names for people may be any text, but not of another number of lines.
        ending = b"\nx" * 4 if name == "labels.txt" else b""
        (root / "meta" / name).write_bytes(content + ending)
        with pytest.raises(InputError, match=r"\.txt"):
            food101.read(root, "train")
