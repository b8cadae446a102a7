"""utils/data/readers/list_files.py: list files of any system, and what lists must agree on."""

import os
from pathlib import Path

import pytest

from utils.data.readers.list_files import (
    check_apart,
    check_same_keys,
    read_bytes,
    read_lines,
    read_table,
    read_text,
    to_int,
)
from utils.errors import InputError


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
        list_file.write_text("<tag>" * 9999, encoding="utf-8")
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
        list_file.write_bytes(b"\n1 \xff\n")
        with pytest.raises(InputError, match=r"list.txt is not UTF-8 \(line 2, byte 3\); fetch"):
            read_lines(list_file)

    def test_refuses_a_pipe_and_does_not_wait_for_it(self, list_file):
        os.mkfifo(list_file)
        with pytest.raises(OSError, match=r"it is a pipe, not a file"):
            read_lines(list_file)

    @pytest.mark.parametrize(
        ("content", "what"),
        [
            ("é 1\n".encode("utf-16"), "UTF-16"),
            ("1 a\n".encode("utf-16-le"), "UTF-16"),
            ("1 a\n".encode("utf-16-be"), "UTF-16"),
            (b"PK\x03\x04\x14", "an Excel workbook or another ZIP archive"),
            (b"\xd0\xcf\x11\xe0\xa1", "an old Excel workbook"),
        ],
    )
    def test_names_what_is_not_utf8(self, list_file, content, what):
        list_file.write_bytes(content)
        with pytest.raises(InputError, match=rf"list.txt is {what}, not UTF-8; fetch the whole"):
            read_lines(list_file)

    @pytest.mark.parametrize(
        ("content", "what"),
        [
            (b"\xff\xd8\xff\xe0", "a JPEG image"),
            (b"\x89PNG\r\n", "a PNG image"),
            (b"\n<!DOCTYPE html>", "HTML, a web page"),
            (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        ],
    )
    def test_names_what_is_no_list(self, list_file, content, what):
        list_file.write_bytes(content)
        with pytest.raises(InputError, match=rf"list.txt is {what}, not a list; fetch the whole"):
            read_lines(list_file)
        with pytest.raises(InputError, match=r"not a list; name or fetch the list itself$"):
            read_text(list_file, "save it as CSV")


@pytest.mark.parametrize("text", ["", "-1", "1.0", "1_0", "\uff13", "9" * 19, "0x1"])
def test_what_is_no_number_is_refused(text):
    with pytest.raises(InputError, match=r"list.txt: an id is '.*', not a whole number$"):
        to_int(Path("list.txt"), "an id", text)
    assert to_int(Path("list.txt"), "an id", "007") == 7


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
