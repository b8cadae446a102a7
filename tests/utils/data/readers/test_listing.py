"""utils/data/readers/listing.py: list files, class names, what every listing promises."""

from pathlib import Path

import pytest

from utils.data.readers.list_checks import check_apart, check_same_keys
from utils.data.readers.listing import (
    clean_name,
    clean_names,
    make_listing,
    read_bytes,
    read_lines,
    read_table,
    to_int,
    unpacked,
    without_ending,
)
from utils.errors import InputError, printable


@pytest.fixture
def list_file(tmp_path):
    """A list file to be written."""
    return tmp_path / "list.txt"


class TestReadLines:
    @pytest.mark.parametrize("newline", ["\n", "\r\n", "\r", "\n\n", " \r\n"])
    @pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
    def test_takes_files_of_any_system(self, list_file, newline, start):
        list_file.write_bytes(start + f"1 é{newline}2 b c{newline}".encode())
        assert [line for _, line in read_lines(list_file)] == ["1 é", "2 b c"]
        assert read_table(list_file) == {"1": "é", "2": "b c"}

    @pytest.mark.parametrize("character", ["\0", "\t", "\x1b", "\x85", "\u2028"])
    def test_refuses_control_characters(self, list_file, character):
        list_file.write_text(f"1 a\n\n2 b{character}c\n", encoding="utf-8")
        with pytest.raises(InputError, match=r"list.txt line 3: '2 b.* has control") as caught:
            read_lines(list_file)
        assert str(caught.value).isprintable()

    def test_says_no_more_than_the_start_of_a_line(self, list_file):
        list_file.write_text("<html>" * 9999, encoding="utf-8")
        with pytest.raises(InputError, match=r"line 1: .* is not a key and a value") as caught:
            read_table(list_file)
        assert len(str(caught.value)) < 400

    def test_refuses_an_empty_file_and_a_key_twice(self, list_file):
        list_file.write_text("\n \n", encoding="utf-8")
        with pytest.raises(InputError, match=r"list.txt is empty$"):
            read_table(list_file)
        list_file.write_text("1 a\n1 b\n", encoding="utf-8")
        with pytest.raises(InputError, match=r"list.txt has the key 1 more than once$"):
            read_table(list_file)

    def test_refuses_what_is_missing_a_folder_or_not_utf8(self, list_file):
        with pytest.raises(InputError, match=r"list.txt does not exist; fetch it again$"):
            read_bytes(list_file, "fetch it again")
        with pytest.raises(InputError, match=r"is a folder, not a file; fetch it again$"):
            read_bytes(list_file.parent, "fetch it again")
        list_file.write_bytes(b"1 \xff\n")
        with pytest.raises(InputError, match=r"list.txt is not UTF-8 \(line 1, byte 2\); fetch"):
            read_lines(list_file)


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

    @pytest.mark.parametrize("text", ["", "-1", "1.0", "1_0", "\uff13", "9" * 19, "0x1"])
    def test_are_no_numbers(self, text):
        with pytest.raises(InputError, match=r"list.txt: an id is '.*', not a whole number$"):
            to_int(Path("list.txt"), "an id", text)
        assert to_int(Path("list.txt"), "an id", "007") == 7

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            ({7: "a", 9: " _"}, r"^list.txt gives class 9 no name$"),
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


def test_the_first_image_that_two_lists_share_is_named():
    check_apart(Path("a"), ["1", "2"], Path("b"), ["3"])
    with pytest.raises(InputError, match=r"^a has the image '2', and so has b$"):
        check_apart(Path("a"), ["1", "2"], Path("b"), ["3", "2", "1"])


def test_the_first_key_that_a_list_lacks_is_named():
    a, b = Path("a"), Path("b")
    check_same_keys(a, {"1": "x", "2": "y"}, b, {"2": "z", "1": "z"})
    numbers = {str(number): "" for number in range(100)}
    with pytest.raises(InputError, match=r"^a lacks 0, which b has$"):
        check_same_keys(a, {"0x": ""}, b, numbers)
    with pytest.raises(InputError, match=r"^a has 0, which b lacks$"):
        check_same_keys(a, numbers, b, {})


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
