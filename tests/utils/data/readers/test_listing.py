"""utils/data/readers/listing.py: class names, what every listing promises."""

from pathlib import Path

import pytest

from utils.data.readers.listing import (
    clean_name,
    clean_names,
    make_listing,
    unpacked,
    without_ending,
)
from utils.errors import InputError, printable


class TestNames:
    @pytest.mark.parametrize(
        ("raw", "clean"),
        [
            ("Black_footed_Albatross", "Black footed Albatross"),
            (" a \u00a0 b__c ", "a b c"),
            ("E\u0301pine", "Épine"),
            ("Ram C/V", "Ram C/V"),
            ("_ ", ""),
            ("Shih-Tzu", "Shih-Tzu"),
        ],
    )
    def test_are_cleaned(self, raw, clean):
        assert clean_name(raw) == clean == clean_name(clean)

    @pytest.mark.parametrize(
        ("path", "without"),
        [
            ("a/b.c/d.jpg", "a/b.c/d"),
            ("a/b.c/d", "a/b.c/d"),
            ("a.b.jpg", "a.b"),
            ("a/.jpg", "a/.jpg"),
            ("", ""),
        ],
    )
    def test_lose_their_ending(self, path, without):
        assert without_ending(path) == without

    def test_are_printed_in_one_line(self):
        assert printable("é\n\x1b\udce9") == r"é\n\x1b\xe9"

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            ({7: "a", 9: " _"}, r"^list.txt gives class 9 no name$"),
            (
                {7: "a", 9: "a\u200b"},
                r"^list.txt gives class 9 the name 'a\\u200b', with what",
            ),
            (
                {7: "a_b", 8: "c", 9: "a  b"},
                r"gives class 7 and class 9 the same class name 'a b'$",
            ),
        ],
    )
    def test_are_not_empty_or_shared(self, names, message):
        assert clean_names(Path("list.txt"), {7: "a_b", 9: "c"}) == ["a b", "c"]
        with pytest.raises(InputError, match=message):
            clean_names(Path("list.txt"), names)


def test_a_folder_is_found_in_one_that_is_called_like_its_archive(tmp_path):
    assert unpacked(tmp_path, "images") == "images"
    (tmp_path / "images").mkdir()
    assert unpacked(tmp_path, "images") == "images"
    (tmp_path / "images" / "images").mkdir()
    assert unpacked(tmp_path, "images") == "images/images"
    (tmp_path / "car_devkit" / "devkit").mkdir(parents=True)
    assert unpacked(tmp_path, "devkit", "car_devkit") == "car_devkit/devkit"


class TestMakeListing:
    @pytest.mark.parametrize(
        ("ids", "paths", "labels", "message"),
        [
            ([], [], [], "lists no image"),
            (["a", "a"], ["a", "b"], [0, 1], "has the image 'a' more than once"),
            (["a", "b"], ["a", "b"], [0, 2], "the label of b is 2 counted from 0, but there are 2"),
            (["a", "b"], ["a", "b"], [-1, 0], "the label of a is -1 counted from 0"),
            *(
                (["a", "b"], ["a", bad], [0, 1], "is not a path below the data root")
                for bad in ("/b", "../b", "a/../../b", "..", r"a\b")
            ),
        ],
    )
    def test_refuses(self, ids, paths, labels, message):
        with pytest.raises(InputError, match=f"^list.txt:? .*{message}"):
            make_listing(Path("list.txt"), ["x", "y"], ids, paths, labels)
