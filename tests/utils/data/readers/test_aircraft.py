"""utils/data/readers/aircraft.py: the official lists, read exactly or refused in one line."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts_birds import edit_lines
from layouts_web import AIRCRAFT_VARIANTS, write_aircraft
from PIL import Image

from utils.data.readers import aircraft
from utils.errors import InputError

SPLITS = ("train", "val", "trainval", "test")
TRAIN = "images_variant_train.txt"


@pytest.fixture
def data(tmp_path):
    """The folder of the lists of 12 train, 6 val and 6 test images, which are not there."""
    return write_aircraft(tmp_path / "fgvc-aircraft-2013b", photos=False) / "data"


class TestRead:
    def test_gives_each_split_in_the_order_of_its_list(self, data):
        listings = {split: aircraft.read(data.parent, split) for split in SPLITS}
        for split, count in (("train", 4), ("val", 2), ("trainval", 6), ("test", 2)):
            listing = listings[split]
            assert listing.classes == ("707-320", "F-16A/B", "Hawk T1")
            assert listing.parents == ()
            assert listing.labels.tolist() == [0] * count + [1] * count + [2] * count
            lines = (data / f"images_variant_{split}.txt").read_text().splitlines()
            assert listing.ids.tolist() == [line.split()[0] for line in lines]
            assert listing.paths.tolist() == [f"data/images/{key}.jpg" for key in listing.ids]
        parts = [set(listings[split].ids.tolist()) for split in SPLITS]
        assert parts[0] | parts[1] == parts[2]
        assert not parts[2] & parts[3]

    def test_names_photos_that_are_there(self, tmp_path):
        root = write_aircraft(tmp_path)
        paths = [*aircraft.read(root, "trainval").paths, *aircraft.read(root, "test").paths]
        photos = {np.asarray(Image.open(root / path)).tobytes() for path in paths}
        assert len(photos) == len(paths) == 24
        assert {path.relative_to(root).as_posix() for path in root.rglob("*.jpg")} == set(paths)
        assert all((root / entry).exists() for entry in aircraft.ENTRIES)

    def test_has_every_class_where_a_split_lacks_one(self, tmp_path):
        root = write_aircraft(tmp_path, test_classes=[0, 2], photos=False)
        test = aircraft.read(root, "test")
        assert test.classes == AIRCRAFT_VARIANTS
        assert test.labels.tolist() == [0, 0, 2, 2]

    @pytest.mark.parametrize("split", SPLITS)
    def test_agrees_with_torchvision(self, data, split):
        from torchvision.datasets import FGVCAircraft

        theirs = FGVCAircraft(data.parent.parent, split)
        ours = aircraft.read(data.parent, split)
        assert [str(data.parent / path) for path in ours.paths] == theirs._image_files
        assert ours.labels.tolist() == theirs._labels
        assert list(ours.classes) == theirs.classes

    @settings(max_examples=40, deadline=None)
    @given(drawn=st.data(), newline=st.sampled_from(["\n", "\r\n", "\n\n", " \n"]))
    def test_gives_back_what_was_written(self, tmp_path_factory, drawn, newline):
        word = st.text("ABCdef0189-/", min_size=1, max_size=6)
        name = st.lists(word, min_size=1, max_size=3).map(" ".join)
        variants = drawn.draw(st.lists(name, min_size=1, max_size=8, unique=True))
        numbers = drawn.draw(st.lists(st.integers(0, 10**7), min_size=2, unique=True))
        keys = [f"{number:07d}" for number in numbers]
        rows = [(key, drawn.draw(st.sampled_from(variants))) for key in keys]
        root = tmp_path_factory.getbasetemp() / "aircraft_lists"
        (root / "data").mkdir(parents=True, exist_ok=True)

        def write(file: str, lines: list[str]) -> None:
            text = "".join(line + newline for line in lines)
            (root / "data" / file).write_text(text, encoding="utf-8", newline="")

        write("variants.txt", variants)
        write("images_variant_test.txt", [" ".join(row) for row in rows[1:]])
        write("images_variant_trainval.txt", [" ".join(rows[0])])
        test = aircraft.read(root, "test")
        assert test.classes == tuple(variants)
        read = zip(test.ids, (variants[label] for label in test.labels), strict=True)
        assert list(read) == rows[1:]


# File, edit, message.
DAMAGES = [
    *(
        (name, lambda lines: [], rf"{name} is empty$")
        for name in (TRAIN, "variants.txt", "images_variant_test.txt")
    ),
    (TRAIN, lambda lines: [lines[0], "0000001"], rf"{TRAIN} line 2: '0000001' is no pair"),
    (TRAIN, lambda lines: [*lines, lines[0]], rf"{TRAIN} has the image '0034309' more than once"),
    (
        TRAIN,
        lambda lines: [lines[0], "0000001 Concorde"],
        rf"{TRAIN} line 2: .*variants.txt lacks the variant 'Concorde'",
    ),
    *(
        (
            TRAIN,
            lambda lines, bad=bad: [f"{bad} 707-320"],
            rf"{TRAIN}: an image number is '{bad}', not a whole number",
        )
        for bad in ("x", "-1", "../1", "/tmp/1", "1.jpg")
    ),
    (
        "images_variant_val.txt",
        lambda lines: ["0034309 707-320"],
        rf"{TRAIN} has the image 0034309, and so has the val split",
    ),
    (
        "images_variant_test.txt",
        lambda lines: ["0034309 707-320"],
        rf"{TRAIN} has the image 0034309, and so has the test split",
    ),
    ("variants.txt", lambda lines: lines[:2], r"variants.txt lacks the variant 'Hawk T1'"),
    (
        "variants.txt",
        lambda lines: [*lines, "Hawk  T1"],
        r"variants.txt gives line 3 and line 4 the same class name 'Hawk T1'",
    ),
    ("variants.txt", lambda lines: [*lines, "_"], r"variants.txt line 4 has no name"),
]


class TestRefusals:
    @pytest.mark.parametrize(("name", "edit", "message"), DAMAGES)
    def test_of_a_damaged_list(self, data, name, edit, message):
        edit_lines(data / name, edit)
        with pytest.raises(InputError, match=message):
            aircraft.read(data.parent, "train")

    @pytest.mark.parametrize("name", ["variants.txt", TRAIN, "images_variant_val.txt"])
    def test_of_a_file_that_cannot_be_read(self, data, name):
        path: Path = data / name
        path.write_bytes(b"1 \xff\n")
        with pytest.raises(InputError, match=rf"{name} is not UTF-8 \(byte 2\)"):
            aircraft.read(data.parent, "train")
        path.unlink()
        with pytest.raises(InputError, match=f"{name} does not exist"):
            aircraft.read(data.parent, "train")
        path.mkdir()
        with pytest.raises(InputError, match=f"{name} is a folder, not a file"):
            aircraft.read(data.parent, "train")

    @pytest.mark.parametrize(
        ("split", "other"),
        [
            ("train", "val"),
            ("train", "test"),
            ("val", "train"),
            ("val", "test"),
            ("trainval", "test"),
            ("test", "trainval"),
        ],
    )
    def test_of_an_image_that_another_split_has(self, data, split, other):
        source = f"images_variant_{split}.txt"
        shared = (data / source).read_text().splitlines()[0]
        edit_lines(data / f"images_variant_{other}.txt", lambda lines: [*lines, shared])
        key = shared.split()[0]
        with pytest.raises(
            InputError, match=rf"{source} has the image {key}, and so has the {other} split$"
        ):
            aircraft.read(data.parent, split)

    @settings(max_examples=40, deadline=None)
    @given(content=st.binary(max_size=60), name=st.sampled_from(["variants.txt", TRAIN]))
    def test_of_random_bytes(self, tmp_path_factory, content, name):
        root = write_aircraft(tmp_path_factory.getbasetemp() / "aircraft_random", photos=False)
        (root / "data" / name).write_bytes(content)
        with pytest.raises(InputError, match=r"\.txt"):
            aircraft.read(root, "train")
